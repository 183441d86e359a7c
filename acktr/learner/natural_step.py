"""One gradient step, of the actor or the critic, of one process or of several."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acktr import distributed
from acktr.errors import ConfigurationError
from acktr.kfac import KFAC
from acktr.kfac.graphs import CaptureError
from acktr.learner.trust_region import check_loss

if TYPE_CHECKING:
    from acktr.learner.algorithm import ACKTR

_LEAST_BOUND = 1e-12  # nats: a loss of 0 leaves nothing to bound


def learns(optimizer: torch.optim.Optimizer) -> bool:
    """Whether any of an optimiser's parameters is to be trained now: who freezes all of them waits."""
    return any(p.requires_grad for group in optimizer.param_groups for p in group["params"])


def capture(model: ACKTR, kfac: KFAC) -> AbstractContextManager[None]:
    """Record a pass of the whole batch, unless curvature is taken of a part of it."""
    return nullcontext() if samples_statistics(model, kfac) else kfac.capture()


def samples_statistics(model: ACKTR, kfac: KFAC) -> bool:
    """Whether K-FAC's statistics are taken of a part of the batch."""
    return model.sub_sampling_factor > 1 and not kfac.needs_exact_fisher


def samples_fisher(model: ACKTR, kfac: KFAC) -> bool:
    """Whether the exact Fisher is taken of a part of the batch."""
    return model.sub_sampling_factor > 1 and kfac.needs_exact_fisher


def run_step(model: ACKTR, name: str, work: Callable[..., Any], *inputs: Any) -> Any:
    """Make one step of the actor or the critic, as a CUDA graph if there is to be one.

    :param name: ``"actor"`` or ``"critic"``
    :param work: makes it
    :param inputs: what of it changes from one step to the next
    :return: what ``work`` returns, valid until the next such step
    :raises ConfigurationError: it cannot be a CUDA graph
    """
    graphs = model._graphs.get(name)
    if graphs is None:
        return work(*inputs)
    try:
        return graphs(name, work, *inputs)
    except CaptureError as error:
        raise ConfigurationError(f"cuda_graphs=True is not possible. {error}") from error


def take_step(
    model: ACKTR, loss: Tensor, optimizer: torch.optim.Optimizer, relative_bound: float | None = None
) -> None:
    """Step on a loss that is finite on all ranks.

    On an accelerator nothing is looked at here: whoever makes the update checks its losses when it is
    done, and has :class:`Undo` for it.

    :param loss: 0-dim tensor with its graph
    :param optimizer: of the parameters to move
    :param relative_bound: KL bound of the step as a fraction of the loss; ``None``: as it is
    :raises DivergenceError: the loss is not finite on some rank; the step is not taken
    """
    optimizer.zero_grad()
    # The exact Fisher of the whole batch goes through the graph once more.
    again = isinstance(optimizer, KFAC) and optimizer.needs_exact_fisher
    loss.backward(retain_graph=again and model.sub_sampling_factor == 1)
    of_all = distributed.mean_gradients(optimizer, loss)
    if not model.defer_checks:
        check_loss(of_all, model.num_timesteps)
    if relative_bound is not None:
        bound = relative_bound * (of_all if model.defer_checks else of_all.item())
        least = bound.clamp_min(_LEAST_BOUND) if isinstance(bound, Tensor) else max(bound, _LEAST_BOUND)
        optimizer.param_groups[0]["target_kl"] = least
    optimizer.step()


class Undo:
    """What an optimiser moves, as it was, so that an update can be taken back.

    :param optimizer: whose parameters and their state are copied
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._before = [x.detach().clone() for x in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        state = [x for p in self._params for x in self._optimizer.state.get(p, {}).values()]
        return [*self._params, *(x for x in state if isinstance(x, Tensor))]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back."""
        places = self._tensors()
        for place, value in zip(places, self._before, strict=False):  # parameters come first
            place.copy_(value)
        if len(places) > len(self._before):
            self._optimizer.state.clear()  # there was none yet


def check_losses(losses: list[Tensor], undo: Undo, num_timesteps: int) -> None:
    """Look at the losses of an update, after all its steps.

    :param losses: 0-dim tensors
    :param undo: takes the steps back
    :param num_timesteps: environment steps so far, for the message
    :raises DivergenceError: one is not finite; nothing of the update is left
    """
    total = torch.stack(losses).sum()
    if not total.isfinite():
        undo()
        check_loss(total, num_timesteps)
