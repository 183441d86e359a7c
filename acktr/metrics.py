"""What ACKTR logs of each update; ``docs/metrics.md`` says what each key means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from acktr.kfac import KFAC
from acktr.rollout import RolloutBatch
from acktr.update import learns
from acktr.value_scale import normalized_value

if TYPE_CHECKING:
    from acktr.algorithm import ACKTR


def record_update(
    model: ACKTR, batch: RolloutBatch, losses: dict[str, Tensor], kl: float, target_kl: float
) -> None:
    """Hand the figures of one update to the model's logger.

    :param model: after the update
    :param batch: what it learned from
    :param losses: by the last part of their key
    :param kl: measured after the update, nats
    :param target_kl: asked for, nats
    """
    record = model.logger.record
    kfac, critic = model.kfac, model.critic_optimizer
    for name, loss in losses.items():
        record(f"train/{name}", loss.item())
    record("train/kl", kl)
    record("train/target_kl", target_kl)
    record("train/kl_scale", model.kl_scale)
    record("train/gamma", model.rollout_buffer.gamma)
    record("train/gae_lambda", model.rollout_buffer.gae_lambda)
    record("train/kl_rescales", model.kl_rescales)
    if learns(kfac):
        info = kfac.last_step[0]
        record("train/predicted_kl", info.predicted_kl.item())
        record("train/step_scale", info.step_scale.item())
        if model.corrected_learning_rate is not None:
            record("train/max_step_scale", info.max_scale.item())
        if info.cg_residual is not None:
            record("train/cg_residual", info.cg_residual.item())
    record("train/damping", kfac.param_groups[0]["damping"])
    guards = [o for o in (kfac, critic) if isinstance(o, KFAC)]
    record("train/fallbacks", sum(sum(o.counters.values()) for o in guards))
    if isinstance(critic, KFAC) and learns(critic):
        if critic.param_groups[0]["adapt_damping"]:
            record("train/critic_damping", critic.param_groups[0]["damping"])
        record("train/critic_step_scale", critic.last_step[0].step_scale.item())
        record("train/critic_predicted_kl", critic.last_step[0].predicted_kl.item())
    fit = explained_variance(batch.values.cpu().numpy(), batch.returns.cpu().numpy())
    record("train/explained_variance", float(fit))
    head = normalized_value(model.policy)
    if head is not None:
        record("train/return_mean", head.mean.item())
        record("train/return_std", head.std.item())
    if hasattr(model.policy, "log_std"):
        record("train/std", model.policy.log_std.exp().mean().item())
    record("train/n_updates", model._n_updates, exclude="tensorboard")
