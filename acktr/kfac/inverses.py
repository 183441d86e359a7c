"""Damped inverses of Kronecker products.

``"cholesky"``: factored Tikhonov damping (Martens & Grosse 2015, sec. 6.3): the block
``A (x) S + lambda I`` is replaced by ``(A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I)`` with
``pi^2 = (tr A / dim A) / (tr S / dim S)``, and both factors are inverted by Cholesky.

``"eigen"``: ``A (x) S + lambda I`` itself, inverted in the eigenbasis of the factors: the damping of
the released ACKTR code. Dearer, exact in the damping.

``"ekfac"``: the eigenbasis alone; what is inverted in it are measured second moments, which change
with each batch (:mod:`acktr.kfac.ekfac`).

All invert the factors of many blocks in one call; Cholesky takes those of one size as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acktr.kfac.factors import multiply_left, multiply_right, pad_last
from acktr.kfac.trust_region import scalar


class Pair(NamedTuple):
    """The factors of one block.

    :param A: input factor, in one of the forms of :mod:`acktr.kfac.factors`
    :param S: output factor
    :param sizes: their true sizes ``(in, out)``, without the padding of split factors
    :param grouped: whether both hold one matrix for each group
    :param lags: of a chain in time, see :class:`acktr.kfac.recurrent.LinearGaussianBlock`
    """

    A: Tensor
    S: Tensor
    sizes: tuple[int, int]
    grouped: bool
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


def mean_eigenvalue(factor: Tensor, size: int, grouped: bool) -> Tensor:
    """``tr X / dim X``: a 0-dim tensor, or one value for each group."""
    if factor.ndim == 1:
        return factor.mean()
    if factor.ndim == 2:
        return factor.trace() / size
    traces = factor.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (traces if grouped else traces.sum()) / size


def damping_shifts(pairs: Sequence[Pair], dampings: Sequence[float | Tensor]) -> list[Tensor]:
    """Return what goes onto the diagonals of A, S, A, S, ...: ``pi sqrt(lambda)``, ``sqrt(lambda)/pi``.

    One value for each factor, or one for each group.
    """
    a = [mean_eigenvalue(p.A, p.sizes[0], p.grouped).reshape(-1) for p in pairs]
    s = [mean_eigenvalue(p.S, p.sizes[1], p.grouped).reshape(-1) for p in pairs]
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
    factors: Sequence[Tensor], shifts: Sequence[Tensor], defer: bool
) -> list[tuple[Tensor, Tensor]]:
    """Invert each ``X + shift I`` by Cholesky, matrices of one size together.

    :param factors: symmetric positive semi-definite, in any of their forms
    :param shifts: one positive value for each, or one for each matrix of a batch
    :param defer: do not look at values from the host
    :return: each inverse, and a 0-dim bool tensor that says whether it can be used
    """
    found: list[tuple[Tensor, Tensor]] = [(x, x) for x in factors]
    fine = torch.ones((), dtype=torch.bool)
    by_size: dict[int, list[int]] = {}
    for i, factor in enumerate(factors):
        if factor.ndim == 1:
            inverse = (factor + shifts[i]).reciprocal()
            found[i] = inverse, inverse.isfinite().all() & (inverse > 0).all()
        else:
            by_size.setdefault(factor.shape[-1], []).append(i)
    for n, members in by_size.items():
        batches = [factors[i].reshape(-1, n, n) for i in members]
        counts = [len(batch) for batch in batches]
        matrices = torch.cat(batches)
        shift = torch.cat([shifts[i].expand(c) for i, c in zip(members, counts, strict=True)])
        matrices.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
        inverses, ok = _invert(matrices, defer)
        good = [fine] * len(members) if ok is None else [x.all() for x in ok.split(counts)]
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

    names = ("A_inverse", "S_inverse")

    @staticmethod
    def invert(pairs: Sequence[Pair], dampings: Sequence[float | Tensor], defer: bool) -> list[Inverted]:
        """Return each inverse's tensors and whether they can be used (0-dim bool tensor)."""
        factors = [factor for pair in pairs for factor in (pair.A, pair.S)]
        found = invert_shifted(factors, damping_shifts(pairs, dampings), defer)
        both = zip(found[::2], found[1::2], strict=True)
        return [([A, S], A_ok & S_ok) for (A, A_ok), (S, S_ok) in both]

    @staticmethod
    def shapes(pair: Pair) -> list[tuple[int, ...]]:
        """Return the shapes of the inverse's tensors."""
        return [tuple(pair.A.shape), tuple(pair.S.shape)]

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_inverse, S_inverse = tensors
        return multiply_right(multiply_left(S_inverse, gradient), A_inverse)


