"""Damped inverses of Kronecker products, and what happens when a factorisation fails.

``"cholesky"``: factored Tikhonov damping (Martens & Grosse 2015, sec. 6.3): the block
``A (x) S + lambda I`` is replaced by ``(A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I)`` with
``pi^2 = (tr A / dim A) / (tr S / dim S)``, and both factors are inverted by Cholesky.

``"eigen"``: ``A (x) S + lambda I`` itself, inverted in the eigenbasis of the factors: the damping of
the released ACKTR code. Dearer, exact in the damping.

Both invert the factors of many blocks in one call; Cholesky takes those of one size as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acktr.kfac.factors import multiply_left, multiply_right, pad_last

MAX_ESCALATIONS = 6  # tenfold each: beyond a million times the damping something else is wrong


class Pair(NamedTuple):
    """The factors of one block.

    :param A: input factor, in one of the forms of :mod:`acktr.kfac.factors`
    :param S: output factor
    :param sizes: their true sizes ``(in, out)``, without the padding of split factors
    :param grouped: whether both hold one matrix for each group
    """

    A: Tensor
    S: Tensor
    sizes: tuple[int, int]
    grouped: bool

    def double(self) -> Pair:
        """Return the same pair in float64."""
        return self._replace(A=self.A.double(), S=self.S.double())

    def clone(self) -> Pair:
        """Return a copy that later averaging leaves alone."""
        return self._replace(A=self.A.clone(), S=self.S.clone())


def mean_eigenvalue(factor: Tensor, size: int, grouped: bool) -> Tensor:
    """``tr X / dim X``: a 0-dim tensor, or one value for each group."""
    if factor.ndim == 1:
        return factor.mean()
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
    spread = [torch.as_tensor(x).to(A).expand(n) for x, n in zip(dampings, counts, strict=True)]
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
        for i, inverse, good in zip(members, inverses.split(counts), ok.split(counts), strict=True):
            # Memory of its own: a product's rounding may depend on where a matrix begins in memory, and
            # an inverse that is loaded from a checkpoint begins elsewhere than a part of a batch.
            found[i] = inverse.view_as(factors[i]).clone(), good.all()
    return found


def _invert(matrices: Tensor, defer: bool) -> tuple[Tensor, Tensor]:
    roots, info = torch.linalg.cholesky_ex(matrices)
    if not defer and not info.any():
        inverses = torch.cholesky_inverse(roots)
    else:
        # Three times slower; but cholesky_inverse looks at the root from the host, and raises.
        eye = torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device)
        inverses = torch.cholesky_solve(eye.expand_as(roots), roots)
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
    def multiply(pair: Pair, damping: float | Tensor, matrix: Tensor) -> Tensor:
        """Multiply a matrix ``(out, in)`` or ``(G, out, in)`` by the damped block."""
        rows, columns = matrix.shape[-2:]
        a, s = damping_shifts([pair], [damping])
        if pair.grouped:
            a, s = a[:, None, None], s[:, None, None]
        matrix = multiply_left(pair.S, matrix)[..., :rows, :] + s * matrix
        return multiply_right(matrix, pair.A)[..., :columns] + a * matrix

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_inverse, S_inverse = tensors
        return multiply_right(multiply_left(S_inverse, gradient), A_inverse)


class EigenInverse:
    """``G -> Q_S [(Q_S' G Q_A) / (s a' + lambda)] Q_A'``: damping in the eigenbasis."""

    names = ("A_vectors", "S_vectors", "reciprocal")

    @staticmethod
    def invert(pairs: Sequence[Pair], dampings: Sequence[float | Tensor], defer: bool) -> list[Inverted]:
        """Return each inverse's tensors and whether they can be used (0-dim bool tensor)."""
        return [
            EigenInverse._invert(pair, damping) for pair, damping in zip(pairs, dampings, strict=True)
        ]

    @staticmethod
    def _invert(pair: Pair, damping: float | Tensor) -> Inverted:
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
        reciprocal = (spectrum + damping).reciprocal()
        return [A_vectors, S_vectors, reciprocal], reciprocal.isfinite().all()

    @staticmethod
    def multiply(pair: Pair, damping: float | Tensor, matrix: Tensor) -> Tensor:
        """Multiply a matrix ``(out, in)`` or ``(G, out, in)`` by the damped block."""
        rows, columns = matrix.shape[-2:]
        product = multiply_right(multiply_left(pair.S, matrix), pair.A)[..., :rows, :columns]
        return product + damping * matrix

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_vectors, S_vectors, reciprocal = tensors
        rotated = multiply_left(S_vectors.mT, gradient)
        if A_vectors.numel():
            rotated = multiply_right(rotated, A_vectors)
        rotated = multiply_left(S_vectors, pad_last(rotated, reciprocal.shape[-1]) * reciprocal)
        return multiply_right(rotated, A_vectors.mT) if A_vectors.numel() else rotated


INVERSES: dict[str, type[CholeskyInverse] | type[EigenInverse]] = {
    "cholesky": CholeskyInverse,
    "eigen": EigenInverse,
}


