"""From rows to samples: what factors, and the squared gradients of single samples, are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acktr.kfac.graph import Site, View
from acktr.kfac.layouts import by_sample
from acktr.kfac.uses import BiasUse, ElementwiseUse, Owners, TableUse, Used

MAX_ENTRIES = 2**22  # of the gradients of single samples that are held at once


class Batch(NamedTuple):
    """What statistics are divided by.

    :param samples: N
    :param units: how many terms the mean of the loss, and so the Fisher, is over; N as a rule
    :param partial: whether outputs are left out of it; then a row from which nothing goes to an output
        that counts is left out too
    """

    samples: int
    units: float | Tensor
    partial: bool = False

    @property
    def number(self) -> float:
        """``units`` where all outputs count, so that they need not be counted."""
        assert not isinstance(self.units, Tensor)
        return self.units


def counted_rows(g: Tensor, axes: int = 1) -> Tensor:
    """Return which rows lead to an output that counts: 1 or 0 for each, ``(M,)``.

    What leads to none has a gradient of exactly 0. Where a row leads to one and its gradient is 0 all
    the same, as behind units that are all off, the Fisher of the row is 0 too, and neither factor needs
    it.

    :param g: ``(M, out)``, or ``(G, M, out)`` of G groups, whose rows count together
    :param axes: of the rows, in place of the one M
    """
    counted = (g != 0).any(-1)
    return (counted.any(0) if counted.ndim > axes else counted).to(g)


def all_rows(used: Used, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the rows ``(a, g)`` of a use; :func:`counted_rows` needs them as they are."""
    read = used.use.sample_rows if batch.partial else used.use.rows
    return read(used.grads)


def own_rows(
    used: Used, pair: tuple[Tensor, Tensor], unit: int, group: int | None
) -> tuple[Tensor, Tensor]:
    """Return of rows ``(a, g)`` those of one group of a packed weight.

    :param unit: rows of the weight in a group
    :param group: which; ``None`` for a weight that is not packed
    """
    a, g = pair
    if group is not None:
        first = 0 if used.groups is None else used.groups[0]
        g = g[..., (group - first) * unit : (group - first + 1) * unit]
    return a, g


def joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put the rows ``(a, g)`` of several uses one after the other."""
    if len(pairs) == 1:
        return pairs[0]
    a, g = (torch.cat(rows, -2 if rows[0].ndim > 1 else 0) for rows in zip(*pairs, strict=True))
    return a, g


def use_by_sample(used: Used, batch: int, unit: int, group: int | None) -> tuple[Tensor, Tensor, bool]:
    """Return the rows of a use as ``(N, T, in)`` and ``(N, T, out)``, and whether N are the samples.

    Rows that belong to no sample are samples of their own, ``(M, 1, in)``.
    """
    a, g = own_rows(used, used.use.sample_rows(used.grads), unit, group)
    axis = -2 if a.is_floating_point() else -1
    if used.layout is None:
        return a.unflatten(axis, (-1, 1)), g.unflatten(-2, (-1, 1)), False
    layout = used.layout
    if not isinstance(layout, Owners):
        layout = layout[0], layout[1] * used.use.positions
    return by_sample(a, layout, batch, axis), by_sample(g, layout, batch, -2), True


def combined(
    uses: Sequence[Used], batch: Batch, unit: int, group: int | None
) -> list[tuple[Tensor, Tensor]]:
    """Return one row a sample over all uses: the mean of the rows of a, the sum of the rows of g.

    Rows that belong to no sample, and words, are returned as they are. Where outputs are left out, so
    are the rows of theirs.
    """
    if batch.partial or any(isinstance(used.layout, Owners) for used in uses):
        return _combined_of_counted(uses, batch, unit, group)
    apart, inputs, outputs, positions = [], [], [], 0
    for used in uses:
        if used.layout is None or isinstance(used.use, TableUse):
            apart.append(own_rows(used, used.use.rows(used.grads), unit, group))
            continue
        a, g = own_rows(used, used.use.reduced(used.grads), unit, group)
        assert not isinstance(used.layout, Owners)
        count = math.prod(used.layout)
        if count > 1:
            a, g = (by_sample(x, used.layout, batch.samples, -2) for x in (a, g))
            a, g = a.mean(-2), g.sum(-2)
        here = count * used.use.positions
        inputs.append((a, here))
        outputs.append(g)
        positions += here
    if len(outputs) == 1:
        return [(inputs[0][0], outputs[0]), *apart]
    if outputs:
        mean = torch.stack([a * (here / positions) for a, here in inputs]).sum(0)
        apart.insert(0, (mean, torch.stack(outputs).sum(0)))
    return apart


def _combined_of_counted(
    uses: Sequence[Used], batch: Batch, unit: int, group: int | None
) -> list[tuple[Tensor, Tensor]]:
    apart, sums, outputs, positions = [], [], [], []
    for used in uses:
        if used.layout is None or isinstance(used.use, TableUse):
            apart.append(own_rows(used, used.use.sample_rows(used.grads), unit, group))
            continue
        a, g, _ = use_by_sample(used, batch.samples, unit, group)
        counted = counted_rows(g, axes=2)
        sums.append((a * counted.unsqueeze(-1)).sum(-2))
        outputs.append(g.sum(-2))
        positions.append(counted.sum(-1))
    if not outputs:
        return apart
    count = torch.stack(positions).sum(0).clamp_min(1.0).unsqueeze(-1)
    return [(torch.stack(sums).sum(0) / count, torch.stack(outputs).sum(0)), *apart]


def sample_gradients(own: Sequence[tuple[Used, Site]], parameter: Tensor, batch: int) -> Tensor:
    """Return the gradients of a parameter sample by sample, summed over its elementwise uses.

    :return: ``(N, *parameter.shape)``; where the samples of a use are not known, each entry of its
        leading axes is one
    """
    total: Tensor | None = None
    rest = []
    for used, site in own:
        assert isinstance(used.use, ElementwiseUse)
        g = used.use.gradients(used.grads).reshape(math.prod(used.use.lead), -1)
        if used.layout is not None:
            g = by_sample(g, used.layout, batch, -2)
            g = g.squeeze(-2) if g.shape[-2] == 1 else g.sum(-2)
        g = place(g, site, parameter)
        if used.layout is None:
            rest.append(g)
        else:
            total = g if total is None else total + g
    parts = rest if total is None else [total, *rest]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def place(g: Tensor, site: Site, parameter: Tensor) -> Tensor:
    """Put gradients ``(N, entries)`` of a view of a parameter where they belong in it."""
    view = site.view
    assert view is not None
    if view == View(tuple(parameter.shape), tuple(_contiguous(parameter.shape)), 0):
        return g.reshape(-1, *parameter.shape)
    whole = g.new_zeros(len(g), parameter.numel())
    whole.as_strided((len(g), *view.size), (parameter.numel(), *view.stride), view.offset).copy_(
        g.reshape(-1, *view.size)
    )
    return whole.reshape(-1, *parameter.shape)


def _contiguous(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def squares_of_products(own: Sequence[tuple[Used, Site]], parameter: Tensor, batch: int) -> Tensor:
    """Return the sum over samples of the squared gradients of a parameter, whatever its uses are.

    The gradient of each sample is built whole, of some samples at a time.
    """
    together = [pair for pair in own if pair[0].layout is not None]
    sets = [together] if together else []
    sets += [[pair] for pair in own if pair[0].layout is None]
    total = parameter.new_zeros(parameter.numel())
    size = max(1, MAX_ENTRIES // parameter.numel())
    for pairs in sets:
        rows = [_rows_of_samples(used, batch) for used, _ in pairs]
        a, g = rows[0]
        count = len(g) if a is None else g.shape[-3]
        for start in range(0, count, size):
            part = slice(start, start + size)
            whole = parameter.new_zeros(min(size, count - start), parameter.numel())
            for (used, site), of_use in zip(pairs, rows, strict=True):
                _add_gradients(whole, used, site, of_use, part)
            total += whole.square().sum(0)
    return total.view_as(parameter)


def _rows_of_samples(used: Used, batch: int) -> tuple[Tensor | None, Tensor]:
    """Return the rows of a and g by sample; of an elementwise use its gradients alone."""
    if isinstance(used.use, ElementwiseUse):
        g = used.use.gradients(used.grads).reshape(math.prod(used.use.lead), -1)
        return None, g if used.layout is None else by_sample(g, used.layout, batch, -2).sum(-2)
    a, g, _ = use_by_sample(used, batch, 0, None)
    if not isinstance(used.use, BiasUse):
        return a, g
    g = g.sum(-2)  # of a grouped convolution (G, N, out), one group's channels after the other's
    return None, g.transpose(0, 1).flatten(1) if g.ndim == 3 else g


def _add_gradients(
    whole: Tensor, used: Used, site: Site, rows: tuple[Tensor | None, Tensor], part: slice
) -> None:
    a, g = rows
    if a is None:
        view = site.view
        values = g[part]
    elif not a.is_floating_point():
        words, g = a[part], g[part].to(whole)
        samples = torch.arange(len(words), device=words.device).unsqueeze(-1)
        shaped = whole.view(len(whole), *site.parameter.shape)
        shaped.index_put_((samples.expand_as(words), words), g, accumulate=True)
        return
    else:
        assert used.form is not None
        view = used.form.view
        values = g[..., part, :, :].mT @ a[..., part, :, :].to(g)
        values = values if values.ndim == 3 else values.movedim(0, 1)
    assert view is not None
    strides = (whole.shape[-1], *view.stride)
    target = whole.as_strided((len(whole), *view.size), strides, view.offset)
    target += values.reshape(target.shape).to(whole)


def second_moments(
    uses: Sequence[tuple[Tensor, Tensor, bool]],
    units: float | Tensor,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``sum over samples (sum_t g_t a_t')^2 / N``, squared entry by entry.

    Rows that belong to no sample count as samples of their own.

    :param uses: rows of a, ``(N, T, in)``, ``(G, N, T, in)`` or indices ``(N, T)``, and of g,
        ``(N, T, out)`` or ``(G, N, T, out)``, for each use of the layer, and whether its N are the
        samples
    :param units: N, or what else the loss averages over
    :param columns: how many words indices choose from
    :param dtype: of the sums
    :return: ``(out, in)`` or ``(G, out, in)``
    """
    samples: list[list[tuple[Tensor, Tensor]]] = [[]]
    for a, g, whole in uses:
        if whole:
            samples[0].append((a, g))
        else:
            samples.append([(a, g)])
    sums = []
    for same in filter(None, samples):
        a = torch.cat([a for a, _ in same], _positions(same[0][0]))
        g = torch.cat([g for _, g in same], -2)
        sums.append(_sum_of_squares(a, g, columns, dtype))
    return torch.stack(sums).sum(0) / units