class EigenInverse:
    """``G -> Q_S [(Q_S' G Q_A) / (s a' + lambda)] Q_A'``: damping in the eigenbasis."""

    names: tuple[str, ...] = ("A_vectors", "S_vectors", "reciprocal")

    @classmethod
    def invert(
        cls, pairs: Sequence[Pair], dampings: Sequence[float | Tensor], defer: bool
    ) -> list[Inverted]:
        """Return each inverse's tensors and whether they can be used (0-dim bool tensor)."""
        return [cls._invert(pair, damping) for pair, damping in zip(pairs, dampings, strict=True)]

    @classmethod
    def _invert(cls, pair: Pair, damping: float | Tensor) -> Inverted:
        A, S = pair.A, pair.S
        try:
            s, S_vectors = torch.linalg.eigh(S)
            # A diagonal factor is its own eigendecomposition; an empty tensor stands for identity.
            a, A_vectors = (A, A.new_empty(0)) if A.ndim == 1 else torch.linalg.eigh(A)
        except torch.linalg.LinAlgError:
            return [], torch.zeros((), dtype=torch.bool, device=A.device)
        if not pair.grouped:  # the spectra of split factors, one block after the other
            s, a = s.flatten(), a.flatten()
        spectrum = s.clamp_min(0.0).unsqueeze(-1) * a.clamp_min(0.0).unsqueeze(-2)
        kept = cls._kept(spectrum, damping)
        return [A_vectors, S_vectors, kept], kept.isfinite().all()

    @staticmethod
    def _kept(spectrum: Tensor, damping: float | Tensor) -> Tensor:
        return (spectrum + damping).reciprocal()

    @staticmethod
    def shapes(pair: Pair) -> list[tuple[int, ...]]:
        """Return the shapes of the inverse's tensors."""
        A, S = tuple(pair.A.shape), tuple(pair.S.shape)
        return [(0,) if len(A) == 1 else A, S, spectrum_shape(A, S, pair.grouped)]

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_vectors, S_vectors, reciprocal = tensors
        rotated = multiply_left(S_vectors, rotate(tensors, gradient) * reciprocal)
        return multiply_right(rotated, A_vectors.mT) if A_vectors.numel() else rotated


class Eigenbasis(EigenInverse):
    """Eigenvectors, and the spectrum that the Kronecker product has in them, without damping."""

    names = ("A_vectors", "S_vectors", "spectrum")

    @staticmethod
    def _kept(spectrum: Tensor, damping: float | Tensor) -> Tensor:
        return spectrum


def spectrum_shape(A: Sequence[int], S: Sequence[int], grouped: bool) -> tuple[int, ...]:
    """Return the shape of the spectrum of a Kronecker product.

    :param A: shape of the input factor
    :param S: shape of the output factor
    :param grouped: whether both hold one matrix for each group
    :return: ``(out, in)`` or ``(G, out, in)``, with the padding of split factors
    """
    if grouped:
        return (*S[:-1], A[-1])
    return math.prod(S[:-1]), A[0] if len(A) == 1 else math.prod(A[:-1])


def rotate(basis: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """``Q_S' M Q_A`` of a matrix ``(out, in)`` or ``(G, out, in)``, padded as the spectrum is.

    :param basis: of A, empty where A is diagonal; of S; and anything in the shape of the spectrum
    """
    A_vectors, S_vectors, spectrum = basis
    rotated = multiply_left(S_vectors.mT, matrix)
    if A_vectors.numel():
        rotated = multiply_right(rotated, A_vectors)
    return pad_last(rotated, spectrum.shape[-1])


INVERSES: dict[str, type[CholeskyInverse] | type[EigenInverse]] = {
    "cholesky": CholeskyInverse,
    "eigen": EigenInverse,
    "ekfac": Eigenbasis,
}
