"""From gradients to steps: direction, momentum, weight decay, and how long a step would be in nats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acktr.kfac.averages import precise
from acktr.kfac.blocks import Block
from acktr.kfac.exact import (
    FisherProduct,
    NaturalGradient,
    Product,
    Solution,
    exact_natural_gradient,
    flatten,
    split_by_block,
)
from acktr.kfac.likelihood import Likelihood
from acktr.kfac.scaling import Candidate, best_mix
from acktr.kfac.trust_region import StepInfo, trust_region


class Plan(NamedTuple):
    """One block's part of a step: its parameters, what momentum keeps, and the unscaled step."""

    block: Block
    params: list[nn.Parameter]
    velocity: list[Tensor]
    steps: list[Tensor]


def prepare(
    blocks: Sequence[Block],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
    exact: Sequence[Likelihood],
    mean: Product,
) -> tuple[list[Plan], StepInfo, Tensor]:
    """Plan the step of one group within its trust region.

    The arguments are those of :func:`natural_gradient`.

    :return: the step, its scale, and whether it can be taken (0-dim bool tensor)
    :raises RuntimeError: as :func:`natural_gradient`
    """
    natural = natural_gradient(blocks, group, state, exact, mean)
    plans = plan_steps(blocks, natural.directions, group, state)
    return plans, *within_trust_region(plans, natural, group)


def natural_gradient(
    blocks: Sequence[Block],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
    exact: Sequence[Likelihood],
    mean: Product,
) -> NaturalGradient:
    """Turn the gradients of one group into natural ones, as its settings say.

    :param blocks: those that will move, with inverses
    :param group: the parameter group
    :param state: the optimiser's, which holds momentum buffers
    :param exact: what the exact Fisher is taken of, if it is asked for
    :param mean: over the processes that have parts of the batch, ``(P,)``
    :raises RuntimeError: it is asked for, and its distributions or their graph are missing
    """
    gradients = [
        [precise(torch.zeros_like(p) if p.grad is None else p.grad) for p in block.params.values()]
        for block in blocks
    ]
    iterations = group["cg_iterations"]
    if not blocks:
        return NaturalGradient([])
    if (iterations or group["exact_scaling"]) and not exact:
        raise RuntimeError(
            "cg_iterations > 0 and exact_scaling need the exact Fisher of this batch: call "
            "update_curvature or use_exact_fisher before each step, and "
            "loss.backward(retain_graph=True)."
        )
    damping = group["damping"]
    if iterations:
        natural = exact_natural_gradient(exact, blocks, gradients, damping, iterations, mean)
    else:
        pairs = zip(blocks, gradients, strict=True)
        natural = NaturalGradient([b.precondition(g, damping) for b, g in pairs])
    if not group["exact_scaling"]:
        return natural
    gradient = flatten([x for of_block in gradients for x in of_block])
    return _rescaled(natural, gradient, blocks, group, state, exact, mean)


def _rescaled(
    natural: NaturalGradient,
    gradient: Tensor,
    blocks: Sequence[Block],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
    exact: Sequence[Likelihood],
    mean: Product,
) -> NaturalGradient:
    """Mix natural gradients and the previous step as the exact Fisher finds best."""
    params = [p for block in blocks for p in block.params.values()]
    fisher = natural.fisher or FisherProduct(exact, params, mean)
    moves = flatten([torch.full_like(p, float(p.grad is not None)) for p in params])
    directions = [flatten([x for part in natural.directions for x in part])]
    if group["momentum"] and any("momentum_buffer" in state[p] for p in params):
        buffers = [state[p].get("momentum_buffer", torch.zeros_like(p)) for p in params]
        directions.append(flatten(buffers))
    candidates = [Candidate(x, fisher(x)) for x in (moves * x for x in directions)]
    mix = best_mix(candidates, gradient, group["damping"])
    residual = natural.solution.residual if natural.solution else None
    solution = Solution(mix.direction, mix.fisher, residual)
    return NaturalGradient(split_by_block(mix.direction, blocks), fisher, solution)


def plan_steps(
    blocks: Sequence[Block],
    directions: Sequence[Sequence[Tensor]],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
) -> list[Plan]:
    """Add momentum and weight decay to natural gradients.

    :param blocks: those that will move
    :param directions: their natural gradients, in the order of each block's parameters; with
        ``exact_scaling`` momentum is in them
    :param group: the parameter group
    :param state: the optimiser's, which holds momentum buffers
    """
    momentum = 0.0 if group["exact_scaling"] else group["momentum"]
    weight_decay = group["weight_decay"]
    plans = []
    for block, natural in zip(blocks, directions, strict=True):
        params = list(block.params.values())
        velocity, steps = [], []
        for p, direction in zip(params, natural, strict=True):
            if p.grad is None:
                direction = torch.zeros_like(direction)
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

    :param group: the parameter group
    :return: the scale, and whether the step can be taken (0-dim bool tensor); the scale of one that
        cannot is 0
    """
    momentum = group["momentum"] and not group["exact_scaling"]
    held = any(p.grad is None for plan in plans for p in plan.params)
    total = quadratic(plans, natural, moved=bool(momentum or group["weight_decay"] or held))
    bound = group["target_kl"]
    if bound is not None:
        bound = bound * group.get("kl_scale", 1.0)
    info = trust_region(total, group["lr"], bound)
    finite = steps_are_finite(plans) & total.isfinite()
    scale, predicted_kl = (torch.where(finite, value, 0.0) for value in info[:2])
    residual = natural.solution.residual if natural.solution else None
    return StepInfo(scale, predicted_kl, info.max_scale, residual), finite


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
                # Memory of its own, always the same: a CUDA graph reads and writes where it once did.
                state[p].setdefault("momentum_buffer", torch.empty_like(kept)).copy_(kept)


def quadratic(plans: Sequence[Plan], natural: NaturalGradient, moved: bool) -> Tensor:
    """``D' F D`` of the steps: with the exact Fisher where it had a part in them, else K-FAC's.

    :param plans: the steps
    :param natural: where they come from
    :param moved: whether momentum, weight decay or a parameter that stays make them other than those
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
    norms = torch._foreach_norm([step for plan in plans for step in plan.steps])
    accepted = torch.stack([plan.block.average.taken for plan in plans]).min() > 0
    return torch.stack(norms).isfinite().all() & accepted
