"""Damped inverses of a Kronecker product, and what happens when a factorisation fails.

``"cholesky"``: factored Tikhonov damping (Martens & Grosse 2015, sec. 6.3): the block
``A (x) S + lambda I`` is replaced by ``(A + pi sqrt(lambda) I) (x) (S + sqrt(lambda) / pi I)`` with
``pi^2 = (tr A / dim A) / (tr S / dim S)``, and both factors are inverted by Cholesky.

``"eigen"``: ``A (x) S + lambda I`` itself, inverted in the eigenbasis of the factors: the damping of
the released ACKTR code. Dearer, exact in the damping.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acktr.kfac.factors import trace

MAX_ESCALATIONS = 6  # tenfold each: beyond a million times the damping something else is wrong


def add_to_diagonal(matrix: Tensor, value: Tensor) -> Tensor:
    """Return ``matrix + value I``; a vector is a diagonal; a batch takes one value per matrix."""
    if matrix.ndim == 1:
        return matrix + value
    out = matrix.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(value.unsqueeze(-1))
    return out


def mean_eigenvalue(matrix: Tensor) -> Tensor:
    """``tr X / dim X``, one for each matrix of a batch."""
    if matrix.ndim == 1:
        return matrix.mean()
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1)


def damp(A: Tensor, S: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """Factored Tikhonov damping of one block, see the module's docstring."""
    tiny = torch.finfo(A.dtype).tiny
    pi = (mean_eigenvalue(A).clamp_min(tiny) / mean_eigenvalue(S).clamp_min(tiny)).sqrt()
    # A factor that is all zero gives pi = 0 or inf: such a block has no balance to keep.
    pi = pi.clamp(1e-6, 1e6)
    root = torch.as_tensor(damping, dtype=A.dtype, device=A.device).sqrt()
    return add_to_diagonal(A, pi * root), add_to_diagonal(S, root / pi)


def spd_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Invert a symmetric positive definite matrix (or batch, or diagonal) and say whether it worked.

    :return: the inverse and a 0-dim bool tensor, on the device and without a host sync
    """
    if matrix.ndim == 1:
        inverse = matrix.reciprocal()
        return inverse, inverse.isfinite().all() & (matrix > 0).all()
    root, info = torch.linalg.cholesky_ex(matrix)
    # Not cholesky_inverse: it looks at the diagonal of the root from the host, and raises.
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    inverse = torch.cholesky_solve(eye.expand_as(root), root)
    return inverse, (info == 0).all() & trace(inverse).isfinite()


def multiply_right(matrix: Tensor, factor: Tensor) -> Tensor:
    """``matrix @ factor``, where a vector is a diagonal."""
    product: Tensor = matrix * factor if factor.ndim == 1 else matrix @ factor
    return product


class CholeskyInverse:
    """``G -> S^-1 G A^-1`` with factored Tikhonov damping and explicit inverses."""

    names = ("A_inverse", "S_inverse")

    @staticmethod
    def invert(A: Tensor, S: Tensor, damping: float | Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the inverse's tensors and whether they can be used (0-dim bool tensor)."""
        (A_inverse, A_ok), (S_inverse, S_ok) = map(spd_inverse, damp(A, S, damping))
        return [A_inverse, S_inverse], A_ok & S_ok

    @staticmethod
    def multiply(A: Tensor, S: Tensor, damping: float | Tensor, matrix: Tensor) -> Tensor:
        """Multiply a matrix ``(out, in)`` or ``(G, out, in)`` by the damped block."""
        A, S = damp(A, S, damping)
        return multiply_right(S @ matrix, A)

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_inverse, S_inverse = tensors
        return multiply_right(S_inverse @ gradient, A_inverse)


