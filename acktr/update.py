"""One gradient step, of the actor or the critic, of one process or of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acktr import distributed
from acktr.kfac import KFAC
from acktr.kl import check_loss

if TYPE_CHECKING:
    from acktr.algorithm import ACKTR


def take_step(
    model: ACKTR, loss: Tensor, optimizer: torch.optim.Optimizer, relative_bound: float | None = None
) -> None:
    """Step on a loss that is finite on all ranks.

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
    check_loss(of_all, model.num_timesteps)
    if relative_bound is not None:
        optimizer.param_groups[0]["target_kl"] = max(relative_bound * of_all.item(), 1e-12)
    optimizer.step()
