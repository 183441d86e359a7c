"""Damped inverses of Kronecker products.

``"cholesky"``: factored Tikhonov damping (Martens & Grosse 2015, sec. 6.3): the block
``A (x) S + lambda I`` is replaced by ``(A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I)`` with
``pi^2 = (tr A / dim A) / (tr S / dim S)``, and both factors are inverted by Cholesky.

``"eigen"``: ``A (x) S + lambda I`` itself, inverted in the eigenbasis of the factors: the damping of
the released ACKTR code. Dearer, exact in the damping.

EKFAC takes the eigenbasis alone: what is inverted in it are measured second moments, which change with
each batch (:mod:`acktr.kfac.ekfac`).

All invert the factors of many blocks in one call; Cholesky takes those of one size as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.factors import Batched, Dense, Diagonal, pad_last
from acktr.kfac.trust_region import scalar


class Kinds(NamedTuple):
    """How the factors of one block are kept.

    :param A: the input factor
    :param S: the output factor
    """

    A: Dense
    S: Dense

    @property
    def padded(self) -> bool:
        """Whether products come with rows or columns beyond those of the matrix."""
        return self.S.padded > self.S.size or self.A.padded > self.A.size

    @property
    def spectrum_shape(self) -> tuple[int, ...]:
        """Shape of the spectrum of their product: ``(out, in)`` or ``(G, out, in)``, padded."""
        groups = self.S.shape[:1] if isinstance(self.S, Batched) else ()
        return (*groups, self.S.padded, self.A.padded)


class Pair(NamedTuple):
    """The factors of one block.

    :param A: input factor
    :param S: output factor
    :param kinds: how they are kept
    :param lags: of a chain in time, see :class:`acktr.kfac.recurrent.LinearGaussianBlock`
    """

    A: Tensor
    S: Tensor
    kinds: Kinds
    lags: Tensor | None = None

    def double(self) -> Pair:
        """Return the same pair in float64."""
        return self._each(Tensor.double)

    def clone(self) -> Pair:
        """Return a copy that later averaging leaves alone."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Pair:
        lags = None if self.lags is None else change(self.lags)
        return self._replace(A=change(self.A), S=change(self.S), lags=lags)


def damping_shifts(pairs: Sequence[Pair], dampings: Sequence[float | Tensor]) -> list[Tensor]:
    """Return what goes onto the diagonals of A, S, A, S, ...: ``pi sqrt(lambda)``, ``sqrt(lambda)/pi``.

    One value for each factor, or one for each group.
    """
    a = [p.kinds.A.mean_eigenvalue(p.A).reshape(-1) for p in pairs]
    s = [p.kinds.S.mean_eigenvalue(p.S).reshape(-1) for p in pairs]
    counts = [len(x) for x in s]
    A, S = torch.cat([x.expand(n) for x, n in zip(a, counts, strict=True)]), torch.cat(s)
    tiny = torch.finfo(A.dtype).tiny
    # A factor that is all zero gives pi = 0 or inf: such a block has no balance to keep.
    pi = (A.clamp_min(tiny) / S.clamp_min(tiny)).sqrt().clamp(1e-6, 1e6)
    first = dampings[0]
    if not isinstance(first, Tensor) and all(x is first for x in dampings):
        root = A.new_full((len(A),), first).sqrt()
    else:  # a list of numbers would be copied to the device, and waited for
        spread = [scalar(x, A).expand(n) for x, n in zip(dampings, counts, strict=True)]
        root = torch.cat(spread).sqrt()
    parts = zip((pi * root).split(counts), (root / pi).split(counts), strict=True)
    return [shift for both in parts for shift in both]


def invert_shifted(
    factors: Sequence[Tensor], kinds: Sequence[Dense], shifts: Sequence[Tensor], defer: bool
) -> list[tuple[Tensor, Tensor]]:
    """Invert each ``X + shift I`` by Cholesky, matrices of one size together.

    :param factors: symmetric positive semi-definite
    :param kinds: how they are kept
    :param shifts: one positive value for each, or one for each matrix of a batch
    :param defer: do not look at values from the host
    :return: each inverse, and a 0-dim bool tensor that says whether it can be used
    """
    found: list[tuple[Tensor, Tensor]] = [(x, x) for x in factors]
    fine = torch.ones((), dtype=torch.bool)
    by_size: dict[int, list[int]] = {}
    for i, (factor, kind) in enumerate(zip(factors, kinds, strict=True)):
        if isinstance(kind, Diagonal):
            inverse = (factor + shifts[i]).reciprocal()
            found[i] = inverse, inverse.isfinite().all() & (inverse > 0).all()
        else:
            by_size.setdefault(kind.width, []).append(i)
    for members in by_size.values():
        batches = [kinds[i].matrices(factors[i]) for i in members]
        counts = [len(batch) for batch in batches]
        matrices = torch.cat(batches)
        shift = shifts[members[0]]
        if len(members) > 1:
            shift = torch.cat([shifts[i].expand(c) for i, c in zip(members, counts, strict=True)])
        matrices.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
        inverses, ok = _invert(matrices, defer)
        good = [fine] * len(members) if ok is None else [x.all() for x in ok.split(counts)]
        if len(members) == 1:
            found[members[0]] = inverses.view_as(factors[members[0]]), good[0]
            continue
        for i, inverse, usable in zip(members, inverses.split(counts), good, strict=True):
            # Memory of its own: a product's rounding may depend on where a matrix begins in memory, and
            # an inverse that is loaded from a checkpoint begins elsewhere than a part of a batch.
            found[i] = inverse.view_as(factors[i]).clone(), usable
    return found


