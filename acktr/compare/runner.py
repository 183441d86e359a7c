"""Many trials: one process a core, or a few cores; what is done is skipped."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from acktr.compare.process import can_go_on, write_job
from acktr.compare.store import Store
from acktr.compare.trial import Trial, complete_settings, settings_hash
from acktr.errors import ConfigurationError
from acktr.files.durable import WriteErrors, create_file, refuse_links
from acktr.run.units import duration

_PROGRAM = (sys.executable, "-m", "acktr.compare.process")
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 10.0
Cores = tuple[int, ...] | None  # those that a process may use; None for any
# How many threads each of the libraries starts that would start more.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Terminated(BaseException):
    """The process was asked to end with SIGTERM."""


class Failure(NamedTuple):
    """A trial without a result, the last line of its error, and its exit code."""

    trial: Trial
    error: str
    exit_code: int


@dataclass
class Summary:
    """The outcomes of trials.

    :param done: trained now
    :param skipped: done before
    :param diverged: trained now or before, and ended by a value that is not finite
    :param failed: what has no result
    :param busy: being trained by another runner
    """

    done: list[Trial] = field(default_factory=list)
    skipped: list[Trial] = field(default_factory=list)
    diverged: list[Trial] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    busy: list[Trial] = field(default_factory=list)


@dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen
    log: Path
    cores: Cores
    opened: ExitStack
    start: float


def usable_cores() -> list[int | None]:
    """Return the cores this process may use; where they cannot be told apart, ``None`` for each."""
    if hasattr(os, "sched_getaffinity"):
        return [*sorted(os.sched_getaffinity(0))]
    return [None] * (os.cpu_count() or 1)


def choose_cores(
    jobs: int | None = None, cores: Sequence[int] | None = None, threads: int = 1
) -> list[Cores]:
    """Return the cores of each process that is to run at a time, one for each of its threads.

    :param jobs: how many processes; by default as many as there are cores for
    :param cores: to choose from; by default all that this process may use
    :param threads: of each process
    :raises ConfigurationError: for a core that cannot be used, too few of them, or fewer than one job
    """
    usable = usable_cores()
    for core in cores or ():
        if core not in usable:
            known = ", ".join(str(c) for c in usable)
            raise ConfigurationError(f"Core {core} cannot be used here: choose from {known}.")
    chosen: list[int | None] = list(cores) if cores else usable
    if not 1 <= threads <= len(chosen):
        raise ConfigurationError(f"--threads is {threads}: there are 1 to {len(chosen)} cores for them.")
    groups: list[Cores] = []
    for start in range(0, len(chosen) - threads + 1, threads):
        group = chosen[start : start + threads]
        groups.append(None if None in group else tuple(c for c in group if c is not None))
    if jobs is None:
        return groups
    if jobs < 1:
        raise ConfigurationError(f"--jobs is {jobs}: at least 1 is needed.")
    # More jobs than cores share them.
    return [groups[i % len(groups)] for i in range(jobs)]


def state(store: Store, trial: Trial) -> str:
    """Tell whether a trial is ``"done"``, ``"to do"``, or ``"outdated"``: done with other settings.

    :raises ConfigurationError: if the trial's settings are wrong
    """
    hashed = settings_hash(complete_settings(trial))
    row = store.find(trial)
    if row is None:
        return "to do"
    return "done" if row["settings"] == hashed else "outdated"


def run_trials(
    trials: Sequence[Trial],
    store: Store,
    cores: Sequence[Cores],
    *,
    command: str,
    again: bool = False,
    threads: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Train what is not done, one process for each core; a failure does not end the others.

    SIGTERM and Ctrl-C end the processes that were started here. The next call goes on from the newest
    checkpoint of what they had half done with the same code: ACKTR as if nothing had been, peers in new
    episodes.

    :param trials: in the order in which they start
    :param store: where results go
    :param cores: those of each process that runs at a time
    :param command: what the user typed, for the manifest
    :param again: train what is done too
    :param threads: that torch computes with in each process
    :param tell: called with a line whenever a trial starts or ends
    :raises Terminated: on SIGTERM
    :raises ConfigurationError: before anything is started, if a trial's settings are wrong
    """
    store.prepare()
    summary = Summary()
    to_do: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials:
        if state(store, trial) == "done" and not again:
            summary.skipped.append(trial)
            row = store.find(trial)
            if row is not None and row["diverged"] == "yes":
                summary.diverged.append(trial)
        else:
            to_do.put(trial)
    n_to_do, number = to_do.qsize(), 0
    free = list(cores)
    running: list[_Running] = []
    with _sigterm_raises():
        try:
            while running or not to_do.empty():
                while free and not to_do.empty():
                    trial = to_do.get()
                    number += 1
                    started = _start(trial, store, free[0], command, again, threads)
                    if started is None:
                        summary.busy.append(trial)
                        tell(f"[{number}/{n_to_do}] {describe(trial)}: another runner has it")
                        continue
                    free.pop(0)
                    running.append(started)
                    tell(f"[{number}/{n_to_do}] {describe(trial)}: started")
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.cores)
                    tell(_finish(one, store, summary))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            _end(running)
    return summary


def _start(
    trial: Trial, store: Store, cores: Cores, command: str, again: bool, threads: int
) -> _Running | None:
    """Start a trial's process; ``None`` if another runner has the trial, or has just done it."""
    opened = ExitStack()
    if not opened.enter_context(store.lock(trial.key, wait=False)):
        opened.close()
        return None
    if not again and state(store, trial) == "done":
        opened.close()
        return None
    folder = store.folder(trial)
    log, job = folder / "log.txt", folder / "trial.json"
    if again or not can_go_on(job, trial):
        # What a process that was killed has left.
        shutil.rmtree(folder, ignore_errors=True)
    refuse_links(folder / "run")
    with WriteErrors().about(folder):
        folder.mkdir(exist_ok=True)
        write_job(job, trial, store.path, cores, command, threads)
    # The child finds the modules that this process finds, a user's environments among them.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads)), "PYTHONPATH": paths}
    with WriteErrors().about(log):
        opened_log = create_file(log)
    with opened_log as file:
        process = subprocess.Popen(
            [*_PROGRAM, str(job)],
            stdin=subprocess.PIPE,  # closed with this process: the child then ends too
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
        )
    return _Running(trial, process, log, cores, opened, time.perf_counter())


def _finish(one: _Running, store: Store, summary: Summary) -> str:
    """Note what became of a process that has ended, and say it."""
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.opened.close()
    what, row = describe(one.trial), store.find(one.trial)
    code = one.process.returncode
    if code != 0 or row is None:
        error = _last_line(one.log) or f"it ended with code {code}"
        summary.failed.append(Failure(one.trial, error, code))
        return f"{what}: FAILED: {error} ({one.log})"
    summary.done.append(one.trial)
    if row["diverged"] == "yes":
        summary.diverged.append(one.trial)
    end = "DIVERGED after" if row["diverged"] == "yes" else "done:"
    score = f"{float(row['last_100_return']):,.1f}" if row["last_100_return"] else "none"
    took = duration(float(row["seconds"]))
    return f"{what}: {end} {int(row['steps']):,} steps in {took}, return {score}"


def _end(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        try:
            one.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        assert one.process.stdin is not None
        one.process.stdin.close()
        one.opened.close()


def describe(trial: Trial) -> str:
    """Name a trial for people."""
    return f"{trial.label} on {trial.env_id}, seed {trial.seed}"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    return lines[-1].removeprefix("acktr: ") if lines else ""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def handle(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    previous: Any = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
