"""One process for each measured side, and the pace that the measuring process sets it.

A side is one long loop: a whole ``learn`` of an algorithm, or products of matrices. At each boundary
between two updates it calls its :class:`Pace`, which waits there until the side is next in turn. So
imports, building and the first updates are outside of every measurement, and two sides never run at
once.
"""

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

WARM_UP = 2  # updates that no measurement counts
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class SpeedError(Exception):
    """A side failed; its message is for the user."""


class Measurement(NamedTuple):
    """One repetition of one side.

    :param work: how much was done, in the unit of the side
    :param seconds: wall time
    :param phases: seconds by phase, where the side takes itself apart
    """

    work: float
    seconds: float
    phases: dict[str, float]

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / self.seconds


class Pace:
    """Called by a side at each boundary between updates; starts and ends its repetitions.

    :param connection: to the measuring process
    :param warm_up: updates that no measurement counts
    :param clock: in seconds
    """

    def __init__(
        self,
        connection: Connection,
        warm_up: int = WARM_UP,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._warm_up = warm_up
        self.clock = clock
        self.facts: dict[str, float] = {}  # told once, before the first repetition
        self.on_start: Callable[[], None] = lambda: None
        self.phases: Callable[[], dict[str, float]] = dict
        self._connection = connection
        self._boundaries = 0
        self._wanted = self._start = self._work = 0.0
        self._running = False

    def __call__(self, work: float) -> bool:
        """Say how much work was done since the process began; wait if a repetition is complete.

        :return: whether to go on
        """
        seconds = self.clock() - self._start
        self._boundaries += 1
        if self._boundaries <= self._warm_up:
            return True
        if not self._running:
            self._connection.send(self.facts)
        elif seconds < self._wanted:
            return True
        else:
            self._connection.send(Measurement(work - self._work, seconds, self.phases()))
        try:
            wanted = self._connection.recv()
        except EOFError:  # the measuring process is gone
            wanted = None
        if wanted is None:
            return False
        self._wanted, self._work, self._running = wanted, work, True
        self.on_start()
        self._start = self.clock()
        return True


@dataclass(frozen=True)
class Side:
    """What one process does.

    :param timed: a function of :mod:`benchmarks.speed.sides`; called with a pace and the arguments
    :param arguments: its other arguments
    :param cores: that it may use, with as many threads
    :param unit: of its work
    :param warm_up: updates that no measurement counts
    :param clock: ``time.process_time`` on a machine with other work: of one thread on a core of its own
        both are the same
    """

    timed: Callable[..., None]
    arguments: dict[str, Any] = field(default_factory=dict)
    cores: int = 1
    unit: str = "steps"
    warm_up: int = WARM_UP
    clock: Callable[[], float] = time.perf_counter


class SideProcess:
    """A side in a process of its own, which waits from one :meth:`measure` to the next.

    :param label: names the side in messages
    :param side: what it does
    :param pin: keep it on its cores; else it may use all of them, with one thread
    """

    def __init__(self, label: str, side: Side, *, pin: bool = True) -> None:
        self.label = label
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: those may not have children, and SubprocVecEnv needs some.
        self._process = context.Process(target=_work, args=(theirs, side))
        with confined(side.cores if pin else 1, pin):
            self._process.start()
        theirs.close()

    def wait(self) -> dict[str, float]:
        """Wait for the end of the warm-up; return the facts that the side tells about itself."""
        return self._receive()

    def measure(self, seconds: float) -> Measurement:
        """Run whole updates until so many seconds have passed.

        :raises SpeedError: the side failed
        """
        self._connection.send(seconds)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
        self._connection.close()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            answer = "its process ended"
        if isinstance(answer, str):
            raise SpeedError(f"{self.label} failed: {answer}.")
        return answer


def _work(connection: Connection, side: Side) -> None:
    # What libraries print must not end up in the measuring process's JSON.
    os.dup2(sys.stderr.fileno(), 1)
    try:
        side.timed(Pace(connection, side.warm_up, side.clock), **side.arguments)
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            connection.send(f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextlib.contextmanager
def confined(threads: int, pin: bool) -> Iterator[None]:
    """Let processes that start inside have so many threads.

    :param threads: of the libraries that compute
    :param pin: on as many cores, always the same ones
    """
    pin = pin and hasattr(os, "sched_setaffinity")
    allowed = os.sched_getaffinity(0) if pin else set()
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    if pin:
        os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        if pin:
            os.sched_setaffinity(0, allowed)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
