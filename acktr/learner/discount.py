"""Discount factor and lambda of the advantages of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from acktr.distributed import Flags
from acktr.schedules import Horizon, TraceDecay, as_discount, as_trace_decay


class Discount:
    """Chooses gamma and lambda of each rollout, by the time and by how episodes have ended so far.

    A :class:`~acktr.schedules.Horizon` stays within the time limit of an episode: no return that is ever
    seen says what comes later. Where nothing can end an episode there is no caution that a long horizon
    could reward too soon, and no end that a short one does not see: as long as no episode has ended but
    by its time limit, ``lasting="end"`` has the horizon of the end, and ``lasting="start"`` that of the
    start. A :class:`~acktr.schedules.TraceDecay` is
    ``lasting`` on the same condition, unless the time limit holds the horizon back, and else ``usual``.
    """

    def __init__(self) -> None:
        self.endings: Flags = (False, False)  # episodes seen cut by time, and ended before
        self.time_limit: int | None = None  # of an episode of the environments, if it is known

    def state_dict(self) -> dict[str, Any]:
        """Return how episodes have ended, and the time limit."""
        return {"endings": self.endings, "time_limit": self.time_limit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.endings, self.time_limit = tuple(state["endings"]), state["time_limit"]

    def of_rollout(
        self,
        gamma: float | Schedule,
        gae_lambda: float | TraceDecay,
        progress_remaining: float,
        samples: int,
    ) -> tuple[float, float]:
        """Return gamma and lambda of the next rollout.

        :param gamma: the setting
        :param gae_lambda: the setting
        :param progress_remaining: the share of training that is left
        :param samples: learned from by all calls of ``learn``
        :raises ConfigurationError: the schedule's value is no discount factor
        """
        schedule, decay = as_discount(gamma), as_trace_decay(gae_lambda)
        left = progress_remaining
        if isinstance(gamma, Horizon):
            left = gamma.left(samples, left)
        value = schedule(left)
        lasting = self.endings == (True, False)
        if isinstance(gamma, Horizon):
            if gamma.lasting == "end" and lasting:
                value = schedule(0.0)
            elif gamma.lasting == "start" and not self.endings[1]:
                value = schedule(1.0)
            if self.time_limit is not None:
                longest = max(schedule(1.0), 1.0 - 1.0 / self.time_limit)
                lasting = lasting and value <= longest
                value = min(value, longest)
        return value, decay.lasting if lasting else decay.usual
