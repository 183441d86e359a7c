"""Signals while nothing can be printed: the run is saved all the same, and its exit code is the same."""

import os
import signal
import subprocess
import sys
import time

import pytest

from acktr.cli import main
from acktr.cli.stop import StopOnSignal
from acktr.files.checkpoints import CheckpointStore
from tests.helpers.command_line import (
    PRESSES,
    SMALL,
    Broken,
    start,
    steps_of_checkpoints,
    train,
    wait_for,
)

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGHUP": 143}


@pytest.mark.parametrize("name", CODES)
def test_a_signal_saves_where_nothing_can_be_printed(tmp_path, monkeypatch, name):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Broken(BrokenPipeError(32, "Broken pipe")))
    settings = (f"env_kwargs.name={name}", "eval_interval=0", "n_envs=1", "checkpoint_steps=null")
    assert train(tmp_path, *settings, env_id=PRESSES, steps="320") == CODES[name]
    assert len(steps_of_checkpoints(tmp_path)) == 1
    assert {"model.zip", "result.json"} <= {path.name for path in tmp_path.iterdir()}


def test_training_ends_where_nothing_can_be_printed(tmp_path, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Broken(OSError(28, "No space left on device")))
    arguments = ["--steps", "64", "--out", str(tmp_path), "--set", *SMALL]
    assert main(["train", PRESSES, *arguments, "env_kwargs.count=0"]) == 0
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize("name", CODES)
def test_a_handler_only_notes_the_signal(capsys, name):
    number = getattr(signal, name)
    before = signal.signal(number, lambda *_: None)  # else one without a handler would end the tests
    try:
        with StopOnSignal("here") as stop:
            signal.raise_signal(number)
            assert capsys.readouterr().err == ""
            assert stop.requested
            assert [stop.asked(), stop.asked()] == [True, True]
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.count(f"{name}: stopping after this update") == 1
    assert stop.code == CODES[name]


def test_further_signals_change_nothing(capsys):
    with StopOnSignal("here") as stop:
        signal.raise_signal(signal.SIGTERM)
        for name in ("SIGTERM", "SIGUSR1", "SIGHUP"):
            assert stop.asked()
            signal.raise_signal(getattr(signal, name))
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err.count("stopping after this update") == 1
    assert stop.code == 143


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# With real processes ------------------------------------------------------------------------

LONG = ("--steps", "1000000", "--set", "checkpoint_steps=500", "eval_interval=0", "n_envs=2")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["pipe", "full"])
@pytest.mark.parametrize("name", CODES)
def test_processes_whose_output_is_gone(tmp_path, name, output):
    command = [sys.executable, "-m", "acktr", "train", "CartPole-v1", "--out", str(tmp_path), *LONG]
    if output == "pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    process = subprocess.Popen(command, stdout=write, stderr=write)
    os.close(write)
    wait_for(process, tmp_path, steps_of_checkpoints)
    for _ in range(1 if name == "SIGINT" else 3):
        process.send_signal(getattr(signal, name))
        time.sleep(0.01)
    assert process.wait(60) == CODES[name]
    checkpoint, skipped = CheckpointStore(tmp_path / "checkpoints").newest()
    assert (checkpoint.info["exact"], skipped) == (True, [])
    assert (tmp_path / "model.zip").exists()


@pytest.mark.slow
def test_a_terminal_that_is_closed(tmp_path):
    """SIGHUP reaches the workers too."""
    process = start(tmp_path, "CartPole-v1", *LONG, "backend=subproc")
    wait_for(process, tmp_path, steps_of_checkpoints)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 143
    assert (tmp_path / "model.zip").exists()
