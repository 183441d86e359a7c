"""The command line: exit codes, one sentence on standard error, and what each command prints."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from acktr.cli import main
from acktr.cli.arguments import as_sentence
from acktr.cli.progress import ProgressCallback
from acktr.run.callbacks import Evaluations
from acktr.run.directory import Run
from tests.helpers.command_line import SMALL
from tests.helpers.runs import TOY
from tests.helpers.toy_envs import Toy


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
        (["train", TOY, "--stepz", "5"], 2, "did you mean --steps?"),
        (["train", TOY, "--steps", "2.5"], 2, "--steps must be a whole number"),
        (["train", TOY, "--steps", "nan"], 2, "--steps must be a whole number"),
        (["train", TOY, "--steps", "1e999"], 2, "--steps must be a whole number"),
        (["train", TOY, "--steps"], 2, "--steps"),
        (["train", TOY, "--seed", "1.5"], 2, "--seed must be a whole number"),
        (["train", TOY, "--seed", "1e12"], 2, "seed = 1000000000000"),
        (["train", TOY, "--n-envs", "two"], 2, "--n-envs must be a whole number"),
        (["train", TOY, "--device", "gpu"], 2, "no device 'gpu' here"),
        (["train", TOY, "--progress", "maybe"], 2, "maybe"),
        (["train", TOY, "Toy-v1"], 2, "Toy-v1"),
        (["train", TOY, "--set", "=5"], 2, "--set '=5' is not of the form key=value"),
        (["train", TOY, "--set", "target_kl"], 2, "--set 'target_kl' is not of the form key=value"),
        (["train", TOY, "--set", "target_kl="], 2, "target_kl = None is not valid"),
        (["train", TOY, "--set", "target_kl=None"], 2, "it must be positive (nats)"),
        (["train", TOY, "--set", "target_kl=[1]"], 2, "it must be positive (nats)"),
        (["train", TOY, "--set", "natural.precision=None"], 2, "natural.precision = None is not valid"),
        (["train", TOY, "--set", "n_steps=many"], 2, "it must be at least 1, or None"),
        (["train", TOY, "--set", "critic.damping=.inf"], 2, "critic.damping must be finite, 0 or more"),
        (["train", TOY, "--set", "ent_coef=.inf"], 2, "ent_coef must be finite, 0 or more"),
        (["train", TOY, "--set", "stats_window_size=-1"], 2, "stats_window_size must be at least 1"),
        (["train", "HalfChetah-v5"], 2, "HalfCheetah-v5"),
        (["train", TOY, "--steps", "0"], 2, "n_timesteps = 0"),
        (["train", TOY, "--n-envs", "0"], 2, "n_envs = 0"),
        (["train", TOY, "--seed", "-1"], 2, "seed = -1"),
        (["train", TOY, "--preset", "mujocco"], 2, "use mujoco"),
        (["train", TOY, "--backend", "envpool"], 2, "choose from auto, gymnasium, subproc."),
        (["train", TOY, "--set", "n_step=3"], 2, "did you mean 'n_steps'"),
        (["train", TOY, "--set", "n_steps=0"], 2, "n_steps"),
        (["train", TOY, "--set", "natural.damping=-1"], 2, "natural.damping"),
        (["train", TOY, "--set", "target_kl=-1"], 2, "target_kl"),
        (["evaluate"], 2, "Missing from acktr evaluate: RUN: see acktr evaluate --help."),
        (["evaluate", "nowhere", "--episodes", "x"], 2, "--episodes must be a whole number"),
        (["record", "nowhere", "--episodes", "1.5"], 2, "--episodes must be a whole number"),
        (["record", "nowhere", "--seed", "x"], 2, "--seed must be a whole number"),
        (["plot", "nowhere", "--out"], 2, "--out"),
        (["report"], 2, "name at least one run"),
        (["report", "nowhere"], 4, "nowhere holds no run"),
        (["export", "nowhere"], 2, "Missing from acktr export: FILE.onnx: see acktr export --help."),
        (["export", "nowhere", "a.onnx"], 4, "nowhere holds no run"),
        (["push", "nowhere", "me/name"], 4, "nowhere holds no run"),
        (["push", "nowhere"], 2, "Missing from acktr push: ORG/NAME: see acktr push --help."),
        (["pull"], 2, "Missing from acktr pull: ORG/NAME: see acktr pull --help."),
        (["compare", TOY, "--steps", "x"], 2, "--steps must be a whole number"),
        (["compare", TOY, "--algos", "a2c", "--seeds", "x"], 2, "--seeds must be a whole number"),
        (["compare", TOY, "--algos", "a2c", "--jobs", "x"], 2, "--jobs must be a whole number"),
        (["evaluate", "nowhere"], 4, "nowhere holds no run"),
        (["record", "nowhere"], 4, "nowhere holds no run"),
        (["plot", "nowhere"], 4, "nowhere holds no run"),
        (["plot"], 2, "name at least one run"),
        (["compare", "--help"], 0, ""),
        (
            ["compare", TOY, "--algos", "acktr,td3"],
            2,
            "'td3': choose from acktr, a2c, ppo, trpo, ppo_mask, ppo_lstm, sac, tqc, "
            "acktr_lstm, acktr_gru.",
        ),
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
    assert error.count("\n") == (code != 0)
    # A refused command leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rules", ["─╭╮╰╯│", "------"])
def test_what_tyro_says_in_a_box_is_a_sentence(rules):
    rule, *corners, side = rules
    lines = ["Unrecognized options: --stepz, 5", 40 * rule, "Perhaps you meant:", "    --steps N"]
    side = "|" if side == "-" else side
    box = "\n".join(
        [
            f"{corners[0]}{rule} Unrecognized options {40 * rule}{corners[1]}",
            *(f"{side} {line:50} {side}" for line in lines),
            f"{corners[2]}{40 * rule}{corners[3]}",
        ]
    )
    sentence = "Unrecognized options: --stepz, 5 (did you mean --steps?): see acktr train --help."
    assert as_sentence(box, "acktr train") == sentence
    assert as_sentence("", "acktr") == "The command line is not understood: see acktr --help."


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


@pytest.mark.parametrize("steps", ["64", "6.4e1", "0_064", "0.064k"])
def test_steps_as_people_write_them(tmp_path, steps):
    path = tmp_path / "run"
    assert (
        main(["train", TOY, "--steps", steps, "--out", str(path), "--no-progress", "--set", *SMALL]) == 0
    )
    assert Run.open(path).read_configuration()["n_timesteps"] == 64


def test_none_is_null(tmp_path):
    assert train(tmp_path, "frame_stack=None", "n_steps=null", "worker_timeout=") == 0
    configuration = Run.open(tmp_path).read_configuration()
    assert [configuration[name] for name in ("frame_stack", "n_steps", "worker_timeout")] == 3 * [None]


def test_default_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", TOY, "--steps", "16", "--no-progress", "--set", *SMALL]
    assert [main(arguments), main(arguments)] == [0, 0]
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["tests.helpers.toy_envs-Toy-v0-1", "tests.helpers.toy_envs-Toy-v0-2"]


def test_evaluate(run_directory, capsys):
    assert main(["evaluate", str(run_directory), "--episodes", "3"]) == 0
    assert capsys.readouterr().out.startswith(f"{TOY}: return ")
    assert main(["evaluate", str(run_directory), "--episodes", "3", "--json", "--best"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["env_id"] == TOY
    assert answer["model"] == str(run_directory / "best_model.zip")
    assert answer["episodes"] == len(answer["returns"]) == len(answer["lengths"]) == 3
    assert answer["mean_return"] == pytest.approx(np.mean(answer["returns"]))
    assert answer["advice"] == []
    assert main(["evaluate", str(run_directory), "--episodes", "0"]) == 2


def test_what_is_wrong_is_said(run_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("acktr.run.health.advise_run", lambda path: ["It is ill.", "Try another."])
    assert train(tmp_path / "run", "--no-progress") == 0
    assert capsys.readouterr().err.endswith("\nacktr: It is ill. Try another.\n")
    assert main(["evaluate", str(run_directory), "--episodes", "1"]) == 0
    assert capsys.readouterr().err == "acktr: It is ill. Try another.\n"
    assert main(["evaluate", str(run_directory), "--episodes", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["advice"] == ["It is ill.", "Try another."]
    assert captured.err == ""


def test_plot(run_directory, tmp_path, capsys):
    out = tmp_path / "all.png"
    assert main(["plot", str(run_directory), str(run_directory.parent), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.is_file()


def test_report(run_directory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("bokeh")
    run = shutil.copytree(run_directory, tmp_path / "run")
    assert main(["report", str(run), "--out", str(tmp_path / "page.txt")]) == 2
    assert "page.txt is not an .html file" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").is_file()
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(run_directory)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert "2 runs" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_export(run_directory, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run_directory), str(tmp_path / "model.zip")]) == 2
    assert "model.zip is not an .onnx file" in capsys.readouterr().err
    out = tmp_path / "model.onnx"
    assert main(["export", str(run_directory), str(out), "--sampled", "--best"]) == 0
    assert re.fullmatch(rf"{re.escape(str(out))}: \d+ kB, sampled\n", capsys.readouterr().out)
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
    assert train(tmp_path, env_id="tests.helpers.toy_envs:PressesCtrlC-v0") == 130
    captured = capsys.readouterr()
    assert f"SIGINT: stopping after this update and saving in {tmp_path}" in captured.err
    assert captured.out.startswith("Stopped after ")
    assert str(tmp_path / "model.zip") in captured.out
    assert "Traceback" not in captured.err
    configuration = Run.open(tmp_path).read_configuration()
    assert configuration["n_timesteps"] == 64
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"]


def test_divergence(tmp_path, capsys):
    assert train(tmp_path, "eval_interval=0", env_id="tests.helpers.toy_envs:Broken-v0") == 3
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


def test_steps_a_second_are_those_of_training(monkeypatch, tmp_path, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    played = Evaluations._log_success_callback

    def slow(self, *arguments):
        clock[0] += 100.0  # a step of an evaluation
        played(self, *arguments)

    monkeypatch.setattr(Evaluations, "_log_success_callback", slow)
    step = Toy.step

    def timed(self, action):
        clock[0] += 0.005
        return step(self, action)

    monkeypatch.setattr(Toy, "step", timed)
    assert train(tmp_path, "eval_interval=16") == 0
    rates = re.findall(r"([\d,]+) steps/s", "".join(capsys.readouterr()))
    assert len(rates) > 2
    assert {120 <= float(rate.replace(",", "")) <= 210 for rate in rates} == {True}


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
