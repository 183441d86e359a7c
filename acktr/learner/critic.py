"""The updates of a critic that learns by itself, whether from K-FAC or from Adam."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from acktr.kfac import KFAC
from acktr.kfac.exact import detached, mean_kl
from acktr.learner.natural_step import (
    Undo,
    capture,
    check_losses,
    run_step,
    samples_fisher,
    samples_statistics,
    take_step,
)
from acktr.learner.trust_region import check_own_loss
from acktr.rollout.collect import RolloutBatch

if TYPE_CHECKING:
    from acktr.learner.algorithm import ACKTR

_N_UPDATES = 4  # of a rollout, where the model has no number of its own


def update_critic(model: ACKTR, batch: RolloutBatch) -> Tensor:
    """Make all updates of one rollout, on the whole batch or on minibatches of it.

    On a shared trunk the policy is held where it is: its KL is part of the loss (as in phasic policy
    gradient, Cobbe et al. 2021).

    :param model: its ``critic_optimizer`` steps the critic's parameters
    :param batch: the rollout
    :return: the loss before the last update, 0-dim tensor
    :raises DivergenceError: the loss is not finite; its step is not taken
    """
    optimizer = model.critic_optimizer
    assert optimizer is not None
    undo = Undo(optimizer) if model.defer_checks else None
    with torch.no_grad(), model.outputs.quiet():
        policy = model._model(batch).distributions[:-1] if model.shared else []
    losses = []
    n_updates = model.n_critic_updates or _N_UPDATES
    for chosen, part in batch.minibatches(model.critic_batch_size, n_updates):
        if isinstance(optimizer, KFAC):
            loss = run_step(model, "critic", partial(_step_natural, model, optimizer), part)
        else:
            held = [_parameters(detached(d, chosen)) for d in policy]
            loss = run_step(model, "critic", partial(_step_euclidean, model, optimizer), part, held)
        losses.append(loss.clone())
    if undo is not None:
        check_losses(losses, undo, model.num_timesteps)
    return losses[-1]


def _step_natural(model: ACKTR, optimizer: KFAC, batch: RolloutBatch) -> Tensor:
    with capture(model, optimizer):
        values = model._values(batch)
    loss = model._value_loss(values, batch)
    check_own_loss(loss, model)
    before = loss
    if model.outputs.noisy and optimizer.param_groups[0]["adapt_damping"]:
        before = _loss_without_noise(model, batch)
    seen = values
    if samples_statistics(model, optimizer):
        with optimizer.capture():
            seen = model._values(batch.sample(model.sub_sampling_factor))
    optimizer.update_curvature(model._value_distribution(seen))
    if samples_fisher(model, optimizer):
        part = model._values(batch.sample(model.sub_sampling_factor))
        optimizer.use_exact_fisher(model._value_distribution(part))
    take_step(model, loss, optimizer, model.critic_trust_region)
    if optimizer.wants_reduction:
        with torch.no_grad():
            optimizer.report_reduction(before - _loss_without_noise(model, batch))
    return loss.detach()


@torch.no_grad()
def _loss_without_noise(model: ACKTR, batch: RolloutBatch) -> Tensor:
    with model.outputs.quiet():
        return model._value_loss(model._values(batch), batch)


def _step_euclidean(
    model: ACKTR,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    policy: list[tuple[type[Distribution], dict[str, Any]]],
) -> Tensor:
    held: Tensor | float = 0.0
    if model.shared:
        joint = model._model(batch)
        assert joint.values is not None
        old = [kind(**parameters, validate_args=False) for kind, parameters in policy]
        new = joint.distributions
        if model.outputs.noisy:
            with model.outputs.quiet():
                new = model._distributions(batch)
        values, held = joint.values, mean_kl(old, new[:-1])
    else:
        values = model._values(batch)
    loss = model._value_loss(values, batch)
    take_step(model, loss + held, optimizer)
    return loss.detach()


def _parameters(distribution: Distribution) -> tuple[type[Distribution], dict[str, Any]]:
    """Take one of SB3's distributions apart, into tensors that a CUDA graph can be given."""
    names = ("loc", "scale") if isinstance(distribution, Normal) else ("logits",)
    return type(distribution), {name: getattr(distribution, name) for name in names}