class SafeInverse:
    """An inverse that is never handed out broken.

    The last good inverse stays where nothing helps. Before the first good one the block does not move.

    :param kind: a key of :data:`INVERSES`
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.form = INVERSES[kind]
        self.tensors: list[Tensor] = []
        self.boost: Tensor | None = None  # damping multiplier after failures, accelerators only
        self.age = 0  # how often the tensors were used since they were made
        # How often statistics had been taken when it was made, and the damping.
        self.source: tuple[int, float] | None = None

    def apply(self, gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix; zero before the first good inverse."""
        if not self.tensors:
            return torch.zeros_like(gradient)
        self.age += 1
        rows, columns = gradient.shape[-2:]
        return self.form.apply(self.tensors, gradient)[..., :rows, :columns]

    def state_dict(self) -> dict[str, object]:
        """Return the inverse, its age and the boost as plain containers of tensors."""
        plain = {"boost": self.boost, "age": self.age, "source": self.source}
        return {"tensors": list(self.tensors), **plain}

    def load_state_dict(self, state: dict[str, object], like: Tensor) -> None:
        """Restore :meth:`state_dict` onto the device and dtype of ``like``."""
        tensors, boost, age = state["tensors"], state["boost"], state["age"]
        assert isinstance(tensors, list)
        assert isinstance(age, int)
        self.tensors = [x.to(like, copy=True) for x in tensors]
        self.boost = boost.to(like, copy=True) if isinstance(boost, Tensor) else None
        self.age = age
        self.source = state.get("source")  # type: ignore[assignment]


def refresh(
    inverses: Sequence[SafeInverse],
    pairs: Sequence[Pair],
    damping: float | Tensor,
    counters: dict[str, Tensor],
    defer: bool,
) -> None:
    """Invert the factors of many blocks anew, and guard each block against a failure.

    On the CPU a failure is looked at at once: retry in float64, then with tenfold damping again and
    again. On an accelerator a look would stall the queue: there a failed refresh keeps the last good
    inverse and the next refresh runs with ten times the damping, all of it on the device.

    :param inverses: of one kind
    :param pairs: their factors
    :param damping: lambda
    :param counters: ``float64_retries``, ``damping_escalations`` and ``kept_inverses`` are added to
    :param defer: do not look at the result from the host
    """
    publish(inverses, invert(inverses, pairs, damping, defer), pairs, damping, counters, defer)


def invert(
    inverses: Sequence[SafeInverse], pairs: Sequence[Pair], damping: float | Tensor, defer: bool
) -> list[Inverted]:
    """Invert many blocks; reads nothing but its arguments, so that it can run in a thread."""
    dampings = [damping if i.boost is None else damping * i.boost for i in inverses]
    return inverses[0].form.invert(pairs, dampings, defer) if inverses else []


def publish(
    inverses: Sequence[SafeInverse],
    found: Sequence[Inverted],
    pairs: Sequence[Pair],
    damping: float | Tensor,
    counters: dict[str, Tensor],
    defer: bool,
) -> None:
    """Put what :func:`invert` found into use where it is good, and help where it is not."""
    take: Callable[..., None] = _take_deferred if defer else _take
    for inverse, (tensors, ok), pair in zip(inverses, found, pairs, strict=True):
        take(inverse, tensors, ok, pair, damping, counters)


def _take(
    inverse: SafeInverse,
    tensors: list[Tensor],
    ok: Tensor,
    pair: Pair,
    damping: float | Tensor,
    counters: dict[str, Tensor],
) -> None:
    if not ok:
        counters["float64_retries"] += 1
        dtype, pair = pair.A.dtype, pair.double()
        size = mean_eigenvalue(pair.A, pair.sizes[0], pair.grouped).max()
        size = size * mean_eigenvalue(pair.S, pair.sizes[1], pair.grouped).max()
        base = max(float(damping), float(size) * 1e-8)
        ((tensors, ok),) = inverse.form.invert([pair], [damping], False)
        for power in range(1, MAX_ESCALATIONS + 1):
            if ok:
                break
            counters["damping_escalations"] += 1
            ((tensors, ok),) = inverse.form.invert([pair], [base * 10.0**power], False)
        tensors = [x.to(dtype) for x in tensors]
        ok = ok & torch.stack([x.isfinite().all() for x in tensors]).all() if tensors else ok
    if ok:
        inverse.tensors, inverse.age = tensors, 0
    else:
        counters["kept_inverses"] += 1


def _take_deferred(
    inverse: SafeInverse,
    tensors: list[Tensor],
    ok: Tensor,
    pair: Pair,
    damping: float | Tensor,
    counters: dict[str, Tensor],
) -> None:
    boost = pair.A.new_ones(()) if inverse.boost is None else inverse.boost
    counters["damping_escalations"] += boost > 1.0
    if not tensors:  # a decomposition that raised
        counters["kept_inverses"] += 1
        return
    old = inverse.tensors or [torch.zeros_like(x) for x in tensors]
    inverse.tensors = [torch.where(ok, x, y) for x, y in zip(tensors, old, strict=True)]
    inverse.age = 0
    counters["kept_inverses"] += ok.logical_not()
    # Up tenfold after a failure, down again tenfold after a success, never below 1.
    inverse.boost = torch.where(ok, boost / 10.0, boost * 10.0).clamp(1.0, 10.0**MAX_ESCALATIONS)
