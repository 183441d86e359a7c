"""Blocks of weights that a recurrent layer uses at T time steps (Martens, Ba & Johnson 2018).

The gradient of one sample is ``sum_t w_t`` with ``w_t = vec(g_t a_t')``, so that the block is the sum of
``E[w_t w_s']`` over all pairs of steps. ``recurrent="independent"`` keeps the pairs ``t = s``. The other
two take ``w_t`` for a stationary chain, linear with Gaussian noise::

    w_t = Psi w_(t-1) + noise,   V_0 = A_0 (x) G_0,   V_d = E[w_t w_(t-d)'] = Psi^d V_0
    Psi = Psi_A (x) Psi_G,   Psi_A = A_1 A_0^-1,   A_1 = E[a_t a_(t-1)'],   and so for G

    "lgm-1"   F = T V_0^(1/2) gamma(Psi_hat) V_0^(1/2),   gamma(x) = sum_(|d|<T) (1 - |d|/T) x^|d|
              A_1 and G_1 symmetric: Psi_hat = V_0^(-1/2) V_1 V_0^(-1/2) has orthogonal eigenvectors
    "lgm-2"   F = T (I - Psi)^-1 (V_0 - Psi V_0 Psi') (I - Psi')^-1
              T to infinity, and nothing symmetric

Damping is that of ``inverse="cholesky"``: ``A_0 + pi sqrt(lambda) I`` and ``G_0 + sqrt(lambda) / pi I``
stand for A_0 and G_0 wherever the inverse has them, in Psi too, which is drawn towards 0 by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acktr.kfac.assignment import Spec
from acktr.kfac.averages import Gram
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.factors import split_shape
from acktr.kfac.inverses import EigenInverse, Inverted, Kinds, Method, Pair, damping_shifts
from acktr.kfac.options import Curvature
from acktr.kfac.samples import Batch, counted_rows, use_by_sample
from acktr.kfac.uses import Owners, Used

# A direction in which the steps cancel keeps a twentieth of its curvature: gamma(-1) is 0 for even T,
# and what estimates say of such a direction is noise.
LOWEST = -0.9


class Whitened(NamedTuple):
    """A factor X with its lag X_1, in coordinates in which X is the identity.

    :param root: R with ``R R' = X``, ``(d, d)``
    :param inverse_root: W with ``W' R = I`` where X has any rank, ``(d, d)``
    :param psi: ``W' X_1 W``, ``(d, d)``
    """

    root: Tensor
    inverse_root: Tensor
    psi: Tensor


def whiten(factor: Tensor, lagged: Tensor, shift: Tensor | float = 0.0) -> Whitened:
    """Bring a factor and its lag into coordinates in which the factor, with ``shift`` on it, is I.

    :raises torch.linalg.LinAlgError: no decomposition
    """
    values, vectors = torch.linalg.eigh(factor)
    # What no row has a part in has no lag either: without damping it is left out.
    rounding = values.max() * len(values) * torch.finfo(values.dtype).eps
    values = values.clamp_min(0.0) + shift
    kept = (values > rounding) | (torch.as_tensor(shift) > 0)
    root = torch.where(kept, values, 0.0).sqrt()
    inverse = torch.where(kept, values, 1.0).rsqrt() * kept
    W = vectors * inverse
    return Whitened(vectors * root, W, W.T @ lagged @ W)


def gamma(x: Tensor, steps: int) -> Tensor:
    """``sum over lags |d| < T of (1 - |d|/T) x^|d|``, entry by entry, in float64.

    ``2 (1 - x (1 - x^T) / (T (1 - x))) / (1 - x) - 1``, which is T at x = 1.

    :param x: in [-1, 1]
    :param steps: T
    """
    x = x.double().clamp(LOWEST, 1.0 - 1e-7)  # at 1 the fraction is 0 / 0
    rest = 1.0 - x
    faded = torch.where(x > 0, -torch.expm1(steps * x.abs().log()), 1.0 - x**steps)  # 1 - x^T
    return 2.0 * (1.0 - x * faded / (steps * rest)) / rest - 1.0


class SymmetricChain(EigenInverse):
    """``"lgm-1"``: one spectrum in coordinates that are neither orthogonal nor of length 1."""

    names = ("A_left", "S_left", "reciprocal")

    @classmethod
    def _invert(cls, pair: Pair, damping: float | Tensor) -> Inverted:
        try:
            A, S = _whitened(pair, damping)
            a, s = (_symmetric(x) for x in (A, S))
        except torch.linalg.LinAlgError:
            return [], torch.zeros((), dtype=torch.bool, device=pair.A.device)
        reciprocal = cls._spectrum(a[0], s[0], pair).reciprocal()
        left = [A.inverse_root @ a[1], S.inverse_root @ s[1]]
        return [*left, reciprocal], reciprocal.isfinite().all() & left[1].isfinite().all()

    @staticmethod
    def _spectrum(a: Tensor, s: Tensor, pair: Pair) -> Tensor:
        a, s = a.clamp(-1.0, 1.0), s.clamp(-1.0, 1.0)  # as moments of whole chains are, and means not
        return gamma(s.unsqueeze(-1) * a, steps_of(pair)).to(a)

    @classmethod
    def curvature(cls, pair: Pair) -> list[Tensor]:
        """Return what :meth:`quadratic` and :meth:`dense` need of undamped factors."""
        A, S = _whitened(pair)
        (a, U), (s, V) = (_symmetric(x) for x in (A, S))
        return [A.root @ U, S.root @ V, cls._spectrum(a, s, pair)]

    @staticmethod
    def quadratic(curvature: Sequence[Tensor], matrix: Tensor) -> Tensor:
        """``D' F D`` of a matrix ``(out, in)``."""
        A, S, spectrum = curvature
        return torch.sum(spectrum * (S.T @ matrix @ A).square())

    @staticmethod
    def dense(curvature: Sequence[Tensor]) -> Tensor:
        """Return F, ``(out in, out in)``."""
        A, S, spectrum = curvature
        left = torch.kron(S.contiguous(), A.contiguous())
        return (left * spectrum.flatten()) @ left.T


