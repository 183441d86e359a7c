"""Kronecker factors: Gram matrices, their running averages, and products with them.

A factor is symmetric and kept in one of four forms, told apart by its number of dimensions against
that of the matrix ``(out, in)`` or ``(G, out, in)`` it multiplies:

* ``(d, d)``, the usual one;
* ``(G, d, d)``, one for each group of a grouped convolution, whose matrix is ``(G, out, in)`` too;
* ``(d,)``, a diagonal (the input factor of an embedding);
* ``(k, s, s)`` where the matrix has two dimensions: the k diagonal blocks of a factor that is wider
  than ``max_factor_size``; ``k s >= d``, and what is beyond d is zero (:func:`split_shape`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# By default a layer up to the first width has whole factors, a wider one blocks up to the second: at
# 2048 the inverses are a quarter of a step (benchmarks/results/kfac/wide.csv).
WIDEST, BLOCK = 2048, 1024


def split_shape(size: int, max_size: int | str | None) -> tuple[int, int] | None:
    """Return how many diagonal blocks stand for a factor, and how wide they are.

    :param size: d of the factor
    :param max_size: of a block; ``None`` for no bound, ``"auto"`` for :data:`BLOCK` from beyond
        :data:`WIDEST` on, the bias aside
    :return: ``(k, s)`` with s at most ``max_size`` and ``k s - d < k``; ``None`` if one block will do
    """
    if isinstance(max_size, str):
        max_size = BLOCK if size > WIDEST + 1 else None
    if max_size is None or size <= max_size:
        return None
    count = -(-size // max_size)
    return count, -(-size // count)


def factor_shape(groups: tuple[int, ...], size: int, split: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the shape of a factor of this size: whole, by groups, or split."""
    return (*groups, size, size) if split is None else (split[0], split[1], split[1])


def pad_last(x: Tensor, size: int) -> Tensor:
    """Append zeros along the last axis up to a size."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


# From this width on a Gram matrix is multiplied out by strips of its upper half: quicker on a CPU.
_WIDE, _STRIPS = 1024, 4


class Gram(NamedTuple):
    """``rows' rows / divisor``, kept as its rows until it is averaged in.

    :param rows: ``(M, d)`` or, group by group, ``(G, M, d)``
    :param divisor: N or M
    :param bias: whether the constant 1 is a last coordinate of each row, which need not be built
    """

    rows: Tensor
    divisor: float
    bias: bool = False

    def split(self, shape: tuple[int, int] | None) -> Gram:
        """Keep the k diagonal blocks of the result alone, ``(k, s, s)``."""
        if shape is None:
            return self
        rows = self.rows
        if self.bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        rows = pad_last(rows, shape[0] * shape[1]).unflatten(-1, shape)
        return Gram(rows.transpose(0, 1), self.divisor)

    def dense(self) -> Tensor:
        """Multiply out: ``(d, d)`` or ``(G, d, d)``, one wider with a bias."""
        *groups, _, d = self.rows.shape
        size = d + self.bias
        return self.average_into(self.rows.new_empty(*groups, size, size), 1.0)

    def average_into(self, average: Tensor, weight: float) -> Tensor:
        """``average <- (1 - weight) average + weight rows' rows / divisor``, in place."""
        rows, keep, scale = self.rows, 1.0 - weight, weight / self.divisor
        if rows.dtype != average.dtype:
            # Half precision is for the product alone; what is averaged keeps the weight's precision.
            return average.lerp_(self.dense().to(average), weight)
        *_, m, d = rows.shape
        corner = average[..., :d, :d]
        if rows.ndim > 2:
            corner.baddbmm_(rows.mT, rows, beta=keep, alpha=scale)
        elif d >= _WIDE and rows.device.type == "cpu":
            _add_by_strips(corner, rows, keep, scale)
        else:
            corner.addmm_(rows.mT, rows, beta=keep, alpha=scale)
        if self.bias:
            column = average[..., :d, d]
            if keep:
                column.mul_(keep).add_(rows.sum(-2), alpha=scale)
                average[..., d, d].mul_(keep).add_(m * scale)
            else:  # there may be anything in it
                torch.mul(rows.sum(-2), scale, out=column)
                average[..., d, d].fill_(m * scale)  # a number that is assigned travels to the device
            average[..., d, :d] = column
        return average


