"""Running averages of the curvature statistics, and the Gram matrices they average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningAverage:
    """Average of the statistics of one block: ``X <- rho_k X + (1 - rho_k) X_new``.

    ``rho_k = min(1 - 1/k, rho)`` (Martens & Grosse 2015, sec. 5), so the first batches are plainly
    averaged and nothing starts from an identity, which would drown the statistics. Statistics that
    are not finite are left out, without a look from the host.

    :param decay: rho in (0, 1]; 1 averages all batches alike
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: tuple[Tensor, ...] = ()
        self.count: Tensor | None = None

    def update(self, new: tuple[Tensor, ...]) -> Tensor:
        """Average ``new`` in and return whether it was refused (0-dim tensor, 0 or 1)."""
        if self.count is None:
            self.values = tuple(torch.zeros_like(x) for x in new)
            self.count = new[0].new_zeros(())
        # A NaN or an infinity anywhere in the rows shows on the diagonal of their Gram matrix.
        finite = torch.stack([trace(x) for x in new]).isfinite().all()
        self.count.add_(finite)
        weight = torch.where(finite, (1.0 / self.count).clamp_min(1.0 - self.decay), 0.0)
        for value, x in zip(self.values, new, strict=True):
            value.lerp_(torch.where(finite, x, value), weight)
        return finite.logical_not()

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


def trace(matrix: Tensor) -> Tensor:
    """Sum of the diagonal of one matrix, of a batch of them, or of a diagonal kept as a vector."""
    return matrix.sum() if matrix.ndim == 1 else matrix.diagonal(dim1=-2, dim2=-1).sum()


def gram(rows: Tensor, divisor: float) -> Tensor:
    """Return ``rows' rows / divisor`` for rows ``(M, d)`` or, group by group, ``(G, M, d)``."""
    return rows.mT @ rows / divisor


def homogeneous_gram(rows: Tensor, divisor: float) -> Tensor:
    """:func:`gram` of rows with a trailing 1 for the bias, without building those rows.

    :param rows: ``(M, d)`` or ``(G, M, d)``
    :return: ``(d + 1, d + 1)`` or ``(G, d + 1, d + 1)``
    """
    *groups, m, d = rows.shape
    out = rows.new_empty(*groups, d + 1, d + 1)
    out[..., :d, :d] = gram(rows, divisor)
    out[..., d, :d] = out[..., :d, d] = rows.sum(-2) / divisor
    out[..., d, d] = m / divisor
    return out
