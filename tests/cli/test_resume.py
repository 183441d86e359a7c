"""``acktr train --resume`` and the signals that stop a run: exit codes, and what is told."""

import os
import signal

import pytest

from acktr.cli import main
from acktr.files.checkpoints import CheckpointStore
from acktr.run.directory import Run
from tests.helpers.command_line import PRESSES, start, steps_of_checkpoints, train, wait_for
from tests.helpers.runs import TOY


@pytest.mark.parametrize(
    ("name", "count", "code"),
    [("SIGINT", 1, 130), ("SIGTERM", 1, 143), ("SIGTERM", 3, 143), ("SIGUSR1", 2, 143)],
)
def test_a_signal_saves_once_and_the_run_is_resumed(tmp_path, capsys, name, count, code):
    settings = (f"env_kwargs.name={name}", f"env_kwargs.count={count}", "eval_interval=0", "n_envs=1")
    stopped = train(tmp_path, *settings, "checkpoint_steps=null", env_id=PRESSES, steps="320")
    captured = capsys.readouterr()
    assert stopped == code
    assert captured.err.count(f"{name}: stopping after this update and saving in {tmp_path}") == 1
    assert "the same command with --resume" in captured.out
    (steps,) = steps_of_checkpoints(tmp_path)
    assert steps < 320
    train(tmp_path, *settings, "--resume", env_id=PRESSES, steps="320")
    assert f"Resumed at step {steps}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_in_the_middle_of_a_save(tmp_path, monkeypatch, name):
    save = CheckpointStore.save

    def signalled(store, steps, files):
        for _ in range(2):
            signal.raise_signal(getattr(signal, name))
        path = save(store, steps, files)
        signal.raise_signal(getattr(signal, name))
        return path

    monkeypatch.setattr(CheckpointStore, "save", signalled)
    assert train(tmp_path, "eval_interval=0") == 143
    checkpoint, skipped = CheckpointStore(tmp_path / "checkpoints").newest()
    assert skipped == []
    assert len(steps_of_checkpoints(tmp_path)) <= 2
    assert checkpoint.steps == max(steps_of_checkpoints(tmp_path))


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    assert train(tmp_path, "env_kwargs.count=2", env_id=PRESSES) == 130
    assert not (tmp_path / "result.json").exists()


def test_resume_needs_only_the_directory(tmp_path, capsys):
    assert train(tmp_path, "n_steps=4", "--seed", "3") == 0
    assert (
        main(["train", TOY, "--out", str(tmp_path), "--resume", "--steps", "96", "--no-progress"]) == 0
    )
    captured = capsys.readouterr()
    assert "Resumed at step 64" in captured.err
    assert "Done after 96 steps" in captured.out
    configuration = Run.open(tmp_path).read_configuration()
    names = ("seed", "n_steps", "n_timesteps")
    assert [configuration[name] for name in names] == [3, 4, 96]


def test_without_a_directory_the_last_run_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(None, "--resume") == 4
    assert f"There is no run of {TOY} in runs/ to resume" in capsys.readouterr().err
    assert [train(None), train(None)] == [0, 0]
    assert train(None, "--resume", "--backend", "auto", "--set", "keep_last=2") == 0
    assert (
        "runs/tests.helpers.toy_envs-Toy-v0-2/checkpoints/step-000000000064" in capsys.readouterr().err
    )


def test_contradicting_settings_are_named(tmp_path, capsys):
    assert train(tmp_path) == 0
    before = (tmp_path / "config.yaml").read_bytes()
    capsys.readouterr()
    contradictions = ("gamma=0.5", "--seed", "7", "--preset", "mujoco")
    assert train(tmp_path, *contradictions, "--resume") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in (
        "seed is 7 and was 0",
        "gamma is 0.5 and was 'early_0.99_0.998_300000'",
        "preset is 'mujoco: default'",
    ):
        assert part in error
    assert train(tmp_path, "--resume", env_id="CartPole-v1") == 2
    assert "env_id is 'CartPole-v1' and was" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_directory_without_a_run_begins_one(tmp_path, capsys):
    assert train(tmp_path / "new", "--resume") == 0
    assert "holds no run yet: a new one begins there" in capsys.readouterr().err
    assert train(tmp_path / "new", "--resume") == 0


def test_an_unusable_checkpoint(tmp_path, capsys):
    assert train(tmp_path) == 0
    for path in CheckpointStore(tmp_path / "checkpoints").paths():
        (path / "learner.json").write_text("{}")
    assert train(tmp_path, "--resume") == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "None of the 3 checkpoints" in error
    assert "learner.json" in error


# Fault 1, with real processes ---------------------------------------------------------------


MEMORY = ("policy=MlpLstmPolicy", "policy_kwargs.lstm_hidden_size=8", "n_steps=64")
STRICT = "tests.helpers.masked_envs:StrictMultiDiscrete-v0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "settings"),
    [("CartPole-v1", ()), ("CartPole-v1", MEMORY), (STRICT, ()), (STRICT, MEMORY)],
    ids=["plain", "memory", "masks", "memory and masks"],
)
def test_processes_that_are_killed(tmp_path, env_id, settings):
    settings = ("checkpoint_steps=500", "eval_interval=0", "n_envs=2", *settings)
    arguments = ("--steps", "4000", "--set", *settings)
    whole = tmp_path / "whole"
    assert start(whole, env_id, *arguments).wait(120) == 0
    cut = tmp_path / "cut"
    for count in (1, 3, 5):
        process = start(cut, env_id, *arguments, "--resume")
        wait_for(
            process,
            cut,
            lambda path, least=500 * count: max(steps_of_checkpoints(path), default=0) >= least,
        )
        process.kill()
        process.wait(60)
    assert start(cut, env_id, *arguments, "--resume").wait(120) == 0
    for name in ("policy.safetensors", "policy.optimizer.safetensors"):
        assert member(whole / "model.zip", name) == member(cut / "model.zip", name)


def member(path, name):
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_workers_ignore_signals_to_the_whole_group(tmp_path, name):
    arguments = ("--steps", "1000000", "--set", "checkpoint_steps=500", "n_envs=2", "backend=subproc")
    process = start(tmp_path, "CartPole-v1", *arguments)
    wait_for(process, tmp_path, steps_of_checkpoints)
    os.killpg(process.pid, getattr(signal, name))
    assert process.wait(60) == (130 if name == "SIGINT" else 143)
    checkpoint, skipped = CheckpointStore(tmp_path / "checkpoints").newest()
    assert (checkpoint.info["exact"], skipped) == (True, [])
