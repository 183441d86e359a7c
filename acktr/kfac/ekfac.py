"""EKFAC: measured eigenvalues in K-FAC's eigenbasis (George et al. 2018, arXiv 1806.03884).

With ``A = Q_A diag(a) Q_A'`` and ``S = Q_S diag(s) Q_S'`` K-FAC's block is diagonal in the basis
``Q_S (x) Q_A``, with the products ``s_i a_j`` as its diagonal. EKFAC keeps the basis and measures the
diagonal: the second moments of the gradients G of single samples ::

    M = E[(Q_S' G Q_A)^2],    G = sum_t g_t a_t',    F ~ (Q_S (x) Q_A) diag(M) (Q_S (x) Q_A)'

M is the diagonal of the exact block in this basis, so no other diagonal is nearer to the block in the
Frobenius norm, K-FAC's own included (their eq. 6). The basis is made anew as inverses are; M is
averaged at each ``update_curvature``, in the basis of that time, and follows it into the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.assignment import Spec
from acktr.kfac.averages import Gram, RunningAverage
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.factors import Dense, Diagonal
from acktr.kfac.inverses import Eigenbasis, EigenInverse, Method, rotate
from acktr.kfac.options import Curvature
from acktr.kfac.samples import Batch, second_moments, use_by_sample
from acktr.kfac.uses import Used


class CorrectedAverage(RunningAverage):
    """Averages of A and S, and one of M, which begins later: with the first eigenbasis."""

    def __init__(self, decay: float) -> None:
        super().__init__(decay)
        self.moments = RunningAverage(decay)

    def update(self, new: tuple[Tensor | Gram, ...], finite: bool | Tensor, like: Tensor) -> None:
        """Average A, S and M in; M counts once there is a basis that it is taken in."""
        super().update(new[:2], finite, like)
        if self.moments.values:
            self.moments.update(new[2:], finite, like)

    def state_dict(self) -> dict[str, Any]:
        """Return all averages and their counts."""
        return {**super().state_dict(), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state, like)
        self.moments.load_state_dict(state["moments"], like)


class EigenvalueCorrectedBlock(KroneckerBlock):
    """``F = (Q_S (x) Q_A) diag(M) (Q_S (x) Q_A)'``, see the module.

    Before the first refresh it is K-FAC's block, and until the first statistics after it M is K-FAC's
    spectrum.
    """

    average: CorrectedAverage

    def __init__(self, spec: Spec, params: dict[str, nn.Parameter], options: Curvature) -> None:
        super().__init__(spec, params, options)
        self.average = CorrectedAverage(options.stat_decay)
        self._basis: list[Tensor] = []  # that M is taken in

    @property
    def method(self) -> Method:
        """The eigenbasis alone."""
        return Eigenbasis

    @property
    def needs_samples(self) -> bool:
        """Whether statistics need to know which rows are of one sample: the moments do."""
        return True

    def reset(self) -> None:
        """Forget statistics, basis and moments."""
        super().reset()
        self._basis = []

    def statistics(self, uses: Sequence[Used], batch: Batch) -> tuple[Tensor | Gram, ...]:
        """Return A, S and the moments of this batch in the basis of now, as :meth:`shapes` has them."""
        A, S = super().statistics(uses, batch)
        if not self.has_inverse:
            return A, S, self.like.new_zeros(self.shapes(self.params)[2])
        self._follow_basis()
        shape = self.moments.shape
        if all(used.groups is None for used in uses):
            moments = self._second_moments(uses, batch, None)
        else:
            of_groups = []
            for group in range(shape[0]):
                own = [u for u in uses if u.groups is None or u.groups[0] <= group < u.groups[1]]
                found = (
                    self._second_moments(own, batch, group) if own else self.like.new_zeros(shape[1:])
                )
                of_groups.append(found)
            moments = torch.stack(of_groups)
        # What overflows is as large as can be, and never NaN: the average would keep that for ever.
        largest = torch.finfo(moments.dtype).max
        return A, S, moments.nan_to_num(nan=largest, posinf=largest).flatten()

    def _second_moments(self, uses: Sequence[Used], batch: Batch, group: int | None) -> Tensor:
        rows = [self._projected(used, batch.samples, group) for used in uses]
        return second_moments(rows, batch.units, self.moments.shape[-1], self.like.dtype)

    def _projected(self, used: Used, batch: int, group: int | None) -> tuple[Tensor, Tensor, bool]:
        """Return the rows of a and g by sample, in the eigenbasis; those of words stay indices."""
        a, g, whole = use_by_sample(used, batch, self.form.shape[-2], group)
        dtype = self.options.statistics_dtype or self.like.dtype
        A_vectors, S_vectors = (x.to(dtype) for x in self._basis)
        if group is not None:
            A_vectors, S_vectors = A_vectors[group], S_vectors[group]
        kinds = self.inverse.kinds
        g = _rotated(g.to(dtype), S_vectors, kinds.S)
        if "weight" not in self.params:  # only the bias learns: its input is the constant 1
            a = torch.ones_like(g[..., :1])
        elif isinstance(kinds.A, Diagonal):  # of words
            return a, g, whole
        elif "bias" in self.params:
            a = torch.cat([a, a.new_ones((*a.shape[:-1], 1))], -1)
        return _rotated(a.to(dtype), A_vectors, kinds.A), g, whole

    def _follow_basis(self) -> None:
        """Bring the moments into the basis of now.

        The diagonal of ``R diag(M) R'`` with ``R = R_S (x) R_A`` from the old basis to the new one is
        the product of M with the squares of the entries of R.
        """
        *basis, spectrum = self.inverse.tensors
        if self._basis and self._basis[1] is basis[1]:
            return
        average = self.average.moments
        moments, count = spectrum, spectrum.new_zeros(())
        if self._basis:
            (A_new, S_new), (A_old, S_old) = basis, self._basis
            moments = average.values[0].view_as(spectrum)
            kinds = self.inverse.kinds
            moments = kinds.S.left((S_new.mT @ S_old).square(), moments)
            if not isinstance(kinds.A, Diagonal):
                moments = kinds.A.right(moments, (A_old.mT @ A_new).square())
            # On an accelerator a basis may have been zeros, in the place of one that failed.
            there = S_old.any()
            moments = torch.where(there, moments, spectrum)
            assert average.count is not None
            count = torch.where(there, average.count, count)
        # Memory of their own, which later averaging writes into.
        average.values, average.count = (moments.flatten().clone(),), count
        self._basis = basis

    @property
    def moments(self) -> Tensor:
        """M, ``(out, in)`` or ``(G, out, in)``, with the padding of split factors."""
        self._follow_basis()
        return self.average.moments.values[0].view_as(self.inverse.tensors[2])

    def _scaled(self, matrix: Tensor, scales: Tensor) -> Tensor:
        """Multiply each coordinate in the eigenbasis by a number of its own."""
        rows, columns = matrix.shape[-2:]
        scaled = EigenInverse.apply(self.inverse.kinds, [*self._basis, scales], matrix)
        return scaled[..., :rows, :columns]

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``Q_S [(Q_S' G Q_A) / (M + lambda)] Q_A'``; without damping, what no sample moves stays."""
        if not self.has_inverse:
            return super().precondition(grads, damping)
        moments = self.moments
        # The eigenvectors are right to rounding, and M, which is of second order, to its square.
        rounding = (torch.finfo(moments.dtype).eps * max(moments.shape)) ** 2 * moments.max()
        moves = (moments > rounding) | (torch.as_tensor(damping) > 0)
        scales = torch.where(moves, (moments + damping).reciprocal(), 0.0)
        return self._from_matrix(self._scaled(self._to_matrix(grads), scales))

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``sum M (Q_S' D Q_A)^2``."""
        if not self.has_inverse:
            return super().quadratic(steps)
        moments = self.moments
        rotated = rotate(self.inverse.kinds, self._basis, self._to_matrix(steps))
        return torch.sum(moments * rotated.square())

    def dense(self) -> Tensor:
        """Return the block of the Fisher, ``(P, P)``: column by column what it makes of a step."""
        if not self.has_inverse:
            return super().dense()
        groups, columns, rows = self._sizes(self.params)
        steps = torch.eye(math.prod(groups) * rows * columns).to(self.like)
        return torch.stack(
            [self._scaled(x.view(*groups, rows, columns), self.moments).flatten() for x in steps], 1
        )

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of A and S, and of M as a vector.

        A vector, because of square matrices only a triangle travels between processes.
        """
        return [*super().shapes(params), (math.prod(self._kinds(params).spectrum_shape),)]

    def average_shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of A and S alone."""
        return super().shapes(params)

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse other shapes, and the state of a block that measures no moments."""
        super().check_state(state)
        shapes = [tuple(value.shape) for value in state["average"]["moments"]["values"]]
        if shapes and shapes != self.shapes(self._params_of(state))[2:]:
            raise ValueError(
                f"The moments of block {self.name!r} have shapes {shapes} in this state, but the model "
                f"needs {self.shapes(self._params_of(state))[2:]}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return factors, basis and the moments in it."""
        if self.has_inverse:
            self._follow_basis()
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self._basis = self.inverse.tensors[:2] if self.average.moments.values else []


def _rotated(rows: Tensor, vectors: Tensor, kind: Dense) -> Tensor:
    """Multiply rows ``(..., N, T, d)`` by eigenvectors."""
    samples = rows.shape[-3:-1]
    rotated: Tensor = kind.into_basis(rows.flatten(-3, -2), vectors).unflatten(-2, samples)
    return rotated
