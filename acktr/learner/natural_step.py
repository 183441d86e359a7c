"""One natural-gradient step, the actor's and the critic's alike, of one process or of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from acktr import distributed
from acktr.errors import ConfigurationError, DivergenceError
from acktr.kfac import KFAC, Graphs
from acktr.kfac.cuda_graphs import RecordingError
from acktr.kfac.likelihood import detached
from acktr.learner.trust_region import LEAST_KL
from acktr.learner.undo import Undo
from acktr.rollout.batch import RolloutBatch


class Said(Protocol):
    """The outputs of networks for a batch."""

    @property
    def distributions(self) -> list[Any]:
        """The parts of their joint distribution."""


class Model(Protocol):
    """Networks that learn from a batch: the actor's, the critic's, or both."""

    def evaluate(self, batch: RolloutBatch) -> Any:
        """Send a batch through the networks; see :class:`Said`."""

    def losses(self, said: Any, batch: RolloutBatch) -> dict[str, Tensor]:
        """Return the loss under ``"loss"``, and its parts by the last part of their key in the log."""

    def improvement(self, before: Any, after: Any, batch: RolloutBatch) -> Tensor:
        """Return by how much a step lowered the loss of a batch, 0-dim tensor."""


class Step(NamedTuple):
    """The traces of one step.

    :param losses: as the model has them, before the step, detached
    :param loss: that under ``"loss"``, as the mean over all ranks
    :param part: the samples whose curvature was taken, or all of them
    :param old: the model's distributions there before the step
    """

    losses: dict[str, Tensor]
    loss: Tensor
    part: RolloutBatch
    old: list[Any]


class NaturalStep:
    """A K-FAC step: curvature of the model's own distribution, gradient of the loss, and the move.

    :param kfac: moves the parameters
    :param sub_sampling_factor: curvature is taken of one sample in so many
    :param quiet: a context in which the networks draw nothing at random; ``None`` where they never do
    :param deferred: whether a look at a value would wait for the device; then whoever makes the update
        checks its losses when it is done, and has :class:`Undo` for it
    :param graphs: repeats the step on a CUDA device; ``None`` if it is launched anew each time
    :param name: of whose step it is, for messages
    """

    def __init__(
        self,
        kfac: KFAC,
        sub_sampling_factor: int = 1,
        *,
        quiet: Callable[[], AbstractContextManager[None]] | None = None,
        deferred: bool = False,
        graphs: Graphs | None = None,
        name: str = "actor",
    ) -> None:
        self.kfac = kfac
        self._factor = sub_sampling_factor
        self._quiet = quiet
        self._deferred = deferred
        self._graphs = graphs
        self._name = name

    def __call__(
        self,
        model: Model,
        batch: RolloutBatch,
        relative_bound: float | None = None,
        curvature: bool = True,
    ) -> Step:
        """Make one step.

        :param relative_bound: KL bound of the step as a fraction of the loss; ``None``: as it is
        :param curvature: take the curvature of the batch; else the step is made with that of before
        :return: what the step leaves behind, valid until the next one
        :raises DivergenceError: the loss is not finite on some rank; the step is not taken
        :raises ConfigurationError: it cannot be a CUDA graph
        """

        def work(part: RolloutBatch, curvature: bool) -> Step:
            return self._take(model, part, relative_bound, curvature)

        return run(self._graphs, self._name, work, batch, curvature)

    def _take(
        self, model: Model, batch: RolloutBatch, relative_bound: float | None, curvature: bool
    ) -> Step:
        samples_statistics = curvature and self._factor > 1 and not self.kfac.needs_exact_fisher
        # Where curvature is taken of a part, the pass of that part is recorded.
        with self.kfac.capture() if curvature and not samples_statistics else nullcontext():
            seen = said = model.evaluate(batch)
        losses = model.losses(said, batch)
        # Several ranks average losses and statistics in one message, and check before they use either.
        if distributed.size() == 1 and not self._deferred:
            check_loss(losses["loss"])
        adapts = self.kfac.param_groups[0]["adapt_damping"]
        before = self._evaluate_quietly(model, batch) if adapts and self._quiet else said
        part = batch
        if samples_statistics:
            part = batch.sample(self._factor)
            with self.kfac.capture():
                seen = model.evaluate(part)
        if curvature:
            self.kfac.update_curvature(*seen.distributions)
        exact = self.kfac.needs_exact_fisher
        if exact and self._factor > 1:
            sample = batch.sample(self._factor)
            self.kfac.use_exact_fisher(*model.evaluate(sample).distributions)
        elif exact and not curvature:
            self.kfac.use_exact_fisher(*said.distributions)
        # The exact Fisher of the whole batch goes through the graph once more.
        again = exact and self._factor == 1
        loss = take_step(
            losses["loss"], self.kfac, relative_bound, retain_graph=again, deferred=self._deferred
        )
        if self.kfac.wants_reduction:
            with torch.no_grad():
                after = self._evaluate_quietly(model, batch)
                self.kfac.report_reduction(model.improvement(before, after, batch))
        detached_losses = {name: loss.detach() for name, loss in losses.items()}
        return Step(detached_losses, loss, part, [without_graph(d) for d in seen.distributions])

    @torch.no_grad()
    def _evaluate_quietly(self, model: Model, batch: RolloutBatch) -> Any:
        """Evaluate a batch with the networks that act: without dropout."""
        with self._quiet() if self._quiet else nullcontext():
            return model.evaluate(batch)


def run(graphs: Graphs | None, name: str, work: Callable[..., Any], *inputs: Any) -> Any:
    """Do work, as a CUDA graph if there is to be one.

    :param graphs: of the optimiser that steps
    :param name: of the work
    :param work: the same one each time
    :param inputs: what of it changes from one time to the next
    :return: what ``work`` returns, valid until the next time
    :raises ConfigurationError: it cannot be a CUDA graph
    """
    if graphs is None:
        return work(*inputs)
    try:
        return graphs(name, work, *inputs)
    except RecordingError as error:
        raise ConfigurationError(f"cuda_graphs=True is not possible. {error}") from error


def without_graph(distribution: Any) -> Any:
    """Let go of a graph that nothing needs any more; an unknown distribution is kept as it is."""
    try:
        return detached(distribution)
    except TypeError:
        return distribution


def learns(optimizer: Optimizer) -> bool:
    """Whether any of an optimiser's parameters is to be trained now, and not all of them are frozen."""
    return any(p.requires_grad for group in optimizer.param_groups for p in group["params"])


