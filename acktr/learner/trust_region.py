"""Measured KL: how far the policy really moved, and how the trust region learns from it.

K-FAC's quadratic form leaves out what layers do together, and averages curvature over earlier batches
while the step is fitted to the present one. So it promises too little KL: 5 to 20 times too little on
MuJoCo. The missing factor changes slowly, so a multiplicative controller on the bound finds and holds
it; a step that still lands far off is rescaled.

A KL that is 1/s times the promise (s is that multiplier, ``kl_scale``) means a curvature along the step
of 1/s times K-FAC's: the natural gradient there is not D but s D. ``corrected_learning_rate`` c limits
steps in that unit, ``eta <= c s``. Where every rollout has something to say the radius is met before,
and nothing changes. Where most have nothing to say, their steps would else be as many natural gradients
as K-FAC is wrong by, and undo what the few others taught: rare states hardly count in the mean KL that
holds a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from acktr import distributed
from acktr.errors import DivergenceError

if TYPE_CHECKING:
    from acktr.learner.algorithm import ACKTR

KL_TOLERANCE = 1.5  # a step is rescaled if its measured KL is off by more than this factor
MAX_RESCALES = 2  # of one step
MAX_EXTENSION = 2.0  # no step is made longer than this at once
MAX_ADAPTATION = 1.4  # of the bound, in one update


def check_loss(loss: Tensor, num_timesteps: int) -> None:
    """Refuse a loss before any step is taken on it.

    :param loss: 0-dim tensor
    :param num_timesteps: environment steps so far, for the message
    :raises DivergenceError: the loss is not finite
    """
    if not math.isfinite(loss.item()):
        raise DivergenceError(
            f"The loss is not finite at step {num_timesteps} and its step was not taken: lower "
            "target_kl or raise damping, and look at the returns."
        )


def check_own_loss(loss: Tensor, model: ACKTR) -> None:
    """:func:`check_loss` before statistics are drawn, where no other rank must hear of it first.

    Several ranks average losses and statistics in one message, and check before they use either. On an
    accelerator a look would wait for it: there all losses are looked at after the steps.
    """
    if distributed.size() == 1 and not model.defer_checks:
        check_loss(loss, model.num_timesteps)


@torch.no_grad()
def measure_or_restore(
    measure: Callable[[], float], params: Sequence[nn.Parameter], before: Sequence[Tensor]
) -> float:
    """Measure the KL of a step; take back a step that left the networks without finite outputs.

    :param measure: measures the KL of the parameters as they are, nats
    :param params: as they are after the step
    :param before: what they were before it
    :raises DivergenceError: the outputs are not finite; the parameters are as before the step
    """
    kl = measure()
    if not math.isfinite(kl):
        for p, start in zip(params, before, strict=True):
            p.copy_(start)
        raise DivergenceError(
            "The last step made the networks' outputs not finite and was taken back: lower target_kl or "
            "learning_rate, or raise damping."
        )
    return kl


def adapt_scale(scale: float, kl: float, target_kl: float, room: float) -> float:
    """Move the multiplier of the bound so that the measured KL meets its target.

    :param scale: multiplier that led to ``kl``
    :param kl: measured, nats
    :param target_kl: nats
    :param room: how much longer the step could have been before it met eta_max: where that rules, a
        larger bound would change nothing, and the multiplier must not run away
    """
    ratio = target_kl / max(kl, 1e-12)
    if room <= 1.0 + 1e-6:
        ratio = min(ratio, 1.0)
    scale *= min(max(ratio, 1.0 / MAX_ADAPTATION), MAX_ADAPTATION)
    return min(max(scale, 1e-6), 1e6)


@torch.no_grad()
def rescale_step(
    params: Sequence[nn.Parameter],
    before: Sequence[Tensor],
    measure: Callable[[], float],
    kl: float,
    target_kl: float,
    room: float,
) -> tuple[float, int]:
    """Rescale a step whose measured KL is far off its target.

    KL grows with the square of the step, so ``sqrt(target_kl / kl)`` is the factor to try.

    :param params: as they are after the step
    :param before: what they were before it
    :param measure: measures the KL of the parameters as they are, nats
    :param kl: measured after the step, nats
    :param target_kl: nats
    :param room: how much longer the step may become before it meets eta_max
    :return: the KL measured last, and how often the step was rescaled
    :raises DivergenceError: as :func:`measure_or_restore`
    """
    for rescales in range(MAX_RESCALES):
        factor = min((target_kl / max(kl, 1e-12)) ** 0.5, MAX_EXTENSION, room)
        if not factor or 1.0 / KL_TOLERANCE <= factor**2 <= KL_TOLERANCE:
            return kl, rescales
        room /= factor
        for p, start in zip(params, before, strict=True):
            p.copy_(start + factor * (p - start))
        kl = measure_or_restore(measure, params, before)
    return kl, MAX_RESCALES
