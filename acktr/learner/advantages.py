"""The scale on which the actor learns from advantages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from acktr import distributed


class AdvantageScale:
    """Shifts advantages to mean 0 over the samples of all ranks, and divides them by a scale.

    With ``True`` by their standard deviation in this rollout, as in SB3. The trust region makes each
    step as long as the last, so a policy that does everything right, whose advantages are the critic's
    noise alone, then walks about at random with full steps until it has unlearned its task. With
    ``"running"`` they are divided by the root mean square of the standard deviations of all rollouts so
    far: noise stays small, its natural gradient too, and the step ends at eta_max (``learning_rate``)
    before it reaches the bound.

    :param how: ``"running"``, ``True``, or ``False`` for advantages as they are
    :param blind_first: whether the critic gives every value of the first rollout as 0, as one of
        normalised targets does that has seen no return yet: those advantages count until the second
    """

    def __init__(self, how: bool | str, blind_first: bool = False) -> None:
        self._how = how
        self._blind_first = blind_first
        self.variance = 0.0  # mean over the rollouts
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the next rollout is scaled by."""
        return {"variance": self.variance, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.variance, self.count = state["variance"], state["count"]

    def begin(self, advantages: Tensor) -> Callable[[], Tensor]:
        """Begin to normalise the advantages of a rollout.

        :param advantages: ``(B,)``; the same B on all ranks
        :return: waits, and returns them normalised
        """
        if not self._how or len(advantages) * distributed.size() == 1:
            return lambda: advantages
        finish = distributed.moments(advantages)

        def finish_and_normalize() -> Tensor:
            mean, std = finish()
            if self._how == "running":
                self._count_in(std.item() ** 2)
                std = std.new_tensor(self.variance**0.5)
            return (advantages - mean) / (std + 1e-8)

        return finish_and_normalize

    def _count_in(self, variance: float) -> None:
        # The loss of what is not finite is refused, and the model before it may be saved.
        if math.isfinite(variance):
            self.count += 1
            counted = self.count - self._blind_first
            self.variance += (variance - self.variance) / max(1, counted)
