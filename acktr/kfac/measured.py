"""A trust region that holds: the KL of a step is measured, and the step made shorter or longer.

K-FAC's form ``D' F D / 2`` leaves out what layers do together and averages over batches of before, so
that the KL of a step is up to 400 times what it promises. One more forward pass says what it is. KL
grows with the square of the length, so the factor to try is ``sqrt(target / measured)``; and as the
promise is wrong by much the same factor from step to step, the next one begins with what this has learnt
(``kl_scale`` of its parameter group): most steps are measured once and left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acktr.kfac.exact import Product
from acktr.kfac.likelihood import Likelihood, likelihoods_of, mean_kl
from acktr.kfac.plan import Plan
from acktr.kfac.trust_region import StepInfo

TOLERANCE = 1.5  # a step is left as it is if its KL is off by no more than this factor
MAX_TRIES = 10  # lengths of one step; two are enough as a rule
MAX_EXTENSION = 2.0  # no step is made longer than this at once
SHORTER = 0.1  # what a step is multiplied with whose KL is not finite

Call = Callable[[], Any]


class Taken(NamedTuple):
    """The step of one parameter group, as it was taken."""

    plans: list[Plan]
    info: StepInfo
    group: dict[str, Any]


class Measured:
    """The KL of steps on the batch that they were made of.

    What a pass draws at random (dropout) it draws alike before and after the step, and neither the
    generators nor the buffers of the model (averages of BatchNorm) remember the pass.

    :param module: the model
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Whether a forward pass draws random numbers; None before the first one.
        self._draws: bool | None = None
        self._forward: Call | None = None
        self._old: list[Likelihood] = []
        self._seen: list[tuple[str, int]] = []  # kind and samples of the captured pass's outputs

    def see(self, likelihoods: Sequence[Likelihood]) -> None:
        """Remember the outputs of a captured pass, if they can stand for those before a step.

        :raises TypeError: a likelihood that does not know its KL
        """
        self._seen = _kinds(likelihoods)
        # Where nothing was measured nothing will be, as a rule; and with dropout the numbers are others.
        self._old = _copies(likelihoods) if self._draws is False else []

    def begin(self, forward: Call) -> None:
        """Remember the outputs before a step.

        :param forward: runs the forward pass of the batch and returns its outputs, as
            ``update_curvature`` takes them
        :raises TypeError: a likelihood that does not know its KL
        :raises ValueError: the forward pass gave other outputs than the captured one
        """
        self._forward = forward
        try:
            self._old = self._old or _copies(self._again())
        except BaseException:
            self.end()
            raise

    def kl(self) -> Tensor:
        """``KL(before || now)``, nats, over the likelihoods' units, 0-dim tensor.

        :raises ValueError: the forward pass gave other outputs than the captured one
        """
        return mean_kl(self._old, self._again())

    def _devices(self) -> list[int]:
        """Return the accelerators that hold parameters."""
        if not torch.cuda.is_initialized():
            return []
        return sorted({p.device.index for p in self._module.parameters() if p.is_cuda})

    def end(self) -> None:
        """Let go of the batch."""
        self._forward, self._old = None, []

    @torch.no_grad()
    def _again(self) -> list[Likelihood]:
        assert self._forward is not None
        buffers = [(b, b.clone()) for b in self._module.buffers()]
        devices = self._devices()
        before = _generators(devices)
        try:
            found = likelihoods_of([self._forward()])
        finally:
            after = _generators(devices)
            self._draws = not all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
            if self._draws:
                torch.set_rng_state(before[0])
                for device, state in zip(devices, before[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
        for buffer, value in buffers:
            buffer.copy_(value)
        if (kinds := _kinds(found)) != self._seen:
            raise ValueError(
                f"step(forward=...) returned {_say(kinds)} where update_curvature saw "
                f"{_say(self._seen)}: run the forward pass of the same batch and return the same "
                "distributions."
            )
        return found


def _copies(likelihoods: Sequence[Likelihood]) -> list[Likelihood]:
    """Return the same without graphs, in memory of their own: an output may be a parameter itself."""
    return [x.detached(torch.arange(x.samples)) for x in likelihoods]


def _kinds(likelihoods: Sequence[Likelihood]) -> list[tuple[str, int]]:
    return [(type(x).__name__.removesuffix("Likelihood"), x.samples) for x in likelihoods]


def _say(kinds: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} of {samples} samples" for kind, samples in kinds) or "nothing"


def _generators(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]


def hold(measured: Measured, steps: Sequence[Taken], mean: Product) -> list[Taken]:
    """Bring the KL of a step to the sum of its groups' ``target_kl``, in place.

    A KL within a factor :data:`TOLERANCE` is left as it is, and so is one below that where ``lr`` allows
    no more. Lengths that were too short and too long close in on the right one; should
    :data:`MAX_TRIES` not be enough, the longest of the short ones is taken.

    :param measured: that began before the step
    :param steps: of all parameter groups; those without a ``target_kl`` stay as long as they are
    :param mean: over the processes that have parts of the batch
    :return: the same as they are in the end
    :raises ValueError: other outputs than those of the captured pass; then, and when the forward pass
        itself raises, the step is taken back
    """
    bounded = [
        s for s in steps if s.plans and s.group["target_kl"] is not None and s.info.step_scale > 0
    ]
    held = {id(s.group) for s in bounded}
    target = sum(float(s.group["target_kl"]) for s in bounded)
    longest = min((float(s.info.max_scale / s.info.step_scale) for s in bounded), default=1.0)
    length = 1.0
    try:
        kl = float(mean(measured.kl()))
        short, kl_of_short, long = 0.0, 0.0, math.inf
        for tries in range(MAX_TRIES if bounded else 0):
            ratio = _ratio(target, kl)
            if 1.0 / TOLERANCE <= ratio <= TOLERANCE or (ratio > 1.0 and length >= longest):
                break
            if ratio > 1.0:
                short, kl_of_short = length, kl
            else:
                long = length
            wanted = min(length * min(math.sqrt(ratio) or SHORTER, MAX_EXTENSION), longest)
            if not short < wanted < long:
                wanted = (short + long) / 2
            if tries == MAX_TRIES - 1:
                wanted = short
            _lengthen(bounded, wanted - length)
            length = wanted
            kl = kl_of_short if 0.0 < wanted <= short else float(mean(measured.kl()))
        if length == 0.0 and target < kl < math.inf:
            raise ValueError(
                f"step(forward=...) measures a KL of {kl:.3g} where no step is taken: run the batch "
                "that was captured, and in the same mode (train or eval)."
            )
    except BaseException:
        _lengthen(bounded, -length)
        _lengthen([s for s in steps if id(s.group) not in held], -1.0)
        raise
    finally:
        measured.end()
    for s in bounded:
        _learn(s, length, _ratio(target, kl))
    return [s._replace(info=_info(s.info, length if id(s.group) in held else 1.0, kl)) for s in steps]


def _ratio(target: float, kl: float) -> float:
    """How many times larger the KL may be; 0 for one that is not finite."""
    if kl <= 0.0:  # by rounding
        return math.inf
    return target / kl if math.isfinite(kl) else 0.0


def _lengthen(steps: Sequence[Taken], by: float) -> None:
    """Make a step longer by a multiple of what it was at first."""
    for step in steps:
        for plan in step.plans:
            for p, direction in zip(plan.params, plan.steps, strict=True):
                p.addcmul_(direction, (by * step.info.step_scale).to(direction), value=-1.0)


def _learn(step: Taken, length: float, ratio: float) -> None:
    """Let the next step begin with the length that this one ended with, corrected once more."""
    group = step.group
    # Where lr rules, a larger bound would change nothing.
    ruled = step.info.step_scale * length >= step.info.max_scale * (1.0 - 1e-6)
    ratio = min(ratio, 1.0 if ruled else MAX_EXTENSION**2)
    learnt = group.get("kl_scale", 1.0) * max(length**2, SHORTER**2) * ratio
    group["kl_scale"] = min(max(learnt, 1e-6), 1e6)


def _info(info: StepInfo, length: float, kl: float) -> StepInfo:
    return info._replace(
        step_scale=info.step_scale * length,
        predicted_kl=info.predicted_kl * length**2,
        measured_kl=info.predicted_kl.new_full((), kl),
    )
