"""The updates of a critic that learns by itself, whether by natural gradients or by Adam."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.optim import Adam, Optimizer

from acktr.errors import DivergenceError
from acktr.kfac import Graphs
from acktr.kfac.likelihood import detached, mean_kl
from acktr.learner.natural_step import NaturalStep, check_loss, check_losses, learns, run, take_step
from acktr.learner.settings import AdamCritic, Critic, NaturalCritic
from acktr.learner.undo import Undo
from acktr.learner.value_scale import ValueScale
from acktr.networks.outputs import Outputs
from acktr.rollout.batch import RolloutBatch


class ValuesSaid(NamedTuple):
    """The outputs of a critic for B samples.

    :param values: ``(B,)``
    :param distributions: its Gaussian output alone
    """

    values: Tensor
    distributions: list[Any]


class CriticUpdate(ABC):
    """The updates of a critic that learns by itself, of one rollout at a time.

    :param optimizer: of the critic's parameters
    :param outputs: of the policy
    :param value_scale: sigma, and the loss
    :param settings: how many updates, and of how many samples
    :param deferred: as for :class:`~acktr.learner.natural_step.NaturalStep`
    """

    usual_n_updates: ClassVar[int]  # where the settings have no number

    def __init__(
        self,
        optimizer: Optimizer,
        outputs: Outputs,
        value_scale: ValueScale,
        settings: Critic,
        deferred: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self._outputs = outputs
        self._value_scale = value_scale
        self._settings = settings
        self._deferred = deferred

    @property
    def learns(self) -> bool:
        """Whether any of the critic's parameters is to be trained now."""
        return learns(self.optimizer)

    def fit(self, batch: RolloutBatch, rate: float) -> Tensor:
        """Make all updates of one rollout, on the whole batch or on minibatches of it.

        :param batch: the rollout
        :param rate: the learning rate of now
        :return: the loss before the last update, 0-dim tensor
        :raises DivergenceError: a loss is not finite; its step is not taken
        """
        self._set_rate(rate)
        undo = Undo(self.optimizer) if self._deferred else None
        step = self._begin(batch)
        minibatches = batch.minibatches(self._settings.batch_size, self._n_updates)
        losses = [step(chosen, part).clone() for chosen, part in minibatches]
        if undo is not None:
            check_losses(losses, undo)
        return losses[-1]

    @property
    def _n_updates(self) -> int:
        return self._settings.n_updates or self.usual_n_updates

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @abstractmethod
    def _begin(self, batch: RolloutBatch) -> Callable[[Tensor | slice, RolloutBatch], Tensor]:
        """Return what makes one step, from the chosen samples and their part of a rollout; its loss."""

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the last update, for the log."""
        return {}


class NaturalCriticUpdate(CriticUpdate):
    """Gauss-Newton steps of a critic with parameters of its own, by K-FAC.

    On a whole rollout they share the curvature of the first of them: it is what costs most. What it has
    become wrong by shows in the next loss: a step that raised it is taken back, and curvature taken anew
    (as a trust-region method does that finds no reduction, Nocedal & Wright 2006, algorithm 4.1).
    Losses of minibatches, or of networks that draw random numbers, cannot be compared: there each update
    takes its own curvature.

    :param step: of K-FAC with the critic's parameters
    :param settings: how its steps are bounded, besides what :class:`CriticUpdate` takes of them
    """

    usual_n_updates = 8

    def __init__(
        self,
        step: NaturalStep,
        outputs: Outputs,
        value_scale: ValueScale,
        settings: NaturalCritic,
        deferred: bool = False,
    ) -> None:
        super().__init__(step.kfac, outputs, value_scale, settings, deferred)
        self._step = step
        self._bound = settings.trust_region
        self._taken_back = 0  # updates of the last rollout

    def fit(self, batch: RolloutBatch, rate: float) -> Tensor:
        """Make all updates of one rollout.

        :param batch: the rollout
        :param rate: the learning rate of now
        :return: the loss before the last update that was kept, 0-dim tensor
        :raises DivergenceError: a loss is not finite; no step since the last that was is left
        """
        if self._settings.batch_size is not None or self._outputs.noisy:
            return super().fit(batch, rate)
        self._set_rate(rate)
        self._taken_back = 0
        lowest, before = torch.tensor(torch.finfo(torch.float32).max), Undo(self.optimizer)
        rose = True
        for update in range(self._n_updates):
            now = Undo(self.optimizer)
            loss = self._update(batch, curvature=rose)
            rose = not loss <= lowest  # or it is NaN
            if rose:
                before()
                if update == 0:
                    check_loss(loss)
                self._taken_back += 1
            else:
                lowest, before = loss, now
        return lowest

    def _update(self, batch: RolloutBatch, curvature: bool) -> Tensor:
        """Make one update; return the loss before it, of all ranks, NaN where it is not finite."""
        try:
            return self._step(self, batch, self._bound, curvature).loss.clone()
        except DivergenceError:
            return torch.tensor(math.nan)

    def _begin(self, batch: RolloutBatch) -> Callable[[Tensor | slice, RolloutBatch], Tensor]:
        return lambda _chosen, part: self._step(self, part, self._bound).losses["loss"]

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the last update, for the log."""
        if not self.learns:
            return {}
        group, info = self._step.kfac.param_groups[0], self._step.kfac.last_step[0]
        figures = {
            "critic_step_scale": info.step_scale,
            "critic_predicted_kl": info.predicted_kl,
            "critic_taken_back": self._taken_back,
        }
        return {"critic_damping": group["damping"], **figures} if group["adapt_damping"] else figures

    # What a natural step asks -----------------------------------------------------------------

    def evaluate(self, batch: RolloutBatch) -> ValuesSaid:
        """Evaluate the critic on a batch."""
        values = self._outputs.values(batch.observations)
        return ValuesSaid(values, [self._value_scale.distribution(values)])

    def losses(self, said: ValuesSaid, batch: RolloutBatch) -> dict[str, Tensor]:
        """Return the critic's loss."""
        return {"loss": self._value_scale.loss(said.values, batch.returns)}

    def improvement(self, before: ValuesSaid, after: ValuesSaid, batch: RolloutBatch) -> Tensor:
        """Return by how much a step lowered the loss."""
        return self.losses(before, batch)["loss"] - self.losses(after, batch)["loss"]