def _add_by_strips(corner: Tensor, rows: Tensor, keep: float, scale: float) -> None:
    """``corner <- keep corner + scale rows' rows``, of which half is a mirror of the other half.

    Strips from the diagonal to the right edge, each reflected to below: 10 blocks of 16 are multiplied.
    """
    width = -(-len(corner) // _STRIPS)
    for start in range(0, len(corner), width):
        end = start + width
        corner[start:end, start:].addmm_(rows[:, start:end].mT, rows[:, start:], beta=keep, alpha=scale)
        corner[end:, start:end] = corner[start:end, end:].mT


def precise(x: Tensor) -> Tensor:
    """Return a tensor in float32 if it is of fewer digits: sums and inverses need them."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def statistics_like(weight: Tensor) -> Tensor:
    """Return a tensor with the device of a weight and the precision of its statistics."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.new_empty(0).float()


class RunningAverage:
    """Average of the statistics of one block: ``X <- rho_k X + (1 - rho_k) X_new``.

    ``rho_k = min(1 - 1/k, rho)`` (Martens & Grosse 2015, sec. 5), so the first batches are plainly
    averaged and nothing starts from an identity, which would drown the statistics.

    :param decay: rho in (0, 1]; 1 averages all batches alike
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: tuple[Tensor, ...] = ()
        self.count: Tensor | None = None

    def update(self, new: tuple[Tensor | Gram, ...], finite: bool | Tensor, like: Tensor) -> None:
        """Average statistics in, unless they are not finite.

        :param new: statistics, as tensors or Gram matrices yet to be multiplied out
        :param finite: whether they are; a 0-dim tensor where a look from the host would stall a queue
        :param like: has the dtype and device of the averages
        """
        if self.count is None:
            shapes = [_shape(x) for x in new]
            self.values = tuple(like.new_zeros(shape) for shape in shapes)
            self.count = like.new_zeros(())
        self.count += finite
        if isinstance(finite, Tensor):
            weights = (1.0 / self.count).clamp_min(1.0 - self.decay)
            weights = torch.where(finite, weights, 0.0)
            for value, x in zip(self.values, new, strict=True):
                dense = (x.dense() if isinstance(x, Gram) else x).to(value)
                value.lerp_(torch.where(finite, dense, value), weights)
        elif finite:
            weight = max(1.0 / float(self.count), 1.0 - self.decay)
            for value, x in zip(self.values, new, strict=True):
                if isinstance(x, Gram):
                    x.average_into(value, weight)
                else:
                    value.lerp_(x.to(value), weight)

    @property
    def accepted(self) -> Tensor:
        """Whether any statistics were taken in (0-dim bool tensor)."""
        assert self.count is not None
        return self.count > 0

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and their count as plain containers of tensors."""
        return {"values": list(self.values), "count": self.count}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Restore :meth:`state_dict` onto the device and dtype of ``like``."""
        self.values = tuple(x.to(like, copy=True) for x in state["values"])
        self.count = None if state["count"] is None else state["count"].to(like, copy=True)
        if bool(self.values) != (self.count is not None) or (self.count is not None and self.count.ndim):
            raise ValueError("averages of statistics without their count, or a count without averages")


def _shape(x: Tensor | Gram) -> tuple[int, ...]:
    if isinstance(x, Tensor):
        return tuple(x.shape)
    *groups, _, d = x.rows.shape
    return (*groups, d + x.bias, d + x.bias)


def multiply_left(factor: Tensor, matrix: Tensor) -> Tensor:
    """``factor @ matrix``; a split factor gives (and takes) rows padded to ``k s``."""
    if factor.ndim == matrix.ndim:
        product: Tensor = factor @ matrix
        return product
    return multiply_right(matrix.mT, factor.mT if factor.ndim > 1 else factor).mT


def multiply_right(matrix: Tensor, factor: Tensor) -> Tensor:
    """``matrix @ factor``; a split factor gives (and takes) columns padded to ``k s``."""
    product: Tensor
    if factor.ndim == 1:
        product = matrix * factor
    elif factor.ndim == matrix.ndim:
        product = matrix @ factor
    else:
        k, s, _ = factor.shape
        parts = pad_last(matrix, k * s).unflatten(-1, (k, s)).transpose(0, 1)
        product = (parts @ factor).transpose(0, 1).flatten(-2)
    return product


def join(factor: Tensor, size: int) -> Tensor:
    """Return a diagonal or split factor as one matrix ``(size, size)``; others as they are."""
    if factor.ndim == 1:
        return torch.diag(factor)
    if factor.ndim == 3:
        blocks: Tensor = torch.block_diag(*factor)
        return blocks[:size, :size]
    return factor


def diagonal_blocks(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the diagonal blocks ``(k, s, s)`` of a matrix, with zeros beyond its size."""
    k, s = shape
    padding = k * s - len(matrix)
    padded = F.pad(matrix, (0, padding, 0, padding)).unflatten(0, (k, s)).unflatten(-1, (k, s))
    blocks: Tensor = padded.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return blocks
