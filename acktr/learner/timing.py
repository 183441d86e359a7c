"""Steps per second, and where the seconds go, by a clock that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

# What an algorithm is doing; the rest is callbacks (evaluations, checkpoints, tables) and the log.
COLLECTING, CRITIC, ACTOR, REST = "collecting", "critic", "actor", "rest"
ACTIVITIES = (COLLECTING, CRITIC, ACTOR, REST)


class Stopwatch:
    """Seconds by what is being done: one thing at a time, of several the innermost."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew, with nothing done."""
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._now, self._since = REST, time.perf_counter()

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Count what is inside as one of :data:`ACTIVITIES`, which costs a microsecond."""
        before = self._change(activity)
        try:
            yield
        finally:
            self._change(before)

    def lap(self) -> dict[str, float]:
        """Return the seconds of each activity since the last lap; together they are all that passed."""
        self._change(self._now)
        seconds, self._seconds = self._seconds, dict.fromkeys(ACTIVITIES, 0.0)
        return seconds

    def _change(self, activity: str) -> str:
        now = time.perf_counter()
        self._seconds[self._now] += now - self._since
        before, self._now, self._since = self._now, activity, now
        return before


class Timed(OnPolicyAlgorithm):
    """An algorithm whose rates do not depend on what the wall clock is set to meanwhile.

    SB3 takes the time from that clock: set back, it gave 2e20 steps per second.
    """

    _clock_ahead = 0  # of the wall clock before one that nobody sets, nanoseconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._stopwatch = Stopwatch()
        super().__init__(*args, **kwargs)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        self._clock_ahead = _ahead()
        self._stopwatch.start()
        return super()._setup_learn(*args, **kwargs)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what was logged; by how much the clock was set is no time that passed.

        :param iteration: number of the rollout
        """
        ahead = _ahead()
        self.start_time += ahead - self._clock_ahead
        self._clock_ahead = ahead
        for activity, seconds in self._stopwatch.lap().items():
            self.logger.record(f"time/{activity}", round(seconds, 6))
        super().dump_logs(iteration)


def _ahead() -> int:
    return time.time_ns() - time.perf_counter_ns()
