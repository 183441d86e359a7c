"""From one captured forward pass to the statistics of all blocks, of one process or of many."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from acktr.kfac.blocks import Block, DiagonalBlock, KroneckerBlock
from acktr.kfac.capture import Capture, Record, reaches
from acktr.kfac.comm import Comm
from acktr.kfac.factors import Gram
from acktr.kfac.fisher import OutputCotangent, batch_size, output_cotangents, random_signs


class Drawn(NamedTuple):
    """Statistics of one block before they are averaged in.

    :param block: theirs
    :param sources: what they are made of
    :param make: makes them, as tensors or as Gram matrices yet to be multiplied out
    """

    block: Block
    sources: list[Tensor]
    make: Callable[[], tuple[Tensor | Gram, ...]]


def draw_statistics(
    blocks: Sequence[Block],
    capture: Capture,
    distributions: list[Distribution],
    estimator: str,
    retain_graph: bool,
) -> list[Drawn]:
    """Draw cotangents and pull them back to the layer outputs.

    :param blocks: all blocks of the optimiser
    :param capture: the forward pass that led to the distributions
    :param distributions: the model's outputs, over the same N samples
    :param estimator: one of :data:`acktr.kfac.fisher.ESTIMATORS`
    :param retain_graph: keep the graph for the backward pass of the loss
    :return: of each block that takes part
    :raises RuntimeError: the distributions do not depend on a captured layer or bare parameter
    :raises ValueError: distributions over different numbers of samples
    """
    batch = batch_size(distributions)
    for block in blocks:
        block.track_frozen()
    bare = [p for block in blocks if _is_bare(block) for p in block.params.values()]
    captured = [(name, record) for name, group in capture.records.items() for record in group]
    layers = {block.name for block in blocks if not _is_bare(block)}
    records = [(name, record) for name, record in captured if name in layers]
    pairs = [pair for d in distributions for pair in output_cotangents(d, estimator)]
    pairs = [pair for pair in pairs if pair.output.requires_grad]
    if not pairs or not (records or bare):
        raise RuntimeError(
            "The distributions do not depend on a captured layer: build them from the outputs of the "
            "captured forward pass, with gradients on."
        )
    fed: list[OutputCotangent] = []
    unfed: list[OutputCotangent] = []
    for pair in pairs:
        alone = pair.root is not None and not reaches(pair.output, [r for _, r in captured])
        (unfed if alone else fed).append(pair)
    # An output that no layer feeds (a state-independent log_std) has one Jacobian for all samples:
    # one sign for all of them makes the estimate exact where parameters act elementwise.
    common = _pull_back(
        [(p.output, p.root * random_signs(p.root[:1])) for p in unfed if p.root is not None],
        bare,
        retain_graph=True,
    )
    grads = _pull_back(
        [(p.output, p.cotangent) for p in fed],
        [*(record.edge for _, record in records), *bare],
        retain_graph,
    )
    with torch.no_grad():
        squares = _squares_of_bare(grads[len(records) :], common, batch)
        by_param = {id(p): square for p, square in zip(bare, squares, strict=True)}
        used: dict[str, tuple[list[Record], list[Tensor]]] = {}
        for (name, record), grad in zip(records, grads, strict=False):  # grads ends with bare's
            if grad is not None:
                of_name = used.setdefault(name, ([], []))
                of_name[0].append(record)
                of_name[1].append(grad)
        drawn = [_drawn(b, *used.get(b.name, ([], [])), by_param, batch) for b in blocks]
    found = [u for u in drawn if u is not None]
    if not found:
        raise RuntimeError(
            "The distributions do not depend on any parameter of this optimiser's groups: pass "
            "those whose likelihood these parameters change."
        )
    return found


@torch.no_grad()
def average_in(drawn: Sequence[Drawn], defer: bool) -> Tensor:
    """Average the statistics of this process into their blocks.

    :param defer: do not look at values from the host
    :return: how many blocks refused theirs because they are not finite (0-dim tensor)
    """
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


def _is_bare(block: Block) -> bool:
    return isinstance(block, DiagonalBlock) and block.layer is None


def _pull_back(
    pairs: list[tuple[Tensor, Tensor]], inputs: list[Any], retain_graph: bool
) -> list[Tensor | None]:
    """Return ``J' v`` for each input, summed over pairs; ``None`` where no output depends on it."""
    if not pairs or not inputs:
        return [None] * len(inputs)
    outputs, cotangents = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(outputs, inputs, cotangents, retain_graph=retain_graph, allow_unused=True)
    )


def _squares_of_bare(
    own: Sequence[Tensor | None], common: Sequence[Tensor | None], batch: int
) -> list[Tensor | None]:
    """Mean squares for bare parameters, from batch gradients of either kind.

    :param own: gradients with independent signs for each sample: the mean square is ``g^2 / N``
    :param common: gradients with one sign for all samples: N times that of one sample
    """
    squares: list[Tensor | None] = []
    for mine, shared in zip(own, common, strict=True):
        parts = [] if mine is None else [mine.square() / batch]
        parts += [] if shared is None else [(shared / batch).square()]
        squares.append(torch.stack(parts).sum(0) if parts else None)
    return squares


def _drawn(
    block: Block,
    records: list[Record],
    grads: list[Tensor],
    squares: dict[int, Tensor | None],
    batch: int,
) -> Drawn | None:
    """Return one block's statistics; ``None`` if it takes no part."""
    if _is_bare(block):
        assert isinstance(block, DiagonalBlock)
        own = [square for p in block.params.values() if (square := squares[id(p)]) is not None]
        return Drawn(block, own, partial(block.flat, own)) if own else None
    if not grads or not block.params:
        return None
    assert isinstance(block, (KroneckerBlock, DiagonalBlock))
    inputs = [r.inputs for r in records if isinstance(r.inputs, Tensor) and r.inputs.is_floating_point()]
    return Drawn(block, [*inputs, *grads], partial(block.statistics, records, grads, batch))
