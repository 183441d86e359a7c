"""RL Baselines3 Zoo with ACKTR: it trains, plays and tunes, with the settings of the presets."""

import csv
import subprocess
import sys
from unittest import mock

import pytest

from acktr import zoo
from acktr.errors import ConfigurationError
from acktr.presets import resolve
from acktr.schedules import Linear

PROGRAM = """
from acktr.zoo import main

few = ["--env", "Pendulum-v1", "-n", "512", "--eval-freq", "-1", "--seed", "0"]
assert main(["train", *few]) == 0
assert main(["enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "201"]) == 0
assert main(["record_video", "--env", "Pendulum-v1", "-f", "logs", "-n", "3"]) == 0
trials = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1"]
assert main(["train", *few, *trials, "--no-optim-plots"]) == 0
"""


def test_it_trains_plays_and_tunes(tmp_path):
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("requests")
    pytest.importorskip("moviepy")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs" / "acktr" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()
    assert "Episode Length 200" in done.stdout
    assert list(tmp_path.glob("logs/acktr/Pendulum-v1_1/videos/*.mp4"))
    assert "Number of finished trials:  2" in done.stdout


SAME = """
from acktr import cli, zoo

shared = ["-n", "1500", "--seed", "3", "--num-threads", "1", "-f", "logs", "--verbose", "0"]
evaluated = ["--eval-freq", "500", "--eval-episodes", "1", "--n-eval-envs", "1"]
quick = ["--steps", "1500", "--seed", "3", "--backend", "gymnasium", "--no-progress"]
quick += ["--set", "n_final_eval_episodes=0", "n_eval_episodes=1"]
for env_id in ("CartPole-v1", "InvertedPendulum-v5"):
    assert zoo.main(["train", "--env", env_id, *shared, *evaluated]) == 0
    assert cli.main(["train", env_id, "--out", env_id, *quick]) == 0
"""


def test_it_trains_as_acktr_train_does_episode_by_episode(tmp_path):
    """With the Zoo's environments, normalisation and evaluations: the pendulum's are scaled.

    Both in one process: sums may be rounded otherwise in one that has computed something else before.
    """
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("mujoco")
    command = [sys.executable, "-W", "ignore", "-c", SAME]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for env_id in ("CartPole-v1", "InvertedPendulum-v5"):
        out = tmp_path / env_id
        with (out / "episodes.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) > 8
        for index in range(8):
            own = [[row["return"], row["length"]] for row in rows if row["env"] == str(index)]
            monitor = tmp_path / "logs" / "acktr" / f"{env_id}_1" / f"{index}.monitor.csv"
            theirs = [line.split(",")[:2] for line in monitor.read_text().splitlines()[2:]]
            assert own == theirs


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [("CartPole-v1", "classic"), ("HalfCheetah-v5", "mujoco"), ("default", "defaults")],
)
def test_settings_are_those_of_the_presets(env_id, preset):
    found = dict(zoo.hyperparams[env_id])
    known = resolve(env_id if env_id != "default" else "CartPole-v1", preset=preset).configuration
    arguments = known.algorithm_arguments()
    for name in ("target_kl", "natural", "critic", "gamma", "gae_lambda", "n_steps", "std_scale"):
        assert repr(found[name]) == repr(arguments[name])
    assert (found["n_timesteps"], found["n_envs"]) == (known.n_timesteps, known.n_envs)
    assert ("normalize" in found) is bool(known.normalize.norm_obs or known.normalize.norm_reward)


def test_atari_is_refused():
    with pytest.raises(ConfigurationError, match="use `acktr train`"):
        zoo.hyperparams["atari"]


def test_without_mujoco_the_other_tasks_have_settings(monkeypatch):
    monkeypatch.setattr("acktr.envs.lookup.is_installed", lambda name: name != "mujoco")
    settings = zoo._all_settings()
    assert settings["CartPole-v1"]["n_steps"] == zoo.hyperparams["CartPole-v1"]["n_steps"]
    with pytest.raises(ConfigurationError, match="HalfCheetah-v5 needs mujoco, which is not installed"):
        settings["HalfCheetah-v5"]


def test_what_is_drawn_are_arguments():
    drawn = {
        "target_kl": 0.01,
        "damping": 0.5,
        "one_minus_gamma": 0.25,
        "one_minus_gae_lambda": 0.125,
        "n_steps_pow": 5,
    }
    settings = zoo.convert(drawn)
    assert settings["target_kl"] == Linear(0.01)
    assert settings["natural"].damping == 0.5
    assert (settings["gamma"], settings["gae_lambda"], settings["n_steps"]) == (0.75, 0.875, 32)


def test_what_cannot_be_run_is_said(capsys):
    assert zoo.main([]) == 2
    assert zoo.main(["fly"]) == 2
    with mock.patch("acktr.zoo.is_installed", return_value=False):
        assert zoo.main(["train"]) == 2
    with mock.patch("acktr.zoo.is_installed", side_effect=lambda name: name != "moviepy"):
        assert zoo.main(["record_video"]) == 2
    empty, fly, missing, no_films = capsys.readouterr().err.splitlines()
    assert "use train, enjoy" in empty
    assert "no 'fly' here" in fly
    assert 'pip install "acktr[zoo]"' in missing
    assert 'pip install "acktr[video]"' in no_films


def test_help_is_given(capsys):
    assert zoo.main(["--help"]) == 0
    assert "{train,enjoy," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["--algo", "acktr", "--conf-file", "acktr.zoo"]),
        (["-f", "acktr", "--algo=ppo"], ["--algo", "acktr", "-f", "acktr", "--algo=ppo"]),
        (["--algo", "ppo"], ["--algo", "acktr", "--algo", "ppo"]),
        (["--conf-file=my.yml"], ["--algo", "acktr", "--conf-file", "acktr.zoo", "--conf-file=my.yml"]),
    ],
)
def test_what_the_user_says_comes_last_and_counts(arguments, expected):
    pytest.importorskip("rl_zoo3")
    seen: list[str] = []
    with mock.patch("rl_zoo3.cli.main", side_effect=lambda: seen.extend(sys.argv)):
        assert zoo.main(["train", *arguments]) == 0
    assert seen == ["rl_zoo3", "train", *expected]