class EigenInverse:
    """``G -> Q_S [(Q_S' G Q_A) / (s a' + lambda)] Q_A'``: damping in the eigenbasis."""

    names = ("A_vectors", "S_vectors", "reciprocal")

    @staticmethod
    def invert(A: Tensor, S: Tensor, damping: float | Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the inverse's tensors and whether they can be used (0-dim bool tensor)."""
        try:
            s, S_vectors = torch.linalg.eigh(S)
            # A diagonal factor is its own eigendecomposition; an empty tensor stands for identity.
            a, A_vectors = (A, A.new_empty(0)) if A.ndim == 1 else torch.linalg.eigh(A)
        except torch.linalg.LinAlgError:
            return [], torch.zeros((), dtype=torch.bool, device=A.device)
        spectrum = s.clamp_min(0.0).unsqueeze(-1) * a.clamp_min(0.0).unsqueeze(-2)
        reciprocal = (spectrum + damping).reciprocal()
        return [A_vectors, S_vectors, reciprocal], reciprocal.isfinite().all()

    @staticmethod
    def multiply(A: Tensor, S: Tensor, damping: float | Tensor, matrix: Tensor) -> Tensor:
        """Multiply a matrix ``(out, in)`` or ``(G, out, in)`` by the damped block."""
        return multiply_right(S @ matrix, A) + damping * matrix

    @staticmethod
    def apply(tensors: list[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)`` or ``(G, out, in)``."""
        A_vectors, S_vectors, reciprocal = tensors
        if A_vectors.numel() == 0:
            return S_vectors @ ((S_vectors.mT @ gradient) * reciprocal)
        rotated = (S_vectors.mT @ gradient @ A_vectors) * reciprocal
        return S_vectors @ rotated @ A_vectors.mT


INVERSES: dict[str, type[CholeskyInverse] | type[EigenInverse]] = {
    "cholesky": CholeskyInverse,
    "eigen": EigenInverse,
}


class SafeInverse:
    """An inverse that is refreshed now and then and never handed out broken.

    On the CPU a failure is looked at at once: retry in float64, then with tenfold damping again and
    again. On an accelerator a look would stall the queue: there a failed refresh keeps the last good
    inverse and the next refresh runs with ten times the damping, all of it on the device. In both
    cases the last good inverse stays where nothing helps. Before the first good one the block does
    not move.

    :param kind: a key of :data:`INVERSES`
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.form = INVERSES[kind]
        self.tensors: list[Tensor] = []
        self.boost: Tensor | None = None  # damping multiplier after failures, accelerators only
        self.age = 0  # how often the tensors were used since they were made

    def refresh(
        self, A: Tensor, S: Tensor, damping: float, counters: dict[str, Tensor], defer: bool
    ) -> None:
        """Invert anew from the factors.

        :param A: input factor, ``(in, in)``, ``(G, in, in)`` or a diagonal ``(in,)``
        :param S: output factor, ``(out, out)`` or ``(G, out, out)``
        :param damping: lambda
        :param counters: ``float64_retries``, ``damping_escalations`` and ``kept_inverses`` are added to
        :param defer: do not look at the result from the host
        """
        if defer:
            self._refresh_deferred(A, S, damping, counters)
            return
        tensors, ok = self.form.invert(A, S, damping)
        if not ok:
            counters["float64_retries"] += 1
            base = max(damping, float(mean_eigenvalue(A).max() * mean_eigenvalue(S).max()) * 1e-8)
            tensors, ok = self.form.invert(A.double(), S.double(), damping)
            for power in range(1, MAX_ESCALATIONS + 1):
                if ok:
                    break
                counters["damping_escalations"] += 1
                tensors, ok = self.form.invert(A.double(), S.double(), base * 10.0**power)
            tensors = [x.to(A.dtype) for x in tensors]
            ok = ok & torch.stack([x.isfinite().all() for x in tensors]).all() if tensors else ok
        if ok:
            self.tensors, self.age = tensors, 0
        else:
            counters["kept_inverses"] += 1

    def _refresh_deferred(
        self, A: Tensor, S: Tensor, damping: float, counters: dict[str, Tensor]
    ) -> None:
        if self.boost is None:
            self.boost = A.new_ones(())
        counters["damping_escalations"] += self.boost > 1.0
        tensors, ok = self.form.invert(A, S, damping * self.boost)
        old = self.tensors or [torch.zeros_like(x) for x in tensors]
        self.tensors = [torch.where(ok, x, y) for x, y in zip(tensors, old, strict=True)]
        self.age = 0
        counters["kept_inverses"] += ok.logical_not()
        # Up tenfold after a failure, down again tenfold after a success, never below 1.
        self.boost = torch.where(ok, self.boost / 10.0, self.boost * 10.0).clamp(
            1.0, 10.0**MAX_ESCALATIONS
        )

    def apply(self, gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix; zero before the first good inverse."""
        if not self.tensors:
            return torch.zeros_like(gradient)
        self.age += 1
        return self.form.apply(self.tensors, gradient)

    def state_dict(self) -> dict[str, object]:
        """Return the inverse, its age and the boost as plain containers of tensors."""
        return {"tensors": list(self.tensors), "boost": self.boost, "age": self.age}

    def load_state_dict(self, state: dict[str, object], like: Tensor) -> None:
        """Restore :meth:`state_dict` onto the device and dtype of ``like``."""
        tensors, boost, age = state["tensors"], state["boost"], state["age"]
        assert isinstance(tensors, list)
        assert isinstance(age, int)
        self.tensors = [x.to(like, copy=True) for x in tensors]
        self.boost = boost.to(like, copy=True) if isinstance(boost, Tensor) else None
        self.age = age
