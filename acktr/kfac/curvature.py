"""From one captured forward pass to the statistics of all blocks, of one process or of many."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from acktr.kfac import nodes
from acktr.kfac.assignment import Task
from acktr.kfac.averages import Gram, precise
from acktr.kfac.blocks import Block, KroneckerBlock
from acktr.kfac.comm import Comm
from acktr.kfac.diagonal import DiagonalBlock
from acktr.kfac.graph import Graph
from acktr.kfac.layouts import choose, layouts, weights_of_samples
from acktr.kfac.likelihood import Likelihood, OutputCotangent, random_signs, sample_count
from acktr.kfac.passes import statistics
from acktr.kfac.samples import Batch
from acktr.kfac.structure import Known, Structure
from acktr.kfac.uses import Layout, Owners, Use, Used, read


class Drawn(NamedTuple):
    """Statistics of one block before they are averaged in.

    :param block: theirs
    :param sources: what they are made of
    :param make: makes them, as tensors or as Gram matrices yet to be multiplied out
    """

    block: Block
    sources: list[Tensor]
    make: Callable[[], tuple[Tensor | Gram, ...]]


_ON_VALUES = ("factor", "term")  # roles of what acts on values, which may be parameters too


class _Work(NamedTuple):
    """One use that is to be read.

    :param place: of the task among all, for what is remembered of it
    :param layouts: where its samples may be; none where that is not needed, or there is no such place
    :param asks: whether the graph has to say where the samples are
    :param ragged: whether a use of its block has rows that are no equal parts of the samples, so that
        each batch is asked whose rows are whose
    """

    block: Block
    task: Task
    use: Use
    place: Hashable
    layouts: list[Layout]
    asks: bool
    ragged: bool = False


def draw_statistics(
    structure: Structure,
    likelihoods: list[Likelihood],
    estimator: str,
    retain_graph: bool,
    comm: Comm,
) -> list[Drawn]:
    """Draw cotangents and pull them back to the uses of all parameters.

    :param structure: finds them
    :param likelihoods: the model's outputs, over the same N samples
    :param estimator: one of :data:`acktr.kfac.likelihood.ESTIMATORS`
    :param retain_graph: keep the graph for the backward pass of the loss
    :param comm: the processes that train one model
    :return: of each block that takes part
    :raises RuntimeError: the distributions do not depend on a parameter of the optimiser
    :raises ValueError: distributions over different numbers of samples
    """
    batch = sample_count(likelihoods)
    for block in structure:
        block.track_frozen()
    if not batch:  # as of an expert that nothing was sent to
        structure.find_nothing(comm)
        return []
    pairs, counts = _cotangents(likelihoods, estimator)
    if not pairs:
        raise RuntimeError(
            "The distributions do not depend on a captured layer: build them from the outputs of the "
            "captured forward pass, with gradients on."
        )
    graph, known = structure.find(pairs, batch, comm)
    if not known.tasks and comm.alone:
        raise RuntimeError(
            "The distributions do not depend on any parameter of this optimiser's groups: pass "
            "those whose likelihood these parameters change."
        )
    drawn = None
    while drawn is None:
        drawn = _read(graph, known, pairs, counts, retain_graph, structure.diagonal_memory)
    return drawn


def _read(
    graph: Graph,
    known: Known,
    pairs: Sequence[OutputCotangent],
    counts: Batch,
    retain_graph: bool,
    diagonal_memory: bool,
) -> list[Drawn] | None:
    """Pull cotangents back, and read what arrives at the uses of each block.

    :param known: of this graph; what it says of layouts grows
    :return: ``None`` where a use that seemed to act on samples acts on other parameters; the next time
        this is known
    """
    batch = counts.samples
    with torch.no_grad():  # what was saved has a history
        work, bare = _work(graph, known, batch)
    unfed = [pair for pair, alone in zip(pairs, known.alone, strict=True) if alone]
    fed = [pair for pair, alone in zip(pairs, known.alone, strict=True) if not alone]
    # An output that no layer feeds (a state-independent log_std) has one Jacobian for all samples:
    # one sign for all of them makes the estimate exact where parameters act elementwise.
    common = _pull_back(
        [(p.output, p.root * random_signs(p.root[:1])) for p in unfed if p.root is not None],
        bare,
        retain_graph=True,
    )
    places = {w.task.site.node: i for i, w in reversed(list(enumerate(work)))}
    edges = [GradientEdge(graph.nodes[node], 0) for node in places]
    order = {node: i for i, node in enumerate(places)}
    asked = [w for w in work if w.asks and w.place not in known.layouts]
    weighted: list[Tensor | None] = []
    if asked:
        weighted = _pull_back([(p.output, _weighted(p.cotangent, batch)) for p in fed], edges, True)
    inputs = [*edges, *bare]
    # What is shown to Kronecker blocks of a memory is no gradient of its weights.
    shown = nullcontext() if diagonal_memory else statistics()
    fed_pairs = [(p.output, p.cotangent) for p in fed]
    grads = _pull_back(fed_pairs, inputs, retain_graph or bool(asked), shown)
    with torch.no_grad():
        told: dict[Hashable, Layout | Owners | None] = {}
        for w in asked:
            at = order[w.task.site.node]
            plain, other = grads[at], weighted[at]
            if plain is not None and other is not None:
                guess = w.task.site.role not in _ON_VALUES
                found = told[w.place] = choose(w.use, w.layouts, plain, other, batch, guess)
                # Whose rows are whose differs from batch to batch; that they are nobody's does not.
                if found is None or not (w.ragged or isinstance(found, Owners)):
                    known.layouts[w.place] = found
        if any(told.get(w.place, ()) is None and w.task.site.role in _ON_VALUES for w in asked):
            return None
        squares = _squares_of_bare(grads[len(edges) :], common, counts)
        by_param = {id(p): square for p, square in zip(bare, squares, strict=True)}
        used: dict[int, list[tuple[Task, Used]]] = {}
        for w in work:
            grad = grads[order[w.task.site.node]]
            if grad is not None:
                certain = known.layouts.get(w.place, w.layouts[0] if w.layouts else None)
                layout = told.get(w.place, certain)
                of_use = Used(w.use, grad, layout, w.task.groups, w.task.form)
                used.setdefault(id(w.block), []).append((w.task, of_use))
        drawn = [_drawn(b, used.get(id(b), []), by_param, counts) for b, _ in known.tasks]
    return [u for u in drawn if u is not None]


def _cotangents(
    likelihoods: Sequence[Likelihood], estimator: str
) -> tuple[list[OutputCotangent], Batch]:
    """Draw cotangents of all outputs, in the units of the first likelihood."""
    first, *others = likelihoods
    units = first.units
    pairs = first.cotangents(estimator)
    for other in others:
        factor = (units / other.units) ** 0.5
        pairs += [pair.scaled(factor) for pair in other.cotangents(estimator)]
    batch = Batch(first.samples, units, any(x.partial for x in likelihoods))
    return [pair for pair in pairs if pair.output.requires_grad], batch


def _work(graph: Graph, known: Known, batch: int) -> tuple[list[_Work], list[Tensor]]:
    """Return the uses that are to be read, and the parameters whose gradient alone is looked at."""
    work: list[_Work] = []
    bare: list[Tensor] = []
    for i, (block, tasks) in enumerate(known.tasks):
        if not block.params:
            continue
        of_block = _work_of(block, tasks, graph, batch, i, known)
        if of_block is None:
            bare.extend(block.params.values())
        else:
            work.extend(of_block)
    return work, bare


def _work_of(
    block: Block, tasks: Sequence[Task], graph: Graph, batch: int, place: int, known: Known
) -> list[_Work] | None:
    """Return the uses of a block; ``None`` where there is nothing to read but gradients."""
    work = []
    by_sample = not isinstance(block, KroneckerBlock) or block.needs_samples
    ragged, several = False, len({task.site.node for task in tasks}) > 1
    for j, task in enumerate(tasks):
        node = graph.nodes[task.site.node]
        use = read(node, task.site)
        use.created = nodes.created(node)
        found: list[Layout] = []
        asks = False
        remembered = (place, j, use.lead, batch)
        if by_sample:
            found = layouts(use, task.site, batch)
            on_values = task.site.role in _ON_VALUES
            if on_values and (not found or known.layouts.get(remembered, ()) is None):
                return None  # it acts on all samples alike, or nobody knows where they are
            ragged |= not found and remembered not in known.layouts
            asks = len(found) > 1 or on_values or several  # the order of samples may differ
        work.append(_Work(block, task, use, remembered, found, by_sample and (asks or not found)))
    return [w._replace(ragged=ragged, asks=w.asks or ragged) for w in work] or None


def _weighted(cotangent: Tensor, batch: int) -> Tensor:
    if cotangent.ndim == 0 or len(cotangent) != batch:
        return cotangent
    return cotangent * weights_of_samples(batch, cotangent).view(-1, *[1] * (cotangent.ndim - 1))


@torch.no_grad()
def average_in(drawn: Sequence[Drawn], defer: bool) -> Tensor:
    """Average the statistics of this process into their blocks.

    :param defer: do not look at values from the host
    :return: how many blocks refused theirs because they are not finite (0-dim tensor)
    """
    if not drawn:
        return torch.zeros(())
    if not defer and _all_finite([x for u in drawn for x in u.sources]):
        # One look at everything: each block is looked at by itself only if something is wrong.
        for u in drawn:
            u.block.average.update(u.make(), True, u.block.like)
        return torch.zeros(())
    finite = [_all_finite(u.sources) for u in drawn]
    for u, ok in zip(drawn, finite, strict=True):
        u.block.average.update(u.make(), ok if defer else bool(ok), u.block.like)
    return torch.stack(finite).logical_not().sum()


@torch.no_grad()
def share(
    drawn: Sequence[Drawn], blocks: Sequence[Block], comm: Comm, defer: bool
) -> Callable[[], Tensor]:
    """Begin to average the statistics of all processes.

    Large ones travel while the backward pass of the loss runs, small ones with its gradients. What is
    not finite on one process is not finite in the mean, so that all processes refuse the same.

    :param blocks: all blocks of the optimiser; one that takes no part on a process does not count there
    :param defer: do not look at values from the host
    :return: waits, averages the means into the blocks, and returns what :func:`average_in` does
    """
    trained = [b for b in blocks if b.params]
    made = {id(u.block): u.make() for u in drawn}
    takes_part = torch.tensor([float(id(b) in made) for b in trained], device=trained[0].like.device)
    own = []
    for block in trained:
        new = made.pop(id(block), None) or [block.like.new_zeros(s) for s in block.shapes(block.params)]
        own.append([(x.dense() if isinstance(x, Gram) else x).to(block.like) for x in new])
    finish = comm.sum_together([takes_part, *itertools.chain(*own)], symmetric=True)

    @torch.no_grad()
    def finish_and_average() -> Tensor:
        counts, *sums = finish()
        if defer or not (counts == comm.size).all():
            # Where a block took no part on some process, the mean is over the others.
            each = [n.clamp_min(1.0) for n, new in zip(counts, own, strict=True) for _ in new]
            for total, n in zip(sums, each, strict=True):
                total.div_(n)
        else:
            torch._foreach_div_(sums, comm.size)
        used: Any = counts > 0 if defer else (counts > 0).tolist()
        left = iter(sums)
        means = [tuple(next(left) for _ in new) for new in own]
        if not defer and _all_finite(sums):
            finite = torch.ones(len(trained), dtype=torch.bool)
        else:
            finite = torch.stack([_all_finite(list(of_block)) for of_block in means])
        for block, mean, ok, there in zip(trained, means, finite, used, strict=True):
            if defer:
                block.average.update(mean, ok & there, block.like)
            elif there:
                block.average.update(mean, bool(ok), block.like)
        return finite.logical_not().sum()

    return finish_and_average


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether all entries, and the sum of their squares, are finite (0-dim bool tensor)."""
    return torch.nn.utils.get_total_norm(tensors).isfinite()


