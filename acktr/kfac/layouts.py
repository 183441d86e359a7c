"""Which rows belong to which sample.

The axis of the samples is the one that has their number. Where several have, or none, as of sequences
that are packed or of chosen positions, the graph is asked: a second backward pass, whose cotangent
weights each sample differently, shows in every row whose it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac.graph import Site
from acktr.kfac.uses import ElementwiseUse, Layout, Owners, TableUse, Use

_SURE = 0.1  # of the distance between two weights: how far a row may be from that of its sample


def layouts(use: Use, site: Site, batch: int) -> list[Layout]:
    """Return where the samples may be among the entries of ``use.lead``, as its lengths say.

    :return: one where that is certain; several, of which :func:`choose` finds the right one; none where
        the rows belong to no sample in equal parts
    """
    rows = math.prod(use.lead)
    if not batch or rows % batch or (isinstance(use, TableUse) and use.ragged):
        return []
    if rows == batch:
        return [(1, 1)]
    shapes = [use.lead]
    for shape in site.after:
        prefixes = [shape[:n] for n in range(1, len(shape)) if math.prod(shape[:n]) == rows]
        shapes += prefixes[:1] if not isinstance(use, ElementwiseUse) else []
    found = []
    for lead in shapes:
        for axis, length in enumerate(lead):
            layout = math.prod(lead[:axis]), math.prod(lead[axis + 1 :])
            if length == batch and layout not in found:
                found.append(layout)
    if found or site.role in ("factor", "term"):
        return found
    positions = rows // batch
    return [(n, positions // n) for n in range(1, positions + 1) if positions % n == 0]


def weights_of_samples(batch: int, like: Tensor) -> Tensor:
    """Return a weight for each sample, ``(N,)``, which no sample shares with its neighbours."""
    steps = torch.arange(batch, device=like.device, dtype=like.dtype)
    return 1.0 + (steps * 0.6180339887498949).remainder(1.0) * 3.0


def choose(
    use: Use, found: Sequence[Layout], plain: Tensor, weighted: Tensor, batch: int, guess: bool = True
) -> Layout | Owners | None:
    """Return where the samples are: the layout in which rows grow by the weights of their samples.

    :param found: of :func:`layouts`
    :param plain: gradient of the use's output
    :param weighted: the same with each sample's cotangent multiplied by its weight
    :param guess: where rows mix samples, as those of attention across a batch do, take what fits best
    :return: one of ``found``, or the sample of each row where none of them is right; ``None`` for rows
        that are nobody's
    """
    energies = [_energies(use, grads) for grads in (plain, weighted)]
    moves = energies[0] > 0
    ratio = (energies[1][moves] / energies[0][moves]).sqrt()
    weights = weights_of_samples(batch, energies[0])
    ordered, order = weights.sort()
    above = torch.searchsorted(ordered, ratio).clamp(1, max(batch - 1, 1))
    nearer = above - ((ratio - ordered[above - 1]).abs() < (ordered[above % batch] - ratio).abs()).long()
    samples = order[nearer % batch]
    gap = float(ordered.diff().min()) if batch > 1 else 1.0
    rows = torch.arange(len(moves), device=plain.device)[moves]
    if bool(((ratio - weights[samples]).abs() > _SURE * gap).any()):
        if not found or not guess:
            return None
        log = ratio.log()
        errors = [float((log - weights[rows // inner % batch].log()).abs().sum()) for _, inner in found]
        return found[errors.index(min(errors))]
    for layout in found:
        positions = 1 if isinstance(use, ElementwiseUse) else use.positions
        if bool((samples == rows // (layout[1] * positions) % batch).all()):
            return layout
    owner = torch.zeros(len(moves), dtype=torch.long, device=plain.device)
    owner[moves] = samples  # a row without a gradient adds nothing to any sample
    return _placed(owner, moves, batch)


def _energies(use: Use, grads: Tensor) -> Tensor:
    """Return the squared length of each row of g, ``(M,)``."""
    if isinstance(use, ElementwiseUse):
        g = use.gradients(grads).reshape(math.prod(use.lead), -1)
    else:
        g = use.sample_rows(grads)[1]
        g = g.transpose(0, 1).flatten(1) if g.ndim == 3 else g
    return g.double().square().sum(-1)


def _placed(owner: Tensor, counts: Tensor, batch: int) -> Owners:
    """Number the rows of each sample in their order; rows that do not count have no place."""
    own = owner[counts]
    order = own.argsort(stable=True)
    lengths = own.bincount(minlength=batch)
    first = (lengths.cumsum(0) - lengths)[own]
    place = torch.zeros_like(owner)
    place[counts] = (
        torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)) - first
    )
    return Owners(owner, place, counts, max(int(lengths.max()), 1))


def by_sample(x: Tensor, layout: Layout | Owners, batch: int, axis: int) -> Tensor:
    """Bring rows ``(..., M, d)`` or ``(M,)`` to ``(..., N, T, d)`` or ``(N, T)``.

    Of samples with fewer rows than T the others are zero.

    :param axis: of the rows, counted from the end
    """
    if isinstance(layout, Owners):
        rows = x.movedim(axis, 0)[layout.counts]
        padded = x.new_zeros(batch, layout.longest, *rows.shape[1:])
        padded[layout.sample[layout.counts], layout.place[layout.counts]] = rows
        return padded.movedim((0, 1), (axis - 1, axis))
    outer, _ = layout
    parts: Tensor
    if outer == 1:
        parts = x.unflatten(axis, (batch, -1))
        return parts
    parts = x.unflatten(axis, (outer, batch, -1))
    return parts.transpose(axis - 2, axis - 1).flatten(axis - 1, axis)
