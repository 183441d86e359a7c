"""One rollout, as the learner takes it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

Observations = Tensor | dict[str, Tensor]


class RolloutBatch(NamedTuple):
    """One rollout, flattened over steps and environments: B = n_steps n_envs.

    :param observations: ``(B, *obs)``, or a dict of such tensors
    :param actions: ``(B, action_dim)``; ``(B,)`` for Discrete
    :param values: the critic's values when the rollout ended, ``(B,)``
    :param advantages: ``(B,)``
    :param returns: ``advantages + values``, ``(B,)``
    :param masks: which actions were allowed, ``(B, width)``, boolean (:mod:`acktr.envs.masks`); ``None``
        where all were
    """

    observations: Observations
    actions: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    masks: Tensor | None = None

    @property
    def inputs(self) -> tuple[Observations, Tensor, Tensor | None]:
        """The arguments of :meth:`acktr.networks.outputs.Outputs.evaluate`."""
        return self.observations, self.actions, self.masks

    def sample(self, factor: int) -> RolloutBatch:
        """Draw one sample in ``factor`` without replacement, at least one."""
        return self._pick(self._shuffled()[: max(len(self.returns) // factor, 1)])

    def minibatches(self, size: int | None, count: int) -> Iterator[tuple[Tensor | slice, RolloutBatch]]:
        """Go through the shuffled batch in parts, and through it again in another order.

        :param size: of each part; the last of a pass may be smaller. ``None`` for the whole batch
        :param count: of parts
        :return: which samples, and their part of the batch
        """
        if size is None:
            yield from repeat((slice(None), self), count)
            return
        left = self._shuffled()
        for _ in range(count):
            if not len(left):
                left = self._shuffled()
            chosen, left = left[:size], left[size:]
            yield chosen, self._pick(chosen)

    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self.returns), device=self.returns.device)

    def _pick(self, chosen: Tensor) -> RolloutBatch:
        def pick(part: Observations | None) -> Any:
            if part is None:
                return None
            return {k: x[chosen] for k, x in part.items()} if isinstance(part, dict) else part[chosen]

        return RolloutBatch(*map(pick, self))


class MaskedSamples(NamedTuple):
    """Samples of a rollout with masks, as callbacks get them: those of SB3, and ``action_masks``.

    The fields are those of sb3-contrib's ``MaskableRolloutBufferSamples``.
    """

    observations: Observations
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    action_masks: Tensor
