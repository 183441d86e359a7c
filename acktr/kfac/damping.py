"""Damping that adapts itself, by the rule of Levenberg and Marquardt (Martens & Grosse 2015, sec. 6.5).

The quadratic model of the loss promises for the step ``-eta D`` that was taken the reduction ::

    p = eta g' D - eta^2 (D' F D + lambda D' D) / 2

and the loss itself tells, on the same batch, which reduction there really was. Their ratio rho says how
far the model can be trusted. Every T steps ::

    rho > 3/4:  lambda <- omega lambda        rho < 1/4:  lambda <- lambda / omega,    omega = (19/20)^T

``D' F D`` is that of the trust region: K-FAC's, or the exact one where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.plan import Plan
from acktr.kfac.trust_region import StepInfo

PERIOD = 5  # T: steps between two adaptations
DECAY = 19 / 20  # of the damping in one step, where the model is right
MIN_DAMPING, MAX_DAMPING = 1e-6, 1e4


class Promise(NamedTuple):
    """The quadratic model's prediction for the step that was taken.

    :param reduction: by how much the loss falls, over all parameter groups together, 0-dim tensor
    :param groups: whose damping is to adapt to it
    """

    reduction: Tensor
    groups: list[dict[str, Any]]


def promised_reduction(
    taken: Sequence[tuple[Sequence[Plan], StepInfo, dict[str, Any]]],
) -> Promise | None:
    """Return the promise of a step at which damping adapts, ``None`` at any other.

    :param taken: the steps of all groups: what was planned, its scale, and the group
    """
    due = [group for plans, _, group in taken if plans and _is_due(group)]
    if not due:
        return None
    parts = []
    for plans, info, group in taken:
        for p, step in (x for plan in plans for x in zip(plan.params, plan.steps, strict=True)):
            if p.grad is not None:
                slope = info.step_scale * torch.sum(p.grad * step)
                length = info.step_scale.square() * step.square().sum()
                parts.append(slope - 0.5 * group["damping"] * length)
        if plans:
            parts.append(-info.predicted_kl)
    return Promise(torch.stack(parts).sum(), due)


def _is_due(group: Mapping[str, Any]) -> bool:
    step: int = group["step"]
    return bool(group["adapt_damping"]) and step > 0 and step % PERIOD == 0


def adapt(promise: Promise, actual: float) -> float | None:
    """Move the damping of the groups that are due.

    :param actual: the loss before the step minus the loss after it; a loss that is not finite any more
        counts as a model that failed
    :return: rho; ``None`` where nothing was promised, as by a step that was not taken: nothing changes
    """
    promised = float(promise.reduction)
    if not promised > 0.0:
        return None
    ratio = actual / promised
    factor = 1.0
    if ratio > 0.75:
        factor = DECAY**PERIOD
    elif not ratio >= 0.25:  # NaN too
        factor = DECAY**-PERIOD
    for group in promise.groups:
        group["damping"] = min(max(float(group["damping"]) * factor, MIN_DAMPING), MAX_DAMPING)
    return ratio
