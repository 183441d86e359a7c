"""The KL trust region: from a bound in nats to the length of the step.

To second order the KL divergence between the model before and after a step ``D`` is
``D' F D / 2``. Wu et al. 2017, sec. 3.2, therefore scale the step by

    eta = min(eta_max, sqrt(2 delta / (D' F D))).

Two readings matter. ``D`` is the step that is really taken, with momentum and weight decay in it, and
``F`` is the *undamped* Fisher: damping belongs to the direction, not to the distance.

A bound that every step reaches makes a batch that says little move the model as far as one that says
much. With ``length_floor`` c > 0 natural gradients that are shorter than c times the mean of those so
far, in ``L = sqrt(D' F D)``, get the scale of one of just that length, and their steps stay short::

    eta_max = min(lr, sqrt(2 delta) / (c mean L)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepInfo(NamedTuple):
    """What the trust region did to one parameter group in the last step.

    :param step_scale: eta, 0-dim tensor
    :param predicted_kl: ``eta^2 D' F D / 2`` in nats, 0-dim tensor
    :param max_scale: eta_max, the largest scale that the step could have had, 0-dim tensor
    :param cg_residual: how much of the gradient conjugate gradients left unsolved, 0-dim tensor;
        ``None`` without them
    """

    step_scale: Tensor
    predicted_kl: Tensor
    max_scale: Tensor
    cg_residual: Tensor | None = None


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


def largest_scale(group: Mapping[str, Any], quadratic: Tensor) -> Tensor:
    """Return eta_max of a parameter group's next step, 0-dim tensor.

    :param group: its ``lengths`` are mean and number of the lengths so far, ``(2,)``
    :param quadratic: whose type and device the result has
    """
    lr = scalar(group["lr"], quadratic)
    if not group["length_floor"] or group["target_kl"] is None:
        return lr
    floor = group["length_floor"] * group["lengths"][0].to(quadratic)
    return torch.minimum(lr, scalar(2.0 * group["target_kl"], quadratic).sqrt() / floor)


def add_length(lengths: Tensor, quadratic: Tensor, finite: Tensor) -> None:
    """Average the length of one more step in.

    :param lengths: mean and number of those before, ``(2,)``; written to
    :param quadratic: ``D' F D`` of the unscaled step, 0-dim tensor
    :param finite: whether it was taken, 0-dim bool tensor; else nothing changes
    """
    mean, number = lengths.to(quadratic)
    number = number + 1
    mean = mean + (quadratic.clamp_min(0.0).sqrt() - mean) / number
    lengths.copy_(torch.where(finite, torch.stack([mean, number]), lengths.to(quadratic)))
