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
from collections.abc import Callable, Mapping
from typing import Any

import torch

from acktr.errors import DivergenceError
from acktr.kfac import KFAC
from acktr.learner.undo import Undo

KL_TOLERANCE = 1.5  # a step is rescaled if its measured KL is off by more than this factor
MAX_RESCALES = 2  # of one step
MAX_SHORTENINGS, SHORTER = 4, 0.1  # of a step whose KL is not finite, and by what each
MAX_EXTENSION = 2.0  # no step is made longer than this at once
MAX_ADAPTATION = 1.4  # of the bound, in one update
LEAST_KL = 1e-12  # nats: a schedule ends at a radius of 0, and a loss of 0 leaves nothing to bound


class TrustRegion:
    """Holds the KL of the actor's steps at its target.

    :param feedback: whether the measured KL is fed back; else K-FAC's promise is all there is
    """

    def __init__(self, feedback: bool = True) -> None:
        self._feedback = feedback
        self.scale = 1.0  # what the feedback multiplies the bound with
        self.rescales = 0  # steps rescaled since the start

    def state_dict(self) -> dict[str, Any]:
        """Return what the next update depends on."""
        return {"scale": self.scale, "rescales": self.rescales}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.scale, self.rescales = state["scale"], state["rescales"]

    def metrics(self) -> dict[str, float]:
        """Return what the log says of it."""
        return {"kl_scale": self.scale, "kl_rescales": self.rescales}

    def bound(self, kfac: KFAC, target_kl: float, rate: float, corrected_rate: float) -> None:
        """Give K-FAC the bounds of its next step.

        :param target_kl: nats
        :param rate: eta_max, in K-FAC's natural gradients
        :param corrected_rate: eta_max, in natural gradients as the measured KL corrects them
        """
        group = kfac.param_groups[0]
        group["target_kl"] = max(target_kl * self.scale, LEAST_KL)
        group["lr"] = min(rate, corrected_rate * self.scale)

    def settle(
        self,
        kfac: KFAC,
        undo: Undo,
        measure: Callable[[], float],
        target_kl: float,
    ) -> float:
        """Measure the step that K-FAC has made; feed it back and rescale it if it is far off.

        :param kfac: after its step
        :param undo: made before it
        :param measure: measures the KL of the parameters as they are, nats
        :param target_kl: nats; where it is 0 the step is left as it is
        :return: the KL measured last, nats
        :raises DivergenceError: the networks' outputs are not finite; the step is taken back
        """
        if not self._feedback or target_kl <= 0:
            return measure_or_undo(measure, undo)
        kl, length = shorten(undo, measure)
        room = _room(kfac)
        self.scale = adapt_scale(self.scale, kl if length == 1.0 else math.inf, target_kl, room)
        kl, rescales = rescale_step(undo, measure, kl, target_kl, room / length)
        self.rescales += rescales + (length < 1.0)
        return kl


def _room(kfac: KFAC) -> float:
    """How much longer the last step could have been before it met eta_max."""
    info = kfac.last_step[0]
    return (info.max_scale / info.step_scale.clamp_min(1e-12)).item()


@torch.no_grad()
def shorten(undo: Undo, measure: Callable[[], float]) -> tuple[float, float]:
    """Make a step shorter until its KL is finite: one action that became impossible makes it infinite.

    :param undo: made before the step
    :param measure: measures the KL of the parameters as they are, nats
    :return: the KL, nats, and the length that is left of the step
    :raises DivergenceError: it never is; the step is taken back
    """
    length = 1.0
    for _ in range(MAX_SHORTENINGS):
        kl = measure()
        if math.isfinite(kl):
            return kl, length
        length *= SHORTER
        _rescale(undo, SHORTER)
    return measure_or_undo(measure, undo), length


def _rescale(undo: Undo, factor: float) -> None:
    for p, start in zip(undo.params, undo.before, strict=True):
        p.copy_(start + factor * (p - start))


def measure_or_undo(measure: Callable[[], float], undo: Undo) -> float:
    """Measure the KL of a step; take back a step that left the networks without finite outputs.

    :param measure: measures the KL of the parameters as they are, nats
    :param undo: made before the step
    :raises DivergenceError: the outputs are not finite; the step is taken back
    """
    kl = measure()
    if not math.isfinite(kl):
        undo()
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
    undo: Undo,
    measure: Callable[[], float],
    kl: float,
    target_kl: float,
    room: float,
) -> tuple[float, int]:
    """Rescale a step whose measured KL is far off its target.

    KL grows with the square of the step, so ``sqrt(target_kl / kl)`` is the factor to try.

    :param undo: made before the step
    :param measure: measures the KL of the parameters as they are, nats
    :param kl: measured after the step, nats
    :param target_kl: nats
    :param room: how much longer the step may become before it meets eta_max
    :return: the KL measured last, and how often the step was rescaled
    :raises DivergenceError: as :func:`measure_or_undo`
    """
    for rescales in range(MAX_RESCALES):
        factor = min((target_kl / max(kl, 1e-12)) ** 0.5, MAX_EXTENSION, room)
        if not factor or 1.0 / KL_TOLERANCE <= factor**2 <= KL_TOLERANCE:
            return kl, rescales
        room /= factor
        _rescale(undo, factor)
        kl = measure_or_undo(measure, undo)
    return kl, MAX_RESCALES