def _pull_back(
    pairs: list[tuple[Tensor, Tensor]],
    inputs: list[Any],
    retain_graph: bool,
    shown: AbstractContextManager[None] | None = None,
) -> list[Tensor | None]:
    """Return ``J' v`` for each input, summed over pairs; ``None`` where no output depends on it.

    :param shown: what the pass is of; of the statistics, if it is not given
    """
    if not pairs or not inputs:
        return [None] * len(inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    with shown or statistics():
        return list(torch.autograd.grad(outputs, inputs, cotangents, retain_graph, allow_unused=True))


def _squares_of_bare(
    own: Sequence[Tensor | None], common: Sequence[Tensor | None], batch: Batch
) -> list[Tensor | None]:
    """Mean squares for bare parameters, from batch gradients of either kind.

    :param own: gradients with independent signs for each sample: the mean square is ``g^2 / units``
    :param common: gradients with one sign for all samples: N times that of one sample
    """
    squares: list[Tensor | None] = []
    for mine, shared in zip(own, common, strict=True):
        parts = [] if mine is None else [precise(mine).square() / batch.units]
        if shared is not None:
            parts.append((precise(shared) / batch.samples).square() * (batch.samples / batch.units))
        squares.append(torch.stack(parts).sum(0) if parts else None)
    return squares


def _drawn(
    block: Block,
    uses: list[tuple[Task, Used]],
    squares: dict[int, Tensor | None],
    batch: Batch,
) -> Drawn | None:
    """Return one block's statistics; ``None`` if it takes no part."""
    own = [square for p in block.params.values() if (square := squares.get(id(p))) is not None]
    if own:
        return Drawn(block, own, partial(DiagonalBlock.flat, own))
    if not uses or not block.params:
        return None
    inputs = [x for _, used in uses for x in used.use.inputs]
    sources = [*inputs, *(used.grads for _, used in uses)]
    if isinstance(block, KroneckerBlock):
        return Drawn(block, sources, partial(block.statistics, [used for _, used in uses], batch))
    assert isinstance(block, DiagonalBlock)
    named = [(task.param, used, task.site) for task, used in uses]
    return Drawn(block, sources, partial(block.statistics, named, batch))
