"""Advice on a training: each symptom is seen in a made-up log, and none where there is none."""

from pathlib import Path

import numpy as np
import pytest

from acktr.run.health import ADVICE, MOST, PROGRESS, advise, advise_run

N, EPISODES = 200, 400


def noise(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def log(**changes):
    """A healthy log of a Gaussian policy; changed columns are named by what follows the slash."""
    columns = {
        "std": np.linspace(0.5, 0.2, N),
        "entropy_loss": np.linspace(-1.0, 0.5, N),
        "explained_variance": np.clip(0.7 + 0.1 * noise(N), None, 1),
        "kl": 0.01 * np.exp(0.3 * noise(N, 1)),
        "target_kl": np.full(N, 0.01),
        "step_scale": np.full(N, 0.3),
        "learning_rate": np.full(N, 1.0),
        "max_step_scale": np.full(N, 0.9),
    }
    columns.update({name: np.broadcast_to(value, N) for name, value in changes.items()})
    found = {f"train/{name}": np.array(value, dtype=float) for name, value in columns.items()}
    for values in found.values():
        values[0] = np.nan  # the first row is written before the first update
    return found


RISING = np.linspace(-200.0, 300.0, EPISODES) + 30 * noise(EPISODES, 2)
RISEN = np.minimum(np.linspace(-200.0, 800.0, EPISODES), 150.0) + 30 * noise(EPISODES, 2)
STILL = 20 + 5 * noise(EPISODES, 3)
# Learned, then lost, and still since.
FALLEN = np.concatenate([RISING[: EPISODES // 2], np.full(EPISODES // 2, -60.0) + 30 * noise(200, 4)])
SOLVED = np.concatenate([np.linspace(20.0, 500.0, 100), np.full(EPISODES - 100, 500.0)])
NEARLY_SOLVED = np.where(np.arange(EPISODES) % 10, SOLVED, SOLVED / 2)
QUIET = np.linspace(0.5, 0.04, N)
LOW = 0.001 * np.exp(noise(N))

BOUND = {"step_scale": 1.0, "max_step_scale": np.nan}


def said(name):
    """What stands before the first figure of an advice."""
    return ADVICE[name].partition("{")[0]


@pytest.mark.parametrize(
    ("changes", "returns", "names"),
    [
        ({}, RISING, []),
        ({}, SOLVED, []),
        (
            {"explained_variance": -0.2, "kl": LOW, "step_scale": 1.0, "max_step_scale": np.nan},
            SOLVED,
            [],
        ),
        ({}, STILL, ["unmoved"]),
        ({}, np.full(EPISODES, -500.0), ["unmoved"]),
        ({"std": np.nan}, np.full(EPISODES, -500.0), ["unmoved by counted actions"]),
        ({"explained_variance": 0.1 + 0.1 * noise(N)}, RISEN, ["critic"]),
        ({"explained_variance": -0.2}, RISING, []),
        ({"explained_variance": -0.2}, NEARLY_SOLVED, []),
        ({"explained_variance": np.nan}, RISEN, []),
        ({"explained_variance": np.linspace(-0.5, 0.9, N)}, RISEN, []),
        ({"kl": 0.05}, RISING, ["kl above"]),
        ({"kl": 0.02}, RISING, []),
        ({"kl": LOW, **BOUND}, RISING, []),
        ({"kl": LOW / 10, **BOUND}, RISING, ["learning rate"]),
        ({"kl": LOW / 10, **BOUND}, SOLVED, []),
        ({"kl": LOW}, RISEN, ["kl below"]),
        ({"kl": LOW, "target_kl": np.linspace(0.002, 0, N)}, RISING, []),
        ({"kl": LOW, **BOUND}, RISEN, ["learning rate"]),
        ({"kl": LOW, "step_scale": 0.9}, RISEN, ["corrected learning rate"]),
        ({"step_scale": 0.9}, RISING, []),
        ({"std": QUIET}, RISING, []),
        ({}, FALLEN, []),
        ({"std": QUIET}, FALLEN, ["noise"]),
        ({"std": QUIET, "entropy_loss": 3.0}, FALLEN, ["noise"]),
        ({"std": np.nan, "entropy_loss": -np.geomspace(1.1, 0.01, N)}, FALLEN, ["entropy"]),
        ({"std": np.nan, "entropy_loss": np.linspace(-1.1, -0.5, N)}, FALLEN, []),
        (
            {"kl": LOW, "explained_variance": 0.0, **BOUND},
            STILL,
            ["critic", "unmoved", "learning rate"],
        ),
    ],
)
def test_what_is_wrong_is_said(changes, returns, names):
    sentences = advise(log(**changes), returns)
    assert len(sentences) == len(names)
    for sentence, name in zip(sentences, names, strict=True):
        assert sentence.startswith(said(name))
        assert sentence.endswith(".")
        assert "{" not in sentence.replace("{...}", "")


def test_a_longer_step_is_named():
    bound = log(kl=LOW, step_scale=0.5, learning_rate=0.5, max_step_scale=np.nan)
    assert advise(bound, RISEN) == [
        "The longest step binds, the measured KL is 0.16 of its target; try --set learning_rate=2."
    ]


def test_no_more_than_three_sentences():
    ill = log(explained_variance=0.0, kl=0.05, std=QUIET)
    assert len(advise(ill, FALLEN)) == MOST


@pytest.mark.parametrize("name", PROGRESS)
def test_a_column_may_be_missing(name):
    """Older runs, other critics and counted actions lack some."""
    whole = log()
    assert advise({key: values for key, values in whole.items() if key != name}, RISING) == []
    assert advise({**whole, name: np.full(N, np.nan)}, RISING) == []
    assert advise({**whole, name: np.full(N, np.inf)}, RISING) == []


def test_a_short_run_tells_nothing():
    ill = log(explained_variance=0.0, kl=0.05)
    assert advise(ill, STILL)
    assert advise({name: values[:40] for name, values in ill.items()}, STILL) == []
    assert advise(ill, STILL[:50]) == []
    assert advise(ill, np.full(EPISODES, np.nan)) == []
    assert advise({}, STILL) == []
    assert advise({}, np.zeros(0)) == []


TRAINED = Path(__file__).parent / "trained"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        # 100,000 steps of HalfCheetah-v5 and 60,000 of CartPole-v1 with their presets: both learn. What
        # is left to explain where every episode is the best there is, is noise.
        ("halfcheetah", []),
        ("cartpole", []),
        # 100,000 steps of finger-spin: with little noise the finger hardly ever touches anything.
        ("finger_spin", ["unmoved"]),
        # 60,000 steps of Pendulum-v1, critic.learning_rate=0.001 critic.n_updates=1.
        ("pendulum_critic", ["critic", "unmoved"]),
        # 60,000 steps of MountainCar-v0, which learns faster with a learning_rate of 4.
        ("mountain_car", ["learning rate"]),
    ],
)
def test_of_real_runs(name, names):
    sentences = advise_run(TRAINED / name)
    assert len(sentences) == len(names)
    assert all(map(str.startswith, sentences, map(said, names)))


def write(path, columns, returns):
    names = list(columns)
    rows = [",".join(names)]
    for values in zip(*columns.values(), strict=True):
        rows.append(",".join("" if np.isnan(x) else repr(float(x)) for x in values))
    (path / "progress.csv").write_text("\n".join(rows) + "\n")
    (path / "episodes.csv").write_text("return\n" + "".join(f"{x}\n" for x in returns))


def test_of_a_directory(tmp_path):
    assert advise_run(tmp_path) == []
    columns = log(kl=0.05)
    write(tmp_path, columns, RISING)
    assert advise_run(tmp_path) == advise(columns, RISING) != []
    (tmp_path / "progress.csv").write_bytes(b"\0\xff,\n1,2")
    assert advise_run(tmp_path) == []
