"""The update of the actor: a natural-gradient step inside a KL trust region.

On a shared trunk with a Gauss-Newton critic the same step moves the critic.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from acktr import distributed
from acktr.kfac import KFAC
from acktr.kfac.exact import detached, mean_kl
from acktr.kl import adapt_scale, check_own_loss, measure_or_restore, rescale_step
from acktr.outputs import Evaluation
from acktr.rollout import RolloutBatch
from acktr.update import (
    Undo,
    capture,
    check_losses,
    run_step,
    samples_fisher,
    samples_statistics,
    take_step,
)

if TYPE_CHECKING:
    from acktr.algorithm import ACKTR


class ActorStep(NamedTuple):
    """What one natural-gradient step leaves behind.

    :param loss: before the step, 0-dim tensor
    :param losses: its parts by the last part of their key in the log, 0-dim tensors
    :param part: the samples whose curvature was taken
    :param old: the model's distributions there before the step
    """

    loss: Tensor
    losses: dict[str, Tensor]
    part: RolloutBatch
    old: list[Any]


def update_actor(model: ACKTR, batch: RolloutBatch, target_kl: float) -> tuple[dict[str, Tensor], float]:
    """Make one step on the whole batch.

    What it did is measured, fed back into the bound of the next rollout, and rescaled if it is far off
    (:mod:`acktr.kl`).

    :param model: its ``kfac`` steps the actor's parameters
    :param batch: the rollout
    :param target_kl: its budget, nats
    :return: the losses before the step, and the measured KL in nats
    :raises DivergenceError: the loss is not finite, and the step is not taken; or the outputs are not
        after the step, and it is taken back
    """
    group = model.kfac.param_groups[0]
    # The tiny floor: a linear schedule ends at a radius of 0, which is no trust region.
    group["target_kl"] = max(target_kl * model.kl_scale, 1e-12)
    corrected = model.corrected_lr_schedule(model._current_progress_remaining)
    group["lr"] = min(group["lr"], corrected * model.kl_scale)
    before = [p.detach().clone() for p in group["params"]]
    held = _without_noise(model, batch) if model.outputs.noisy else None
    undo = Undo(model.kfac) if model.defer_checks else None
    step = run_step(model, "actor", partial(natural_step, model), batch)
    # A copy for this rollout: what a distribution has worked out of itself it does not work out again,
    # though a CUDA graph writes new parameters into it.
    old = [_without_graph(d) for d in step.old] if held is None else held.distributions
    part = step.part if held is None else batch
    if undo is not None:
        check_losses([step.loss], undo, model.num_timesteps)

    def measure() -> float:
        with torch.no_grad(), model.outputs.quiet():
            kl = mean_kl(old, model._distributions(part))
        return distributed.mean(kl).item()

    kl = measure_or_restore(measure, group["params"], before)
    if model.kl_feedback and target_kl > 0:
        room = _room(model.kfac).item()
        model.kl_scale = adapt_scale(model.kl_scale, kl, target_kl, room)
        kl, rescales = rescale_step(group["params"], before, measure, kl, target_kl, room)
        model.kl_rescales += rescales
    return step.losses, kl


def _room(kfac: KFAC) -> Tensor:
    """How much longer the last step could have been before it met eta_max, 0-dim tensor."""
    info = kfac.last_step[0]
    return info.max_scale / info.step_scale.clamp_min(1e-12)


def natural_step(model: ACKTR, batch: RolloutBatch) -> ActorStep:
    """Make one natural-gradient step.

    :raises DivergenceError: the loss is not finite; the step is not taken
    """
    with capture(model, model.kfac):
        seen = evaluated = model._model(batch)
    loss, losses = actor_loss(model, evaluated, batch)
    check_own_loss(loss, model)
    adapts = model.kfac.param_groups[0]["adapt_damping"]
    before = _without_noise(model, batch) if adapts and model.outputs.noisy else evaluated
    part = batch
    if samples_statistics(model, model.kfac):
        part = batch.sample(model.sub_sampling_factor)
        with model.kfac.capture():
            seen = model._model(part)
    model.kfac.update_curvature(*seen.distributions)
    if samples_fisher(model, model.kfac):
        sample = batch.sample(model.sub_sampling_factor)
        model.kfac.use_exact_fisher(*model._model(sample).distributions)
    take_step(model, loss, model.kfac)
    if model.kfac.wants_reduction:
        report_reduction(model, before, batch)
    losses = {name: part_of_it.detach() for name, part_of_it in losses.items()}
    old = [_without_graph(d) for d in seen.distributions]
    return ActorStep(loss.detach(), losses, part, old)


@torch.no_grad()
def _without_noise(model: ACKTR, batch: RolloutBatch) -> Evaluation:
    """Evaluate a batch with the networks that act: without dropout."""
    with model.outputs.quiet():
        return model._model(batch)


def _without_graph(distribution: Any) -> Any:
    """Let go of a graph that nothing needs any more; an unknown distribution is kept as it is."""
    try:
        return detached(distribution)
    except TypeError:
        return distribution


@torch.no_grad()
def report_reduction(model: ACKTR, before: Evaluation, batch: RolloutBatch) -> None:
    """Tell K-FAC, whose damping adapts, by how much a step lowered the loss of the batch.

    :param before: the model on the batch, before the step
    """
    both = (before, _without_noise(model, batch))
    losses = [actor_loss(model, of, batch, before.log_prob)[0] for of in both]
    model.kfac.report_reduction(losses[0] - losses[1])


def actor_loss(
    model: ACKTR, evaluated: Evaluation, batch: RolloutBatch, old_log_prob: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient, entropy bonus and, where it learns with the actor, the critic's loss.

    :param evaluated: the model on the batch
    :param batch: with its advantages normalised, if they are to be
    :param old_log_prob: of the policy that collected the batch, ``(B,)``, if it has moved since: each
        sample then counts by its importance ratio
    :return: the sum, and the parts by the last part of their key in the log
    """
    log_prob = evaluated.log_prob
    # At the policy that collected the batch both have the same gradient.
    gain = log_prob if old_log_prob is None else (log_prob - old_log_prob).exp()
    policy_loss = -(batch.advantages * gain).mean()
    entropy_loss = -(log_prob if evaluated.entropy is None else evaluated.entropy).mean()
    losses = {"policy_gradient_loss": policy_loss, "entropy_loss": entropy_loss}
    loss = policy_loss + model.ent_coef * entropy_loss
    if evaluated.values is not None and model.critic_optimizer is None:
        losses["value_loss"] = model._value_loss(evaluated.values, batch)
        loss = loss + model.vf_coef * losses["value_loss"]
    return loss, losses
