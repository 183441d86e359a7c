"""When which inverse is made anew: all together, a few at each step, or in the background."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.blocks import Block, KroneckerBlock
from acktr.kfac.comm import Comm
from acktr.kfac.inverses import Inverted, Pair
from acktr.kfac.options import Periods
from acktr.kfac.refresh import SafeInverse, exchange, invert, publish, refresh


class _Job(NamedTuple):
    """Inverses in the making, or made and not yet in use."""

    blocks: list[KroneckerBlock]
    pairs: list[Pair]
    damping: float | Tensor
    source: tuple[int, float] | None
    result: Future[list[Inverted | None]]


class InverseSchedule:
    """Refreshes the inverses of one parameter group.

    * ``"together"``: all of them at every n-th step (``periods.inverse``).
    * ``"staggered"``: each at every n-th step, but not the same one: the blocks are dealt out by their
      cost, so that all steps take about the same time.
    * ``"background"``: a thread inverts a copy of the factors while steps go on with the inverses they
      have; n steps after its start the result is put into use, waited for if need be. That it
      happens at a fixed step makes two runs with one seed the same. On an accelerator, whose queue runs
      by itself, it is the same delay without a thread.

    A block without an inverse gets one at once. Where neither statistics nor damping have changed since
    an inverse was made, there is nothing to make anew.

    :param periods: when, and how; while they burn in, all inverses are made anew at each step
    """

    def __init__(self, periods: Periods) -> None:
        self.kind = periods.inverse_refresh
        self.periods = periods
        self._job: _Job | None = None
        self._comm = Comm()

    def refresh(
        self,
        blocks: Sequence[Block],
        step: int,
        statistics: int,
        damping: float | Tensor,
        counters: dict[str, Tensor],
        defer: bool,
        comm: Comm,
    ) -> None:
        """Make anew what is due before a step.

        :param blocks: those that will move
        :param step: steps taken so far
        :param statistics: how often statistics were taken so far
        :param damping: lambda
        :param counters: see :func:`acktr.kfac.refresh.refresh`
        :param defer: do not look at the result from the host
        :param comm: the processes that share the work
        """
        self._comm = comm
        if self.kind == "background" and self.periods.phase(step) == 0:
            self._publish(counters, defer)
        now, later = self.due(blocks, step, statistics, damping)
        self._start(later, damping, _source(statistics, damping), defer)
        refresh([b.inverse for b in now], [b.pair for b in now], damping, counters, defer, comm)
        self.count(blocks, now, statistics, damping)

    def due(
        self, blocks: Sequence[Block], step: int, statistics: int, damping: float | Tensor
    ) -> tuple[list[KroneckerBlock], list[KroneckerBlock]]:
        """Return the blocks that get an inverse before a step, and those whose inverse is begun."""
        invertible = [b for b in blocks if isinstance(b, KroneckerBlock)]
        phase = self.periods.phase(step)
        now = [b for b in invertible if not b.has_inverse]
        source = _source(statistics, damping)
        due = [b for b in invertible if b.has_inverse and (not source or b.inverse.source != source)]
        if step < self.periods.burn_in:
            return now + due, []
        if self.kind == "staggered":
            turn = self._turns(invertible)[phase]
            return now + [b for b in due if b in turn], []
        if phase:
            return now, []
        return (now, due) if self.kind == "background" else (now + due, [])

    @staticmethod
    def count(
        blocks: Sequence[Block],
        renewed: Sequence[KroneckerBlock],
        statistics: int,
        damping: float | Tensor,
    ) -> None:
        """Note of which statistics new inverses are, and that all of them serve one step more."""
        for block in renewed:
            block.inverse.source = _source(statistics, damping)
        for served in blocks:
            if isinstance(served, KroneckerBlock):
                served.inverse.age += 1

    def _turns(self, blocks: Sequence[KroneckerBlock]) -> list[list[KroneckerBlock]]:
        """Deal blocks out to the steps of a period, the dearest first, each to the cheapest step."""
        turns: list[list[KroneckerBlock]] = [[] for _ in range(self.periods.inverse)]
        costs = [0] * self.periods.inverse
        for block in sorted(blocks, key=_cost, reverse=True):
            cheapest = costs.index(min(costs))
            turns[cheapest].append(block)
            costs[cheapest] += _cost(block)
        return turns

    def _start(
        self,
        blocks: list[KroneckerBlock],
        damping: float | Tensor,
        source: tuple[int, float] | None,
        defer: bool,
    ) -> None:
        if not blocks:
            return
        pairs = [b.pair.clone() for b in blocks]
        inverses = [b.inverse for b in blocks]
        work = functools.partial(_invert, inverses, pairs, damping, defer, self._comm)
        result = _done(work()) if defer else _worker().submit(work)
        self._job = _Job(blocks, pairs, damping, source, result)

    def _publish(self, counters: dict[str, Tensor], defer: bool) -> None:
        job = self._job
        if job is not None:
            found = self._finished(job)
            self._job = None
            inverses = [b.inverse for b in job.blocks]
            publish(inverses, found, job.pairs, job.damping, counters, defer)
            for inverse in inverses:
                inverse.source = job.source

    def _finished(self, job: _Job) -> list[Inverted]:
        """Wait for the inverses of this process, and for those of the others."""
        inverses = [b.inverse for b in job.blocks]
        found = exchange(inverses, job.result.result(), job.pairs, self._comm)
        self._job = job._replace(result=_done(found))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what is made and not yet in use, after waiting for it."""
        if self._job is None:
            return {}
        blocks, pairs, damping, source, _ = self._job
        found = zip(blocks, pairs, self._finished(self._job), strict=True)
        return {
            "damping": damping,
            "source": source,
            "blocks": {b.name: ([p.A, p.S], tensors, ok) for b, p, (tensors, ok) in found},
        }

    def load_state_dict(self, state: dict[str, Any], blocks: Sequence[Block]) -> None:
        """Restore :meth:`state_dict`."""
        self._job = None
        by_name = {b.name: b for b in blocks if isinstance(b, KroneckerBlock)}
        waiting = state.get("blocks", {})
        if not waiting:
            return
        own = [by_name[name] for name in waiting]
        pairs, found = [], []
        for block, (factors, tensors, ok) in zip(own, waiting.values(), strict=True):
            like = next(iter(block.params.values()))
            A, S = (x.to(like, copy=True) for x in factors)
            pairs.append(block.pair._replace(A=A, S=S))
            found.append(([x.to(like, copy=True) for x in tensors], ok.to(like.device)))
        self._job = _Job(own, pairs, state["damping"], state["source"], _done(found))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy with the result in the place of the thread's promise."""
        job = self._job
        finished = None if job is None else (*job[:-1], self._finished(job))
        return {**self.__dict__, "_job": finished, "_comm": Comm()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo :meth:`__getstate__`."""
        self.__dict__.update(state)
        if state["_job"] is not None:
            blocks, pairs, damping, source, found = state["_job"]
            self._job = _Job(blocks, pairs, damping, source, _done(found))


def _source(statistics: int, damping: float | Tensor) -> tuple[int, float] | None:
    # A damping on the device cannot be compared without a look at it.
    return None if isinstance(damping, Tensor) else (statistics, damping)


def _cost(block: KroneckerBlock) -> int:
    return sum(kind.cost for kind in block.inverse.kinds)


def _invert(
    inverses: list[SafeInverse], pairs: list[Pair], damping: float | Tensor, defer: bool, comm: Comm
) -> list[Inverted | None]:
    with torch.no_grad():  # gradient modes belong to threads
        return invert(inverses, pairs, damping, defer, comm)


def _done(found: Sequence[Inverted | None]) -> Future[list[Inverted | None]]:
    """Return the promise of what is there already."""
    result: Future[list[Inverted | None]] = Future()
    result.set_result(list(found))
    return result


@functools.cache
def _worker() -> ThreadPoolExecutor:
    """One thread for all optimisers: LAPACK lets go of the interpreter, a second one would queue."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="kfac-inverses")