class EndlessChain(EigenInverse):
    """``"lgm-2"``: ``F^-1 = (I - Psi') K diag(1 / (1 - mu)) K' (I - Psi)`` with ``K' V_0 K = I``.

    mu are the squares of the singular values of Psi_hat. Those of the G part are bounded by
    (T - 1) / (T + 1) and those of the A part by 1, which a bias has: then no direction has more than T
    times the curvature of independent steps, which T equal steps have, or less than a T-th. Without it
    what is nearly constant over T steps would count as constant for ever.
    """

    names = ("A_psi", "S_psi", "A_left", "S_left", "reciprocal")

    @classmethod
    def _invert(cls, pair: Pair, damping: float | Tensor) -> Inverted:
        try:
            A, S = _whitened(pair, damping)
            (U, a, A_psi), (V, s, S_psi) = cls._stable(A, S, pair)
        except torch.linalg.LinAlgError:
            return [], torch.zeros((), dtype=torch.bool, device=pair.A.device)
        reciprocal = (1.0 - s.square().unsqueeze(-1) * a.square()).reciprocal()
        psi = [X.root @ x @ X.inverse_root.T for X, x in ((A, A_psi), (S, S_psi))]
        left = [A.inverse_root @ U, S.inverse_root @ V]
        return [*psi, *left, reciprocal], reciprocal.isfinite().all() & left[1].isfinite().all()

    @staticmethod
    def _stable(A: Whitened, S: Whitened, pair: Pair) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return left singular vectors, singular values, and their product, of Psi_hat in bounds."""
        steps = steps_of(pair)
        found = []
        for psi, largest in ((A.psi, 1.0), (S.psi, (steps - 1) / (steps + 1))):
            U, values, V = torch.linalg.svd(psi)
            values = values.clamp_max(largest)
            found.append((U, values, (U * values) @ V))
        return found

    @staticmethod
    def shapes(kinds: Kinds) -> list[tuple[int, ...]]:
        """Return the shapes of the inverse's tensors."""
        A, S = kinds.A.shape, kinds.S.shape
        return [A, S, A, S, (S[0], A[0])]

    @staticmethod
    def apply(kinds: Kinds, tensors: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix of shape ``(out, in)``."""
        A_psi, S_psi, *spectrum = tensors
        solved = EigenInverse.apply(kinds, spectrum, gradient - S_psi @ gradient @ A_psi.T)
        return solved - S_psi.T @ solved @ A_psi

    @classmethod
    def curvature(cls, pair: Pair) -> list[Tensor]:
        """Return the roots of undamped factors, and ``Psi_hat^(2^k)`` until it is 0."""
        A, S = _whitened(pair)
        (_, _, a), (_, _, s) = cls._stable(A, S, pair)
        powers = [a, s]
        for _ in range(math.ceil(math.log2(steps_of(pair))) + 5):  # 32 T lags: e^-64 at the bounds
            powers += [powers[-2] @ powers[-2], powers[-1] @ powers[-1]]
        return [A.root, S.root, *powers]

    @staticmethod
    def quadratic(curvature: Sequence[Tensor], matrix: Tensor) -> Tensor:
        """``D' F D`` of a matrix ``(out, in)``: ``(I - Psi')^-1`` is a sum of powers, by doubling."""
        A, S, *powers = curvature
        y = S.T @ matrix @ A
        for a, s in zip(powers[::2], powers[1::2], strict=True):
            y = y + s.T @ y @ a
        return y.square().sum() - (powers[1].T @ y @ powers[0]).square().sum()

    @staticmethod
    def dense(curvature: Sequence[Tensor]) -> Tensor:
        """Return F, ``(out in, out in)``."""
        A, S, a, s, *_ = curvature
        psi, root = torch.kron(s, a), torch.kron(S.contiguous(), A.contiguous())
        one = torch.eye(len(psi)).to(psi)
        solved = torch.linalg.solve(one - psi, root, left=False)
        dense: Tensor = solved @ (one - psi @ psi.T) @ solved.T
        return dense


CHAINS: dict[str, type[SymmetricChain] | type[EndlessChain]] = {
    "lgm-1": SymmetricChain,
    "lgm-2": EndlessChain,
}


def _whitened(pair: Pair, damping: float | Tensor | None = None) -> tuple[Whitened, Whitened]:
    assert pair.lags is not None
    A, S = pair.A, pair.S
    shifts: Sequence[Tensor | float] = (0.0, 0.0)
    if damping is not None:
        shifts = damping_shifts([pair], [damping])
    lagged_A, lagged_S = pair.lags[:-1].split([A.numel(), S.numel()])
    return whiten(A, lagged_A.view_as(A), shifts[0]), whiten(S, lagged_S.view_as(S), shifts[1])


def _symmetric(whitened: Whitened) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((whitened.psi + whitened.psi.T) / 2.0)
    return values, vectors


def steps_of(pair: Pair) -> int:
    """Return T; of samples of different lengths, that of equal ones with as many neighbours a step."""
    assert pair.lags is not None
    return max(1, round(1.0 / (1.0 - float(pair.lags[-1]))))


def is_chain(spec: Spec, module: type[nn.Module], options: Curvature) -> bool:
    """Whether a block is of a recurrent layer's weight, and one that can be taken for a chain.

    A weight frozen from the start has no matrix, and a factor wider than ``max_factor_size`` is split:
    their blocks are those of ``"independent"``.

    :param spec: of the block
    :param module: the type of the module that holds its weight
    """
    if options.recurrent not in CHAINS or spec.form is None or spec.form.view is None:
        return False
    sizes = spec.form.shape[-2], spec.form.shape[-1] + 1
    whole = all(split_shape(size, options.max_factor_size) is None for size in sizes)
    return whole and is_recurrent(module)


def is_recurrent(module: type[nn.Module]) -> bool:
    """Whether a type of module is a recurrent layer, or a cell of one.

    Other types than torch's say so themselves, by an attribute ``recurrent = True``.
    """
    return issubclass(module, nn.RNNBase | nn.RNNCellBase) or getattr(module, "recurrent", False)


class LinearGaussianBlock(KroneckerBlock):
    """``"lgm-1"`` or ``"lgm-2"`` of one weight, see the module.

    Averaged are A, S, and one vector of their lags: A_1 in the units of A, S_1 in those of S, and how
    many neighbours in time there are for each step, which is ``1 - 1/T`` of T steps.
    """

    def __init__(self, spec: Spec, params: dict[str, nn.Parameter], options: Curvature) -> None:
        super().__init__(spec, params, options)
        self._curvature: tuple[tuple[Tensor, ...], list[int], list[Tensor]] = ((), [], [])

    @property
    def method(self) -> Method:
        """The inverse of the chain."""
        return self._chain

    @property
    def _chain(self) -> type[SymmetricChain] | type[EndlessChain]:
        return CHAINS[self.options.recurrent]

    @property
    def needs_samples(self) -> bool:
        """Whether statistics need to know which rows are of one sample: for its steps."""
        return True

    def statistics(self, uses: Sequence[Used], batch: Batch) -> tuple[Tensor | Gram, ...]:
        """Return A, S and the lags of this batch.

        :raises RuntimeError: rows that belong to no sample in equal parts, so that nobody knows what
            follows what
        """
        a, g = self._steps(uses, batch)
        dtype = self.options.statistics_dtype or self.like.dtype
        counted = counted_rows(g, axes=2) if batch.partial else g.new_ones(g.shape[:-1])
        counted = counted.to(self.like)  # of which half precision would lose some
        both = (counted[:, 1:] * counted[:, :-1]).unsqueeze(-1)
        pairs, rows = both.sum(), counted.sum().clamp_min(1.0)
        a, g = a.to(dtype), g.to(dtype)
        A, S = ((x[:, 1:] * both.to(dtype)).flatten(0, 1).T @ x[:, :-1].flatten(0, 1) for x in (a, g))
        share, pairs = pairs / rows, pairs.clamp_min(1.0)
        A, S = (x.to(self.like) for x in (A, S))
        # The mean over pairs, times the steps of a sample: the units of A.
        A, S = A * (rows / pairs / batch.units), S / pairs
        lags = torch.cat([A.flatten(), S.flatten(), share.to(A).reshape(1)])
        return (*super().statistics(uses, batch), lags)

    def _steps(self, uses: Sequence[Used], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the rows ``(N, T, in)`` and ``(N, T, out)`` of all uses, in the order of time."""
        inputs, outputs = [], []
        for used in sorted(uses, key=lambda u: u.use.created):
            a, g, whole = use_by_sample(used, batch.samples, self.form.shape[-2], None)
            if not whole or isinstance(used.layout, Owners):
                raise RuntimeError(
                    f"recurrent={self.options.recurrent!r} needs to know the time steps of each sample, "
                    f"and the rows of {self.name!r} do not belong to samples in equal parts: pad "
                    "sequences in place of packing them, leave the axis of samples in the outputs, or "
                    "take recurrent='independent'."
                )
            inputs.append(a)
            outputs.append(g)
        a, g = torch.cat(inputs, -2), torch.cat(outputs, -2)
        if "weight" not in self.params:  # only the bias learns: its input is the constant 1
            a = torch.ones_like(g[..., :1])
        elif "bias" in self.params:
            a = torch.cat([a, a.new_ones((*a.shape[:-1], 1))], -1)
        return a, g

    @property
    def pair(self) -> Pair:
        """The factors of now, and their lags."""
        A, S, lags = self.average.values
        return Pair(A, S, self.inverse.kinds, lags)

    @property
    def _undamped(self) -> list[Tensor]:
        """What the quadratic form is made of, as long as the averages stay what they are."""
        # Averages are written to in place, which their versions count.
        values, versions = self.average.values, [x._version for x in self.average.values]
        if self._curvature[0] is not values or self._curvature[1] != versions:
            try:
                curvature = self._chain.curvature(self.pair)
            except torch.linalg.LinAlgError:
                curvature = [x.to(self.like) for x in self._chain.curvature(self.pair.double())]
            self._curvature = values, versions, curvature
        return self._curvature[2]

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``D' F D`` of the chain without damping."""
        return self._chain.quadratic(self._undamped, self._to_matrix(steps))

    def dense(self) -> Tensor:
        """Return F of the chain without damping, ``(out in, out in)``."""
        return self._chain.dense(self._undamped)

    def scale(self, factor: float) -> None:
        """Multiply S and its lag."""
        A, S, lags = self.average.values
        S.mul_(factor)
        lags[A.numel() : -1].mul_(factor)

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of A, S and the lags.

        Those are a vector: of square matrices only a triangle travels between processes.
        """
        A, S = super().shapes(params)
        return [A, S, (math.prod(A) + math.prod(S) + 1,)]

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state without lags, and one of the other chain."""
        lagged = len(state["average"]["values"]) in (0, 3)
        if not lagged or len(state["inverse"]["tensors"]) not in (0, len(self._chain.names)):
            raise ValueError(
                f"The curvature of block {self.name!r} in this state is not of "
                f"recurrent={self.options.recurrent!r}: load it into a KFAC with the same setting."
            )
        super().check_state(dict(state))
