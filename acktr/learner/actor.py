"""The update of the actor: a natural-gradient step inside a KL trust region.

On a shared trunk with a natural critic the same step moves the critic.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr import distributed
from acktr.kfac import KFAC
from acktr.kfac.likelihood import mean_kl
from acktr.learner.natural_step import NaturalStep, check_losses, learns, without_graph
from acktr.learner.trust_region import TrustRegion
from acktr.learner.undo import Undo
from acktr.learner.value_scale import ValueScale
from acktr.networks.outputs import Evaluation, Outputs
from acktr.rollout.batch import RolloutBatch


class ActorLimits(NamedTuple):
    """The limits of the actor's update, at the time it is made.

    :param target_kl: radius of the trust region, nats
    :param rate: eta_max, in K-FAC's natural gradients
    :param corrected_rate: eta_max, in natural gradients as the measured KL corrects them
    :param ent_coef: weight of the entropy bonus
    """

    target_kl: float
    rate: float
    corrected_rate: float
    ent_coef: float


class ActorUpdate:
    """Moves the actor along the natural gradient, as far as the trust region goes.

    :param step: of K-FAC with the actor's parameters, a shared trunk among them
    :param outputs: of the policy
    :param value_scale: of the critic, whose distribution on a shared trunk is part of the joint one:
        ``p(a|s) N(v|V(s), sigma^2)``; where the critic learns by itself, this keeps the actor's step
        from moving the values
    :param trust_region: holds the KL
    :param vf_coef: weight of the critic's loss; ``None`` where it learns by itself
    :param deferred: as for :class:`~acktr.learner.natural_step.NaturalStep`
    """

    def __init__(
        self,
        step: NaturalStep,
        outputs: Outputs,
        value_scale: ValueScale,
        trust_region: TrustRegion,
        vf_coef: float | None,
        deferred: bool = False,
    ) -> None:
        self._step = step
        self._outputs = outputs
        self._value_scale = value_scale
        self._trust_region = trust_region
        self._vf_coef = vf_coef
        self._deferred = deferred
        self._ent_coef = 0.0
        self._limited = False  # whether the last step had a corrected rate

    @property
    def kfac(self) -> KFAC:
        """The optimiser of the actor's parameters."""
        return self._step.kfac

    @property
    def learns(self) -> bool:
        """Whether any of the parameters is to be trained now."""
        return learns(self.kfac)

    def update(self, batch: RolloutBatch, limits: ActorLimits) -> tuple[dict[str, Tensor], float]:
        """Make one step on the whole batch.

        K-FAC promises the bound. What the step did is measured, fed back into the bound of the next
        rollout, and rescaled if it is far off (:mod:`acktr.learner.trust_region`).

        :param batch: the rollout, its advantages normalised if they are to be
        :param limits: of now
        :return: the losses before the step, and the measured KL in nats
        :raises DivergenceError: the loss is not finite, and its step is not taken; or the outputs are
            not after the step, and it is taken back
        """
        self._ent_coef, self._limited = limits.ent_coef, math.isfinite(limits.corrected_rate)
        self._trust_region.bound(self.kfac, limits.target_kl, limits.rate, limits.corrected_rate)
        undo = Undo(self.kfac)
        noisy = self._outputs.noisy
        held = self._without_noise(batch).distributions if noisy else None
        losses, _, part, old = self._step(self, batch)
        # A copy for this rollout: what a distribution has worked out of itself it does not work out
        # again, though a CUDA graph writes new parameters into it.
        old = [without_graph(d) for d in old]
        if self._deferred:
            check_losses([losses["loss"].clone()], undo)
        measure = partial(self._measure, held or old, batch if noisy else part)
        kl = self._trust_region.settle(self.kfac, undo, measure, limits.target_kl)
        return {name: loss for name, loss in losses.items() if name != "loss"}, kl

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the last step, for the log."""
        group = self.kfac.param_groups[0]
        if not self.learns or not self.kfac.last_step:  # none yet
            return {"damping": group["damping"]}
        info = self.kfac.last_step[0]
        figures = {"predicted_kl": info.predicted_kl, "step_scale": info.step_scale}
        if self._limited:
            figures["max_step_scale"] = info.max_scale
        if info.cg_residual is not None:
            figures["cg_residual"] = info.cg_residual
        return {**figures, "damping": group["damping"]}

    def _measure(self, old: list[Any], part: RolloutBatch) -> float:
        with torch.no_grad(), self._outputs.quiet():
            kl = mean_kl(old, self.distributions(part))
        return distributed.mean(kl).item()

    @torch.no_grad()
    def _without_noise(self, batch: RolloutBatch) -> Evaluation:
        with self._outputs.quiet():
            return self.evaluate(batch)

    # What a natural step asks -----------------------------------------------------------------

    def evaluate(self, batch: RolloutBatch) -> Evaluation:
        """Evaluate the actor on a batch, and on a shared trunk the critic, whose part is last."""
        said = self._outputs.evaluate(*batch.inputs)
        if said.values is not None:
            said.distributions.append(self._value_scale.distribution(said.values))
        return said

    def distributions(self, batch: RolloutBatch) -> list[Any]:
        """Return the distributions of :meth:`evaluate` alone."""
        if self._outputs.shared:
            return self.evaluate(batch).distributions
        return self._outputs.distributions(*batch.inputs)

    def losses(
        self, said: Evaluation, batch: RolloutBatch, old_log_prob: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Policy gradient, entropy bonus and, where it learns with the actor, the critic's loss.

        :param said: of the batch
        :param batch: with its advantages normalised, if they are to be
        :param old_log_prob: of the policy that collected the batch, ``(B,)``, if it has moved since:
            each sample then counts by its importance ratio
        :return: the sum under ``"loss"``, and the parts by the last part of their key in the log
        """
        log_prob = said.log_prob
        # At the policy that collected the batch both have the same gradient.
        gain = log_prob if old_log_prob is None else (log_prob - old_log_prob).exp()
        policy_loss = -(batch.advantages * gain).mean()
        entropy_loss = -(log_prob if said.entropy is None else said.entropy).mean()
        losses = {"policy_gradient_loss": policy_loss, "entropy_loss": entropy_loss}
        loss = policy_loss + self._ent_coef * entropy_loss
        if said.values is not None and self._vf_coef is not None:
            losses["value_loss"] = self._value_scale.loss(said.values, batch.returns)
            loss = loss + self._vf_coef * losses["value_loss"]
        return {**losses, "loss": loss}

    def improvement(self, before: Evaluation, after: Evaluation, batch: RolloutBatch) -> Tensor:
        """Return by how much a step lowered the loss of the batch, both with importance ratios."""
        collected = before.log_prob.detach()
        losses = [self.losses(said, batch, collected)["loss"] for said in (before, after)]
        return losses[0] - losses[1]
