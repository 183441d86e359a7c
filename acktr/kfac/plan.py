"""From natural gradients to steps: momentum, weight decay, and how long the step would be in nats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acktr.kfac.blocks import Block
from acktr.kfac.exact import NaturalGradient, flatten
from acktr.kfac.trust_region import StepInfo, trust_region


class Plan(NamedTuple):
    """One block's part of a step: its parameters, what momentum keeps, and the unscaled step."""

    block: Block
    params: list[nn.Parameter]
    velocity: list[Tensor]
    steps: list[Tensor]


def plan_steps(
    blocks: Sequence[Block],
    directions: Sequence[Sequence[Tensor]],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
) -> list[Plan]:
    """Add momentum and weight decay to natural gradients.

    :param blocks: those that will move
    :param directions: their natural gradients, in the order of each block's parameters
    :param group: the parameter group
    :param state: the optimiser's, which holds momentum buffers
    """
    momentum, weight_decay = group["momentum"], group["weight_decay"]
    plans = []
    for block, natural in zip(blocks, directions, strict=True):
        params = list(block.params.values())
        velocity, steps = [], []
        for p, direction in zip(params, natural, strict=True):
            if p.grad is None:
                direction = torch.zeros_like(p)
            elif momentum and "momentum_buffer" in state[p]:
                direction = direction.add(state[p]["momentum_buffer"], alpha=momentum)
            velocity.append(direction)
            decays = weight_decay and p.grad is not None
            steps.append(direction.add(p, alpha=weight_decay) if decays else direction)
        plans.append(Plan(block, params, velocity, steps))
    return plans


def within_trust_region(
    plans: Sequence[Plan], natural: NaturalGradient, group: Mapping[str, Any]
) -> tuple[StepInfo, Tensor]:
    """Scale a step to the trust region of its group.

    :return: the scale, and whether the step can be taken (0-dim bool tensor); the scale of one that
        cannot is 0
    """
    total = quadratic(plans, natural, moved=bool(group["momentum"] or group["weight_decay"]))
    info = trust_region(total, group["lr"], group["target_kl"])
    finite = steps_are_finite(plans) & total.isfinite()
    scale, predicted_kl = (torch.where(finite, value, 0.0) for value in info[:2])
    solution = natural.solution
    return StepInfo(scale, predicted_kl, solution.residual if solution else None), finite


def apply_steps(
    plans: Sequence[Plan],
    scale: Tensor,
    finite: Tensor | None,
    keep: bool,
    state: Mapping[Tensor, Any],
) -> None:
    """Move the parameters, and keep velocities for the next step.

    :param scale: what the steps are multiplied with, 0-dim tensor
    :param finite: whether they can be taken, 0-dim bool tensor, else nothing moves; ``None``: they can
    :param keep: whether there is momentum
    :param state: the optimiser's, which holds momentum buffers
    """
    for plan in plans:
        for p, velocity, step in zip(plan.params, plan.velocity, plan.steps, strict=True):
            kept = velocity
            if finite is not None:  # NaN times a scale of 0 would still be NaN
                step = torch.where(finite, step, 0.0)
                kept = torch.where(finite, velocity, state[p].get("momentum_buffer", 0.0))
            p.addcmul_(step, scale.to(step), value=-1.0)
            if keep and p.grad is not None:
                state[p]["momentum_buffer"] = kept


def quadratic(plans: Sequence[Plan], natural: NaturalGradient, moved: bool) -> Tensor:
    """``D' F D`` of the steps: with the exact Fisher after conjugate gradients, else K-FAC's.

    :param plans: the steps
    :param natural: where they come from
    :param moved: whether momentum or weight decay make them other than the natural gradients
    """
    if natural.fisher is None or natural.solution is None:
        parts = [plan.block.quadratic(plan.steps) for plan in plans]
        return torch.stack(parts).sum() if parts else torch.zeros(())
    steps = flatten([step for plan in plans for step in plan.steps])
    return steps @ (natural.fisher(steps) if moved else natural.solution.fisher_x)


def steps_are_finite(plans: Sequence[Plan]) -> Tensor:
    """Whether all blocks have statistics and all steps are finite (0-dim bool tensor).

    The quadratic form alone would miss a NaN in a direction without curvature.
    """
    if not plans:
        return torch.ones((), dtype=torch.bool)
    norm = torch.nn.utils.get_total_norm([step for plan in plans for step in plan.steps])
    accepted = torch.stack([plan.block.average.accepted for plan in plans]).all()
    return norm.isfinite() & accepted