def _invert(matrices: Tensor, defer: bool) -> tuple[Tensor, Tensor | None]:
    """Return the inverses, and which of them can be used; ``None`` for all of them."""
    roots, info = torch.linalg.cholesky_ex(matrices)
    if not defer and not info.any():
        inverses = torch.cholesky_inverse(roots)
        if math.isfinite(inverses.diagonal(dim1=-2, dim2=-1).sum().item()):
            return inverses, None
    else:
        # cholesky_inverse looks at the root from the host, and raises; cholesky_solve of a batch cannot
        # be recorded in a CUDA graph.
        eye = torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device)
        inverse_roots = torch.linalg.solve_triangular(roots, eye.expand_as(roots), upper=False)
        inverses = inverse_roots.mT @ inverse_roots
    return inverses, (info == 0) & inverses.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()


Inverted = tuple[list[Tensor], Tensor]  # the tensors of one inverse, and whether they can be used


class CholeskyInverse:
    """``G -> S^-1 G A^-1`` with factored Tikhonov damping and explicit inverses."""

    names: tuple[str, ...] = ("A_inverse", "S_inverse")
    is_held: ClassVar[bool] = False  # whether a block holds on to the tensors when they are made anew

    @staticmethod
    def invert(pairs: Sequence[Pair], dampings: Sequence[float | Tensor], defer: bool) -> list[Inverted]:
        """Return each inverse's tensors and whether they can be used (0-dim bool tensor)."""
        factors = [factor for pair in pairs for factor in (pair.A, pair.S)]
        kinds = [kind for pair in pairs for kind in pair.kinds]
        found = invert_shifted(factors, kinds, damping_shifts(pairs, dampings), defer)
        both = zip(found[::2], found[1::2], strict=True)
        return [([A, S], A_ok & S_ok) for (A, A_ok), (S, S_ok) in both]

    @staticmethod
    def shapes(kinds: Kinds) -> list[tuple[int, ...]]:
        """Return the shapes of the inverse's tensors."""
        return [kinds.A.shape, kinds.S.shape]

    @staticmethod
    def apply(kinds: Kinds, tensors: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_inverse, S_inverse = tensors
        return kinds.A.right(kinds.S.left(S_inverse, gradient), A_inverse)


class EigenInverse:
    """``G -> Q_S [(Q_S' G Q_A) / (s a' + lambda)] Q_A'``: damping in the eigenbasis."""

    names: tuple[str, ...] = ("A_vectors", "S_vectors", "reciprocal")
    is_held: ClassVar[bool] = False

    @classmethod
    def invert(
        cls, pairs: Sequence[Pair], dampings: Sequence[float | Tensor], defer: bool
    ) -> list[Inverted]:
        """Return each inverse's tensors and whether they can be used (0-dim bool tensor)."""
        return [cls._invert(pair, damping) for pair, damping in zip(pairs, dampings, strict=True)]

    @classmethod
    def _invert(cls, pair: Pair, damping: float | Tensor) -> Inverted:
        try:
            s, S_vectors = pair.kinds.S.eigen(pair.S)
            a, A_vectors = pair.kinds.A.eigen(pair.A)
        except torch.linalg.LinAlgError:
            return [], torch.zeros((), dtype=torch.bool, device=pair.A.device)
        spectrum = s.clamp_min(0.0).unsqueeze(-1) * a.clamp_min(0.0).unsqueeze(-2)
        kept = cls._kept(spectrum, damping)
        return [A_vectors, S_vectors, kept], kept.isfinite().all()

    @staticmethod
    def _kept(spectrum: Tensor, damping: float | Tensor) -> Tensor:
        return (spectrum + damping).reciprocal()

    @staticmethod
    def shapes(kinds: Kinds) -> list[tuple[int, ...]]:
        """Return the shapes of the inverse's tensors."""
        return [kinds.A.basis_shape, kinds.S.basis_shape, kinds.spectrum_shape]

    @staticmethod
    def apply(kinds: Kinds, tensors: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_vectors, S_vectors, reciprocal = tensors
        rotated = kinds.S.left(S_vectors, rotate(kinds, tensors, gradient) * reciprocal)
        return kinds.A.out_of_basis(rotated, A_vectors)


class Eigenbasis(EigenInverse):
    """Eigenvectors, and the spectrum that the Kronecker product has in them, without damping."""

    names = ("A_vectors", "S_vectors", "spectrum")
    is_held = True  # moments belong to the basis of their time

    @staticmethod
    def _kept(spectrum: Tensor, damping: float | Tensor) -> Tensor:
        return spectrum


def rotate(kinds: Kinds, basis: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """``Q_S' M Q_A`` of a matrix ``(out, in)`` or ``(G, out, in)``, padded as the spectrum is.

    :param kinds: of the factors
    :param basis: of A, of S, and what else there is
    """
    A_vectors, S_vectors = basis[:2]
    rotated = kinds.A.into_basis(kinds.S.left(S_vectors.mT, matrix), A_vectors)
    return pad_last(rotated, kinds.A.padded)


Method = type[CholeskyInverse] | type[EigenInverse]
INVERSES: dict[str, Method] = {"cholesky": CholeskyInverse, "eigen": EigenInverse}