def take_step(
    loss: Tensor,
    optimizer: Optimizer,
    relative_bound: float | None = None,
    *,
    retain_graph: bool = False,
    deferred: bool = False,
) -> Tensor:
    """Step on a loss that is finite on all ranks.

    :param loss: 0-dim tensor with its graph
    :param optimizer: of the parameters to move
    :param relative_bound: KL bound of the step as a fraction of the loss; ``None``: as it is
    :param retain_graph: for the optimiser, which goes through it once more
    :param deferred: leave it to the caller to look at the loss
    :return: the mean of the loss over all ranks, detached
    :raises DivergenceError: the loss is not finite on some rank; the step is not taken
    """
    optimizer.zero_grad()
    loss.backward(retain_graph=retain_graph)
    of_all = distributed.mean_gradients(optimizer, loss)
    if not deferred:
        check_loss(of_all)
    if relative_bound is not None:
        bound = relative_bound * (of_all if deferred else of_all.item())
        least = bound.clamp_min(LEAST_KL) if isinstance(bound, Tensor) else max(bound, LEAST_KL)
        optimizer.param_groups[0]["target_kl"] = least
    optimizer.step()
    return of_all


def check_loss(loss: Tensor) -> None:
    """Refuse a loss before any step is taken on it.

    :param loss: 0-dim tensor
    :raises DivergenceError: it is not finite
    """
    if not math.isfinite(loss.item()):
        raise DivergenceError(
            "The loss is not finite and its step was not taken: lower target_kl or raise damping, and "
            "look at the returns."
        )


def check_losses(losses: list[Tensor], undo: Undo) -> None:
    """Look at the losses of an update, after all its steps.

    :param losses: 0-dim tensors
    :param undo: takes the steps back
    :raises DivergenceError: one is not finite; nothing of the update is left
    """
    total = torch.stack(losses).sum()
    if not total.isfinite():
        undo()
        check_loss(total)
