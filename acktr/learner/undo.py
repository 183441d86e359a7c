"""Taking an update back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


class Undo:
    """Remembers what an optimiser moves, as it is now.

    :param optimizer: whose parameters and their state are copied
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self._before = [x.detach().clone() for x in self._tensors()]

    @property
    def before(self) -> list[Tensor]:
        """The parameters as they were."""
        return self._before[: len(self.params)]

    def _tensors(self) -> list[Tensor]:
        state = [x for p in self.params for x in self._optimizer.state.get(p, {}).values()]
        return [*self.params, *(x for x in state if isinstance(x, Tensor))]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back."""
        places = self._tensors()
        for place, value in zip(places, self._before, strict=False):  # parameters come first
            place.copy_(value)
        if len(places) > len(self._before):
            self._optimizer.state.clear()  # there was none yet