def _positions(a: Tensor) -> int:
    return -2 if a.is_floating_point() else -1


def _sum_of_squares(a: Tensor, g: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Sum the squared gradients of samples, a part of them at a time.

    :param a: ``(..., N, T, in)`` or indices ``(N, T)``
    :param g: ``(..., N, T, out)``
    """
    *groups, _, positions, rows = g.shape
    if not a.is_floating_point():
        total = g.new_zeros(columns, rows, dtype=dtype)
        size = max(1, MAX_ENTRIES // positions**2)
        for words, part in zip(a.split(size), g.split(size), strict=True):
            # A word's gradient is the sum over its places, of which each adds its share of the square.
            same = (words.unsqueeze(-1) == words.unsqueeze(-2)).to(g)
            squares = (same @ part).square() / same.sum(-1, keepdim=True)
            total.index_add_(0, words.flatten(), squares.flatten(0, 1).to(dtype))
        return total.mT
    if positions == 1:
        return (g.squeeze(-2).square().mT @ a.squeeze(-2).square()).to(dtype)
    size = max(1, MAX_ENTRIES // (math.prod(groups) * rows * a.shape[-1]))
    parts = zip(a.split(size, -3), g.split(size, -3), strict=True)
    sums = [(part.mT @ of_a).square().sum(-3, dtype=dtype) for of_a, part in parts]
    return torch.stack(sums).sum(0)
