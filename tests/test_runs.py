"""The run directory: who may make one, what is in it, and what happens when it is damaged."""

import json

import numpy as np
import pytest

from acktr.errors import CheckpointError, ConfigurationError
from acktr.figures import moving_mean, plot_comparison, plot_learning_curve, smoothing_window
from acktr.runs import EPISODE_COLUMNS, EVALUATION_COLUMNS, Run, Table, find_runs, versions


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


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1, [1, 2, 6, 4]), (2, [1, 1.5, 4, 5]), (3, [1, 1.5, 3, 4]), (9, [1, 1.5, 3, 3.25])],
)
def test_moving_mean(window, expected):
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 6.0, 4.0]), window), expected)


@pytest.mark.parametrize(("n_episodes", "window"), [(1, 1), (99, 9), (1000, 100), (50_000, 100)])
def test_smoothing_window(n_episodes, window):
    assert smoothing_window(n_episodes) == window


@pytest.mark.parametrize("episodes", [0, 1, 30])
def test_learning_curve(tmp_path, episodes):
    path = plot_learning_curve(make_run(tmp_path, episodes=episodes))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_comparison(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "other", n_steps=5))
    runs.append(make_run(tmp_path / "short", env_id="Toy-v1", episodes=1))
    runs.append(make_run(tmp_path / "none", env_id="Toy-v1", episodes=0))
    out = plot_comparison(runs, tmp_path / "figures" / "all.png")
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("episodes", "name", "message"),
    [(0, "a.png", "nothing to plot"), (5, "a.doc", "a.doc cannot be written")],
)
def test_comparison_refuses(tmp_path, episodes, name, message):
    run = make_run(tmp_path / "run", episodes=episodes)
    with pytest.raises(ConfigurationError, match=message):
        plot_comparison([run], tmp_path / name)
