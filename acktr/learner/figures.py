"""What an update says of itself in the log."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.utils import explained_variance
from torch.optim import Optimizer

from acktr.kfac import KFAC
from acktr.learner.parts import Parts
from acktr.rollout.batch import RolloutBatch
from acktr.rollout.storage import RolloutStorage


def figures_of(
    parts: Parts,
    storage: RolloutStorage,
    batch: RolloutBatch,
    *optimizers: Optimizer | None,
) -> dict[str, Any]:
    """Return the figures of one update by the last part of their key; ``docs/metrics.md`` has each.

    :param parts: after the update
    :param storage: of the rollout
    :param batch: the same rollout, as it was learned from
    :param optimizers: that moved parameters
    """
    figures: dict[str, Any] = {
        **parts.trust_region.metrics(),
        "gamma": storage.gamma,
        "gae_lambda": storage.gae_lambda,
        **parts.actor_update.metrics(),
        "fallbacks": sum(sum(o.counters.values()) for o in optimizers if isinstance(o, KFAC)),
        **({} if parts.critic_update is None else parts.critic_update.metrics()),
        "explained_variance": explained_variance(
            batch.values.cpu().numpy(), batch.returns.cpu().numpy()
        ),
        **parts.value_scale.metrics(),
    }
    if hasattr(parts.policy, "log_std"):
        figures["std"] = parts.policy.log_std.exp().mean()
    if batch.masks is not None:
        figures["forbidden"] = 1.0 - batch.masks.float().mean()
    return figures
