"""Kronecker factors: how a symmetric matrix is kept, and what is done with it.

A factor of size d multiplies a matrix ``(out, in)``, or ``(G, out, in)``, from one side. There are four
kinds, and all that depends on the kind is here: products, traces, eigenvectors, the dense form.

* :class:`Dense`, ``(d, d)``: the usual one;
* :class:`Batched`, ``(G, d, d)``: one for each group of a convolution, or part of a packed weight;
* :class:`Diagonal`, ``(d,)``: the input factor of an embedding;
* :class:`BlockDiagonal`, ``(k, s, s)``: the diagonal blocks of a factor wider than ``max_factor_size``;
  ``k s >= d``, and what is beyond d is zero (:func:`split_shape`).

The tensors themselves are plain: averages, messages and saved states know nothing of kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def pad_last(x: Tensor, size: int) -> Tensor:
    """Append zeros along the last axis up to a size."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


@dataclass(frozen=True)
class Dense:
    """One whole matrix ``(d, d)``.

    :param size: d
    """

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        return (self.size, self.size)

    @property
    def width(self) -> int:
        """Size of the matrices that are inverted."""
        return self.size

    @property
    def cost(self) -> int:
        """Operations of an inverse, up to a factor that is the same for all kinds."""
        return self.width**3

    @property
    def basis_shape(self) -> tuple[int, ...]:
        """Shape of the eigenvectors."""
        return self.shape

    @property
    def padded(self) -> int:
        """How many coordinates the eigenbasis has: d, and what fills the last block up."""
        return self.size

    def mean_eigenvalue(self, x: Tensor) -> Tensor:
        """``tr X / d``: a 0-dim tensor, or one value for each group."""
        return x.trace() / self.size

    def matrices(self, x: Tensor) -> Tensor:
        """Return the matrices that are inverted each by itself, ``(n, s, s)``."""
        return x.reshape(-1, self.width, self.width)

    def eigen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, ``(..., padded)``, and eigenvectors.

        :raises torch.linalg.LinAlgError: no decomposition
        """
        values, vectors = torch.linalg.eigh(x)
        return values, vectors

    def left(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``X M``; blocks give, and take, rows padded to ``k s``."""
        return x @ matrix

    def right(self, matrix: Tensor, x: Tensor) -> Tensor:
        """``M X``; blocks give, and take, columns padded to ``k s``."""
        return matrix @ x

    def into_basis(self, matrix: Tensor, vectors: Tensor) -> Tensor:
        """``M Q``."""
        return self.right(matrix, vectors)

    def out_of_basis(self, matrix: Tensor, vectors: Tensor) -> Tensor:
        """``M Q'``."""
        return self.right(matrix, vectors.mT)

    def dense(self, x: Tensor) -> Tensor:
        """Return the factor as one matrix ``(d, d)``."""
        return x


@dataclass(frozen=True)
class Batched(Dense):
    """One matrix for each group, ``(G, d, d)``.

    :param groups: G
    """

    groups: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        return (self.groups, self.size, self.size)

    @property
    def cost(self) -> int:
        """Operations of an inverse."""
        return self.groups * self.size**3

    def mean_eigenvalue(self, x: Tensor) -> Tensor:
        """``tr X / d`` of each group, ``(G,)``."""
        return x.diagonal(dim1=-2, dim2=-1).sum(-1) / self.size

    def dense(self, x: Tensor) -> Tensor:
        """Return the matrices as they are: each belongs to a Kronecker product of its own."""
        return x


@dataclass(frozen=True)
class Diagonal(Dense):
    """A diagonal ``(d,)``, which is its own eigendecomposition: an empty tensor stands for identity."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        return (self.size,)

    @property
    def width(self) -> int:
        """Nothing is inverted but numbers."""
        return 0

    @property
    def basis_shape(self) -> tuple[int, ...]:
        """Shape of the eigenvectors."""
        return (0,)

    def mean_eigenvalue(self, x: Tensor) -> Tensor:
        """``tr X / d``."""
        return x.mean()

    def eigen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the diagonal, and nothing for its eigenvectors."""
        return x, x.new_empty(0)

    def left(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``X M``."""
        return x.unsqueeze(-1) * matrix

    def right(self, matrix: Tensor, x: Tensor) -> Tensor:
        """``M X``."""
        return matrix * x

    def into_basis(self, matrix: Tensor, vectors: Tensor) -> Tensor:
        """``M``."""
        return matrix

    def out_of_basis(self, matrix: Tensor, vectors: Tensor) -> Tensor:
        """``M``."""
        return matrix

    def dense(self, x: Tensor) -> Tensor:
        """Return the factor as one matrix ``(d, d)``."""
        return torch.diag(x)


@dataclass(frozen=True)
class BlockDiagonal(Dense):
    """Diagonal blocks ``(k, s, s)`` of a factor that is too wide.

    :param count: k
    :param of_block: s
    """

    count: int
    of_block: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the factor."""
        return (self.count, self.of_block, self.of_block)

    @property
    def width(self) -> int:
        """Size of a block."""
        return self.of_block

    @property
    def cost(self) -> int:
        """Operations of an inverse."""
        return self.count * self.of_block**3

    @property
    def padded(self) -> int:
        """``k s``."""
        return self.count * self.of_block

    def mean_eigenvalue(self, x: Tensor) -> Tensor:
        """``tr X / d``."""
        return x.diagonal(dim1=-2, dim2=-1).sum(-1).sum() / self.size

    def eigen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues of one block after the other, and the eigenvectors of each."""
        values, vectors = torch.linalg.eigh(x)
        return values.flatten(), vectors

    def left(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``X M``."""
        return self.right(matrix.mT, x.mT).mT

    def right(self, matrix: Tensor, x: Tensor) -> Tensor:
        """``M X``."""
        parts = pad_last(matrix, self.padded).unflatten(-1, (self.count, self.of_block))
        product: Tensor = (parts.transpose(0, 1) @ x).transpose(0, 1).flatten(-2)
        return product

    def dense(self, x: Tensor) -> Tensor:
        """Return the factor as one matrix ``(d, d)``."""
        blocks: Tensor = torch.block_diag(*x)
        return blocks[: self.size, : self.size]


def factor_of(
    size: int, groups: tuple[int, ...], max_size: int | str | None, words: bool = False
) -> Dense:
    """Return how a factor is kept.

    :param size: d
    :param groups: ``(G,)`` of a matrix in groups, whose factors are divided already; else nothing
    :param max_size: as of :func:`split_shape`
    :param words: whether its rows are one-hot
    """
    if words:
        return Diagonal(size)
    if groups:
        return Batched(size, groups[0])
    split = split_shape(size, max_size)
    return Dense(size) if split is None else BlockDiagonal(size, *split)
