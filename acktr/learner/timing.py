"""Steps per second by a clock that nobody sets."""

from __future__ import annotations

import time
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class Timed(OnPolicyAlgorithm):
    """An algorithm whose rates do not depend on what the wall clock is set to meanwhile.

    SB3 takes the time from that clock: set back, it gave 2e20 steps per second.
    """

    _clock_ahead = 0  # of the wall clock before one that nobody sets, nanoseconds

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        self._clock_ahead = _ahead()
        return super()._setup_learn(*args, **kwargs)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what was logged; by how much the clock was set is no time that passed.

        :param iteration: number of the rollout
        """
        ahead = _ahead()
        self.start_time += ahead - self._clock_ahead
        self._clock_ahead = ahead
        super().dump_logs(iteration)


def _ahead() -> int:
    return time.time_ns() - time.perf_counter_ns()
