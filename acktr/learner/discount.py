"""Discount factor and lambda of the advantages of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from acktr.distributed import Flags
from acktr.schedules import Horizon, TraceDecay, as_discount, as_trace_decay


class Discount:
    """Chooses gamma and lambda of each rollout, by what was learned from and how episodes have ended.

    A :class:`~acktr.schedules.Horizon` stays within the time limit of an episode: no return that is ever
    seen says what comes later. A :class:`~acktr.schedules.TraceDecay` is ``lasting`` as soon as episodes
    have ended, and as long as none has ended but by its time limit, unless that holds the horizon back,
    and else ``usual``.
    """

    def __init__(self) -> None:
        self.steps = 0  # environment steps that were learned from, of all ranks
        self.endings: Flags = (False, False)  # episodes seen cut by time, and ended before
        self.time_limit: int | None = None  # of an episode of the environments, if it is known

    def state_dict(self) -> dict[str, Any]:
        """Return the steps so far, how episodes have ended, and the time limit."""
        return {"steps": self.steps, "endings": self.endings, "time_limit": self.time_limit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.steps, self.time_limit = state["steps"], state["time_limit"]
        self.endings = tuple(state["endings"])

    def of_rollout(
        self,
        gamma: float | Schedule | Horizon,
        gae_lambda: float | TraceDecay,
        progress_remaining: float,
    ) -> tuple[float, float]:
        """Return gamma and lambda of the next rollout.

        :param gamma: the setting
        :param gae_lambda: the setting
        :param progress_remaining: the share of training that is left
        :raises ConfigurationError: the schedule's value is no discount factor
        """
        decay, lasting = as_trace_decay(gae_lambda), self.endings == (True, False)
        if isinstance(gamma, Horizon):
            value = gamma.after(self.steps)
            if self.time_limit is not None:
                longest = max(gamma.start, 1.0 - 1.0 / self.time_limit)
                lasting = lasting and value <= longest
                value = min(value, longest)
        else:
            value = as_discount(gamma)(progress_remaining)
        return value, decay.lasting if lasting else decay.usual
