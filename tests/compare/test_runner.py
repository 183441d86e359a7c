"""Many trials: what fails, what is skipped, what is stopped. The children are stubs that start fast."""

import os
import signal
import sys
import time

import pytest

from acktr.compare import runner
from acktr.compare.runner import Terminated, choose_cores, run_trials, state
from acktr.compare.store import Store
from acktr.compare.trial import Trial, complete_settings
from acktr.errors import ConfigurationError
from tests.helpers.small_suite import SESSION, outcome

FAILS = "import sys; print('Traceback'); print('acktr: it broke.'); sys.exit(2)"
SLEEPS = "import time, sys; time.sleep(60)"


def trials(n=3):
    return [Trial("HalfCheetah-v5", "ppo", seed, 1_000_000, "ppo") for seed in range(n)]


def finish(store, trial):
    store.add(trial, outcome(trial, 1.0), complete_settings(trial), SESSION)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def program(monkeypatch):
    def use(code):
        monkeypatch.setattr(runner, "_PROGRAM", (sys.executable, "-S", "-c", code))

    return use


def test_failures_are_told_and_the_others_go_on(store, program):
    program(FAILS)
    lines = []
    finish(store, trials()[1])
    summary = run_trials(trials(), store, [None, None], command="x", tell=lines.append)
    assert [failure.trial.seed for failure in summary.failed] == [0, 2]
    assert {(failure.error, failure.exit_code) for failure in summary.failed} == {("it broke.", 2)}
    assert [trial.seed for trial in summary.skipped] == [1]
    assert sum("FAILED: it broke." in line for line in lines) == 2


def test_what_was_killed_starts_anew(store, program):
    program(FAILS)
    folder = store.folder(trials()[0])
    folder.mkdir(parents=True)
    (folder / "half_done").touch()
    run_trials(trials(1), store, [None], command="x")
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt", "trial.json"]


@pytest.fixture
def interruptible():
    """Answer Ctrl-C as at a terminal: a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "error"), [("SIGTERM", Terminated), ("SIGINT", KeyboardInterrupt)])
def test_signals_end_the_children(store, program, monkeypatch, number, error):
    program(SLEEPS)
    started = []

    def start(*arguments, **keywords):
        started.append(popen(*arguments, **keywords))
        return started[-1]

    def tell(line):
        if len(started) == 2:
            signal.raise_signal(getattr(signal, number))

    popen = runner.subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", start)
    begin = time.monotonic()
    with pytest.raises(error):
        run_trials(trials(), store, [None, None], command="x", tell=tell)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
    assert time.monotonic() - begin < 30  # not the 60 that they would have slept
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_runner_keeps_its_trial(store, program):
    program(FAILS)
    store.prepare()
    with store.lock(trials()[0].key, wait=False):
        summary = run_trials(trials(2), store, [None], command="x")
    assert [trial.seed for trial in summary.busy] == [0]
    assert [failure.trial.seed for failure in summary.failed] == [1]


def test_state(store):
    one, other = trials(2)
    assert state(store, one) == "to do"
    finish(store, one)
    assert state(store, one) == "done"
    changed = Trial("HalfCheetah-v5", "ppo", 0, 1_000_000, "ppo", {"gamma": 0.5})
    assert state(store, changed) == "outdated"
    assert state(store, other) == "to do"


def test_cores():
    assert len(choose_cores()) == len(runner.usable_cores())
    assert len(choose_cores(5)) == 5
    with pytest.raises(ConfigurationError, match="--jobs is 0"):
        choose_cores(0)
    if hasattr(os, "sched_getaffinity"):
        core = min(os.sched_getaffinity(0))
        assert choose_cores(2, [core]) == [(core,), (core,)]
        with pytest.raises(ConfigurationError, match="--threads is 2: there are 1 to 1 cores"):
            choose_cores(cores=[core], threads=2)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            assert choose_cores(threads=2)[0] == tuple(cores[:2])
        with pytest.raises(ConfigurationError, match="Core 12345 cannot be used"):
            choose_cores(1, [12345])