class AdamCriticUpdate(CriticUpdate):
    """Steps of Adam.

    On a shared trunk, which is among its parameters, the policy is held where it is: its KL is part of
    the loss (as in phasic policy gradient, Cobbe et al. 2021).

    :param graphs: repeats the step on a CUDA device; ``None`` if it is launched anew each time
    """

    usual_n_updates = 4

    def __init__(
        self,
        optimizer: Adam,
        outputs: Outputs,
        value_scale: ValueScale,
        settings: AdamCritic,
        deferred: bool = False,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(optimizer, outputs, value_scale, settings, deferred)
        self._graphs = graphs

    def _begin(self, batch: RolloutBatch) -> Callable[[Tensor | slice, RolloutBatch], Tensor]:
        policy = []
        if self._outputs.shared:
            with torch.no_grad(), self._outputs.quiet():
                policy = self._outputs.evaluate(*batch.inputs).distributions

        def step(chosen: Tensor | slice, part: RolloutBatch) -> Tensor:
            held = [_taken_apart(detached(d, chosen)) for d in policy]
            return run(self._graphs, "critic", self._take, part, held)

        return step

    def _take(
        self, batch: RolloutBatch, policy: list[tuple[type[Distribution], dict[str, Any]]]
    ) -> Tensor:
        held: Tensor | float = 0.0
        if self._outputs.shared:
            joint = self._outputs.evaluate(*batch.inputs)
            assert joint.values is not None
            old = [kind(**parameters, validate_args=False) for kind, parameters in policy]
            new = joint.distributions
            if self._outputs.noisy:
                with self._outputs.quiet():
                    new = self._outputs.evaluate(*batch.inputs).distributions
            values, held = joint.values, mean_kl(old, new)
        else:
            values = self._outputs.values(batch.observations)
        loss = self._value_scale.loss(values, batch.returns)
        take_step(loss + held, self.optimizer, deferred=self._deferred)
        return loss.detach()


def _taken_apart(distribution: Distribution) -> tuple[type[Distribution], dict[str, Any]]:
    """Take one of SB3's distributions apart, into tensors that a CUDA graph can be given."""
    names = ("loc", "scale") if isinstance(distribution, Normal) else ("logits",)
    return type(distribution), {name: getattr(distribution, name) for name in names}
