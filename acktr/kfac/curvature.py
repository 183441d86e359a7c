"""From one captured forward pass to the statistics of all blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from acktr.kfac.blocks import Block, DiagonalBlock, KroneckerBlock
from acktr.kfac.capture import Capture, Record, reaches
from acktr.kfac.fisher import OutputCotangent, batch_size, output_cotangents, random_signs


def take_statistics(
    blocks: Sequence[Block],
    capture: Capture,
    distributions: list[Distribution],
    estimator: str,
    retain_graph: bool,
    defer: bool,
) -> Tensor:
    """Draw cotangents, pull them back to the layer outputs, and average them into the blocks.

    :param blocks: all blocks of the optimiser
    :param capture: the forward pass that led to the distributions
    :param distributions: the model's outputs, over the same N samples
    :param estimator: one of :data:`acktr.kfac.fisher.ESTIMATORS`
    :param retain_graph: keep the graph for the backward pass of the loss
    :param defer: do not look at values from the host
    :return: how many blocks refused their statistics because they are not finite (0-dim tensor)
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
        updates = [_update_of(b, *used.get(b.name, ([], [])), by_param, batch) for b in blocks]
        found = [u for u in updates if u is not None]
        if not found:
            raise RuntimeError(
                "The distributions do not depend on any parameter of this optimiser's groups: pass "
                "those whose likelihood these parameters change."
            )
        if not defer and _all_finite([x for u in found for x in u.tensors]):
            # One look at everything: each block is looked at by itself only if something is wrong.
            for u in found:
                u.apply(True)
            return torch.zeros(())
        finite = [_all_finite(u.tensors) for u in found]
        for u, ok in zip(found, finite, strict=True):
            u.apply(ok if defer else bool(ok))
        return torch.stack(finite).logical_not().sum()


class _Update(NamedTuple):
    """Statistics of one block before they are averaged in.

    :param tensors: what they are made of
    :param apply: averages them in, told whether they are finite
    """

    tensors: list[Tensor]
    apply: Callable[[bool | Tensor], None]


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


def _update_of(
    block: Block,
    records: list[Record],
    grads: list[Tensor],
    squares: dict[int, Tensor | None],
    batch: int,
) -> _Update | None:
    """Return how to average one block's statistics in; ``None`` if it takes no part."""
    if _is_bare(block):
        assert isinstance(block, DiagonalBlock)
        own = [square for p in block.params.values() if (square := squares[id(p)]) is not None]
        return _Update(own, partial(block.update_from_batch, own)) if own else None
    if not grads or not block.params:
        return None
    assert isinstance(block, (KroneckerBlock, DiagonalBlock))
    inputs = [r.inputs for r in records if isinstance(r.inputs, Tensor) and r.inputs.is_floating_point()]
    return _Update([*inputs, *grads], partial(block.update, records, grads, batch))
