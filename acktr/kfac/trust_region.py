"""The KL trust region: from a bound in nats to the length of the step.

To second order the KL divergence between the model before and after a step ``D`` is
``D' F D / 2``. Wu et al. 2017, sec. 3.2, therefore scale the step by

    eta = min(eta_max, sqrt(2 delta / (D' F D))).

Two readings matter. ``D`` is the step that is really taken, with momentum and weight decay in it, and
``F`` is the *undamped* Fisher: damping belongs to the direction, not to the distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StepInfo(NamedTuple):
    """The trust region's decision about one parameter group in the last step.

    :param step_scale: eta, 0-dim tensor
    :param predicted_kl: ``eta^2 D' F D / 2`` in nats, 0-dim tensor
    :param max_scale: eta_max, the largest scale that the step could have had, 0-dim tensor
    :param cg_residual: how much of the gradient conjugate gradients left unsolved, 0-dim tensor;
        ``None`` without them
    :param measured_kl: the KL of the whole step, in nats, 0-dim tensor; ``None`` where it was not
        measured, by ``step(forward=...)``
    """

    step_scale: Tensor
    predicted_kl: Tensor
    max_scale: Tensor
    cg_residual: Tensor | None = None
    measured_kl: Tensor | None = None


def trust_region(
    quadratic: Tensor, max_scale: float | Tensor, target_kl: float | Tensor | None
) -> StepInfo:
    """Scale a step so that its predicted KL stays within the bound.

    :param quadratic: ``D' F D`` of the unscaled step, 0-dim tensor
    :param max_scale: eta_max
    :param target_kl: delta in nats; ``None`` for no bound
    """
    quadratic = quadratic.clamp_min(0.0)
    max_scale = scalar(max_scale, quadratic)
    scale = max_scale
    if target_kl is not None:
        # A step without curvature has no bound of its own: sqrt(2 delta / 0) = inf, and eta_max rules.
        scale = torch.minimum(scale, (2.0 * target_kl / quadratic).sqrt())
    return StepInfo(scale, 0.5 * scale.square() * quadratic, max_scale)


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a number as a 0-dim tensor with the type and device of another, without waiting for it."""
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)
