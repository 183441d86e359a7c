"""Gram matrices of rows, and the running averages that they go into, in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.factors import BlockDiagonal, Dense, pad_last

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

    def split(self, kind: Dense) -> Gram:
        """Keep of the result the diagonal blocks alone, if that is how it is kept."""
        if not isinstance(kind, BlockDiagonal):
            return self
        shape = kind.count, kind.of_block
        rows = self.rows
        if self.bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        rows = pad_last(rows, kind.padded).unflatten(-1, shape)
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
    def taken(self) -> Tensor:
        """How many statistics were taken in (0-dim tensor)."""
        assert self.count is not None
        return self.count

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
