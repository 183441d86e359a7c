"""The run directory: who may make one, what is in it, and what happens when it is damaged."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from acktr.errors import CheckpointError, ConfigurationError
from acktr.run.directory import EPISODE_COLUMNS, EVALUATION_COLUMNS, Run, find_runs
from acktr.run.figures import plot_learning_curve, plot_runs, window_means, window_of
from acktr.run.tables import Table
from acktr.run.versions import versions


def make_run(path, seed=0, env_id="Toy-v0", episodes=30, **settings):
    run = Run.create(env_id, path)
    run.write_configuration({"env_id": env_id, "seed": seed, **settings})
    table = Table(path / "episodes.csv", EPISODE_COLUMNS)
    for index in range(episodes):
        table.append((10 * index, index + seed, 10, 0.1 * index, 0))
    table.close()
    return run


def test_default_directory_is_the_first_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Run.create(env_id).path.as_posix() for env_id in ("Toy-v0", "Toy-v0", "ALE/Pong-v5")]
    assert paths == ["runs/Toy-v0-1", "runs/Toy-v0-2", "runs/ALE-Pong-v5-1"]
    assert Run.create("module:Toy-v0").path.name == "module-Toy-v0-1"


def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"already holds a run.*--out"):
        Run.create("Toy-v0", tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be made.*--out"):
        Run.create("Toy-v0", tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_open_needs_a_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"{name} holds no run"):
        Run.open(tmp_path / name)


@pytest.mark.parametrize("content", ["{", "- 1", "seed: 0", "!!python/object/apply:os.getcwd []"])
def test_damaged_configuration(tmp_path, content):
    run = make_run(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        run.read_configuration()


def test_configuration_and_versions(tmp_path):
    run = make_run(tmp_path, target_kl="lin_0.02")
    assert Run.open(tmp_path).read_configuration() == {
        "env_id": "Toy-v0",
        "seed": 0,
        "target_kl": "lin_0.02",
    }
    written = json.loads((run.path / "versions.json").read_text())
    assert written == json.loads(json.dumps(versions()))
    assert {"python", "torch", "stable-baselines3", "gymnasium", "platform", "command"} <= set(written)


def test_tables(tmp_path):
    run = make_run(tmp_path, episodes=3)
    episodes = run.episodes()
    np.testing.assert_array_equal(episodes["steps"], [0, 10, 20])
    np.testing.assert_array_equal(episodes["return"], [0, 1, 2])
    assert run.evaluations()["steps"].shape == (0,)
    assert tuple(run.evaluations()) == EVALUATION_COLUMNS


@pytest.mark.parametrize("content", ["steps,return\n1,2\n", "steps,return,length,seconds,env\n1,x\n"])
def test_damaged_table(tmp_path, content):
    run = make_run(tmp_path)
    (tmp_path / "episodes.csv").write_text(content)
    with pytest.raises(CheckpointError, match=r"episodes\.csv is damaged"):
        run.episodes()


def test_runs_are_found_below_a_directory(tmp_path):
    for name in ("b", "a/c"):
        make_run(tmp_path / name)
    assert [run.path for run in find_runs(tmp_path)] == [tmp_path / "a/c", tmp_path / "b"]
    assert [run.path for run in find_runs(tmp_path / "b")] == [tmp_path / "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no run"):
        find_runs(tmp_path / "empty")


def test_episodes_that_end_together_are_one_point():
    steps = np.array([8.0] * 3 + [16.0] * 3 + [20.0])
    returns = np.array([1.0, 2.0, 6.0, 9.0, 5.0, 1.0, 7.0])
    for order in (slice(None), [2, 1, 0, 5, 3, 4, 6], [6, 5, 4, 3, 2, 1, 0]):
        places, means = window_means(steps[order], returns[order], 5)
        np.testing.assert_array_equal(places, [8, 16, 20])
        np.testing.assert_allclose(means, [3.0, 5.0, 22 / 4])
    np.testing.assert_allclose(window_means(steps, returns, 4)[1], [3.0, 5.0, 7.0])
    np.testing.assert_allclose(window_means(steps, returns, 100)[1], [3.0, 4.0, 31 / 7])


@pytest.mark.parametrize(
    ("steps", "window"), [(1, 1), (16, 1), (100, 5), (60_000, 5_000), (110_000, 10_000), (1e6, 50_000)]
)
def test_a_window_is_a_twentieth_in_round_numbers(steps, window):
    assert window_of(steps) == window


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(figure):
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def test_a_learning_curve_has_no_strokes_and_says_what_it_shows(tmp_path, drawn):
    run = make_run(tmp_path, episodes=0)
    rows = [f"{1000 * i},{100 * i + j},10,1,{j}" for i in range(1, 9) for j in (-50, 0, 50)]
    (tmp_path / "episodes.csv").write_text("\n".join(["steps,return,length,seconds,env", *rows]))
    plot_learning_curve(run)
    line = drawn[0].axes[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), [[1000 * i, 100 * i] for i in range(1, 9)])
    labels = texts(drawn[0])[1]
    assert "mean of the training episodes that ended within 500 steps" in labels
    assert drawn[0].axes[0].get_xlabel() == "environment steps"


def test_a_comparison_has_one_legend(tmp_path, drawn):
    runs = [make_run(tmp_path / f"{seed}", seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "other", n_steps=5))
    runs.append(make_run(tmp_path / "toy", env_id="Toy-v1", episodes=9))
    plot_runs(runs, tmp_path / "all.png")
    title, labels = texts(drawn[0])
    assert title == "line: mean over runs; band: one standard deviation to both sides"
    assert len(labels) == 3
    assert any(label.endswith("(3 runs)") for label in labels)
    for axes in drawn[0].axes:
        assert axes.get_legend() is None
        assert "that ended within" in axes.get_ylabel()
    plot_runs(runs[3:], tmp_path / "single.png")
    assert texts(drawn[1])[0] == ""


@pytest.mark.parametrize("episodes", [0, 1, 30])
def test_learning_curve(tmp_path, episodes):
    path = plot_learning_curve(make_run(tmp_path, episodes=episodes))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_comparison(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "other", n_steps=5))
    runs.append(make_run(tmp_path / "short", env_id="Toy-v1", episodes=1))
    runs.append(make_run(tmp_path / "none", env_id="Toy-v1", episodes=0))
    out = plot_runs(runs, tmp_path / "figures" / "all.png")
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("episodes", "name", "message"),
    [(0, "a.png", "nothing to plot"), (5, "a.doc", "a.doc cannot be written")],
)
def test_comparison_refuses(tmp_path, episodes, name, message):
    run = make_run(tmp_path / "run", episodes=episodes)
    with pytest.raises(ConfigurationError, match=message):
        plot_runs([run], tmp_path / name)
