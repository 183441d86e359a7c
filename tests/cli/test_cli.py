"""The command line: exit codes, one sentence on standard error, and what each command prints."""

import json
import subprocess
import sys

import numpy as np
import pytest

from acktr.cli import main
from acktr.cli.progress import ProgressCallback
from acktr.runs import Run

TOY = "tests.toy_envs:Toy-v0"
SMALL = ("n_envs=2", "n_steps=8", "n_eval_episodes=1", "n_final_eval_episodes=2")


def train(path, *arguments, env_id=TOY):
    return main(["train", env_id, "--steps", "64", "--out", str(path), "--set", *SMALL, *arguments])


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(path) == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--version"], 0, ""),
        (["--help"], 0, ""),
        ([], 0, ""),
        (["train", "--help"], 0, ""),
        (["trian", TOY], 2, "trian"),
        (["train"], 2, "ENV"),
        (["train", TOY, "--steps", "many"], 2, "--steps"),
        (["train", TOY, "--stepz", "5"], 2, "--steps"),
        (["train", "HalfChetah-v5"], 2, "HalfCheetah-v5"),
        (["train", TOY, "--steps", "0"], 2, "n_timesteps = 0"),
        (["train", TOY, "--n-envs", "0"], 2, "n_envs = 0"),
        (["train", TOY, "--seed", "-1"], 2, "seed = -1"),
        (["train", TOY, "--preset", "mujocco"], 2, "use mujoco"),
        (["train", TOY, "--backend", "envpool"], 2, "choose from auto, gymnasium, subproc."),
        (["train", TOY, "--set", "n_step=3"], 2, "did you mean 'n_steps'"),
        (["train", TOY, "--set", "n_steps=0"], 2, "n_steps"),
        (["train", TOY, "--set", "damping=-1"], 2, "damping"),
        (["train", TOY, "--set", "target_kl=-1"], 2, "target_kl"),
        (["evaluate", "nowhere"], 4, "nowhere holds no run"),
        (["record", "nowhere"], 4, "nowhere holds no run"),
        (["plot", "nowhere"], 4, "nowhere holds no run"),
        (["plot"], 2, "name at least one run"),
        (["compare", "--help"], 0, ""),
        (["compare", TOY, "--algos", "acktr,sac"], 2, "'sac': choose from acktr, a2c, ppo, trpo."),
        (["compare", TOY, "--algos", ","], 2, "nothing to compare"),
        (["compare", "HalfChetah-v5", "--algos", "a2c"], 2, "HalfCheetah-v5"),
        (["compare", TOY, "--steps", "0"], 2, "--steps is 0"),
        (["compare", TOY, "--seeds", "0"], 2, "--seeds is 0"),
        (["compare", TOY, "--jobs", "0"], 2, "--jobs is 0"),
    ],
)
def test_exit_codes(monkeypatch, tmp_path, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    # A refused command leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line(capsys):
    assert main(["train", "CartPole-v1", "--set", "n_step=3"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "acktr: Unknown setting 'n_step' in --set: did you mean 'n_steps'?\n"
    assert captured.out == ""


def test_train_tells_what_happened(tmp_path, capsys):
    assert train(tmp_path, "n_steps=4", "--set", "gamma=0.9", "--seed", "3", "--no-progress") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Done after 64 steps")
    assert "return of the last 6 episodes" in captured.out
    assert "evaluation, 2 episodes" in captured.out
    assert str(tmp_path / "model.zip") in captured.out
    # Without a progress bar, only the note about the preset.
    assert captured.err.count("\n") == 1
    assert "belongs to no preset family" in captured.err
    configuration = Run.open(tmp_path).read_configuration()
    assert (configuration["seed"], configuration["n_steps"], configuration["gamma"]) == (3, 4, 0.9)
    assert train(tmp_path) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_default_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", TOY, "--steps", "16", "--no-progress", "--set", *SMALL]
    assert [main(arguments), main(arguments)] == [0, 0]
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["tests.toy_envs-Toy-v0-1", "tests.toy_envs-Toy-v0-2"]


def test_evaluate(run_directory, capsys):
    assert main(["evaluate", str(run_directory), "--episodes", "3"]) == 0
    assert capsys.readouterr().out.startswith(f"{TOY}: return ")
    assert main(["evaluate", str(run_directory), "--episodes", "3", "--json", "--best"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["env_id"] == TOY
    assert answer["model"] == str(run_directory / "best_model.zip")
    assert answer["episodes"] == len(answer["returns"]) == len(answer["lengths"]) == 3
    assert answer["mean_return"] == pytest.approx(np.mean(answer["returns"]))
    assert main(["evaluate", str(run_directory), "--episodes", "0"]) == 2


def test_plot(run_directory, tmp_path, capsys):
    out = tmp_path / "all.png"
    assert main(["plot", str(run_directory), str(run_directory.parent), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.is_file()


def test_record(tmp_path, capsys):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    assert train(tmp_path / "run", env_id="CartPole-v1") == 0
    capsys.readouterr()
    assert main(["record", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/run/episode.mp4: return ")
    assert (tmp_path / "run" / "episode.mp4").is_file()


def test_ctrl_c_saves_once_and_says_where(tmp_path, capsys):
    assert train(tmp_path, env_id="tests.toy_envs:PressesCtrlC-v0") == 130
    captured = capsys.readouterr()
    assert f"SIGINT: stopping after this update and saving in {tmp_path}" in captured.err
    assert captured.out.startswith("Stopped after ")
    assert str(tmp_path / "model.zip") in captured.out
    assert "Traceback" not in captured.err
    configuration = Run.open(tmp_path).read_configuration()
    assert configuration["n_timesteps"] == 64
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"]


def test_divergence(tmp_path, capsys):
    assert train(tmp_path, "eval_interval=0", env_id="tests.toy_envs:Broken-v0") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("acktr: Environment 0 returned nan in its reward at its step 21")
    assert str(tmp_path / "model.zip") in error


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(monkeypatch, tmp_path, capsys, terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("acktr.cli.progress._SECONDS_BETWEEN_UPDATES", 0.0)
    assert train(tmp_path) == 0
    error = capsys.readouterr().err
    for part in ("64 steps", "return ", "KL ", "steps/s"):
        assert part in error
    assert ("\x1b[" in error) is terminal


def test_progress_can_be_silent(capsys):
    with ProgressCallback("Toy-v0", enabled=False) as progress:
        assert progress.on_step is not None
    assert capsys.readouterr().err == ""


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from acktr.cli import main; main(['train', '--help']);"
        "assert not {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "acktr", "evaluate", "nowhere"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 4
    assert answer.stderr.startswith("acktr: nowhere holds no run")
