"""Blocks of the block-diagonal Fisher: one for each layer, one for each other parameter.

A block knows four things: how to average its statistics, how to refresh its damped inverse, how to
precondition its gradient, and its quadratic form ``D' F D`` with the *undamped* statistics. Each can
print itself as a dense matrix, which is what the tests compare with the exact Fisher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.assignment import Spec
from acktr.kfac.averages import Gram, RunningAverage, statistics_like
from acktr.kfac.factors import Batched, BlockDiagonal, factor_of
from acktr.kfac.forms import Form
from acktr.kfac.inverses import INVERSES, Kinds, Method, Pair
from acktr.kfac.options import Curvature
from acktr.kfac.refresh import SafeInverse
from acktr.kfac.samples import (
    Batch,
    all_rows,
    combined,
    counted_rows,
    joined,
    own_rows,
)
from acktr.kfac.uses import TableUse, Used


class Block:
    """Common part: names, parameters and the running average.

    :param spec: its name, and what it is of
    :param params: its parameters by their names in the block
    :param decay: rho of the running average
    """

    def __init__(self, spec: Spec, params: dict[str, nn.Parameter], decay: float) -> None:
        self.spec = spec
        self.name = spec.name
        self.all_params = params
        self.average = RunningAverage(decay)
        self.params = self._trainable()

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.all_params.items() if p.requires_grad}

    def track_frozen(self) -> None:
        """Start the statistics anew if parameters were frozen or thawed since the last look."""
        trainable = self._trainable()
        if trainable.keys() != self.params.keys():
            self.params = trainable
            self.reset()

    def reset(self) -> None:
        """Forget all statistics."""
        self.average = type(self.average)(self.average.decay)

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype, float32 at least, and the device of the statistics."""
        return statistics_like(next(iter(self.all_params.values())))

    @property
    def ready(self) -> bool:
        """Whether statistics have been seen."""
        return bool(self.average.values)

    @property
    def has_inverse(self) -> bool:
        """Whether the block can precondition without a refresh."""
        return True

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """Return the damped natural gradient for gradients in the order of ``params``."""
        raise NotImplementedError

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """Return ``D' F D`` with the undamped statistics, a 0-dim tensor in nats."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the block of the Fisher as a matrix ``(P, P)``."""
        raise NotImplementedError

    def scale(self, factor: float) -> None:
        """Multiply the averaged Fisher by a number."""
        for value in self.average.values:
            value.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the block has learned."""
        trainable = [name in self.params for name in self.all_params]
        return {"average": self.average.state_dict(), "trainable": trainable}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state of other shapes.

        :raises ValueError: names the block and both shapes
        """
        shapes = [tuple(value.shape) for value in state["average"]["values"]]
        params = self._params_of(state)
        if shapes and shapes != self.average_shapes(params):
            raise ValueError(
                f"The curvature of block {self.name!r} has shapes {shapes} in this state, but the "
                f"model needs {self.average_shapes(params)}."
            )

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of the statistics for these trainable parameters."""
        raise NotImplementedError

    def average_shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of the averages of them, where those are others."""
        return self.shapes(params)

    def _params_of(self, state: dict[str, Any]) -> dict[str, nn.Parameter]:
        named = zip(self.all_params.items(), state["trainable"], strict=True)
        return {name: p for (name, p), trains in named if trains}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.params = self._params_of(state)
        self.average.load_state_dict(state["average"], self.like)


class KroneckerBlock(Block):
    """``F = A (x) S`` of a layer that is linear in its weight.

    Its matrix form is ``(out, in + 1)``, bias last; the dense form acts on that matrix flattened row
    by row, so it is ``kron(S, A)`` in the order of :func:`torch.kron`.

    :param options: how factors are made and inverted
    """

    def __init__(self, spec: Spec, params: dict[str, nn.Parameter], options: Curvature) -> None:
        super().__init__(spec, params, options.stat_decay)
        assert spec.form is not None
        self.form: Form = spec.form
        self.options = options
        self.inverse = SafeInverse(self.method, self.kinds)

    @property
    def method(self) -> Method:
        """How the factors are inverted."""
        return INVERSES[self.options.inverse]

    @property
    def kinds(self) -> Kinds:
        """How the factors are kept."""
        return self._kinds(self.params)

    def _kinds(self, params: dict[str, nn.Parameter]) -> Kinds:
        groups, columns, rows = self._sizes(params)
        bound, words = self.options.max_factor_size, self.form.words and "weight" in params
        return Kinds(factor_of(columns, groups, bound, words), factor_of(rows, groups, bound))

    @property
    def needs_samples(self) -> bool:
        """Whether statistics need to know which rows are of one sample."""
        return self.options.weight_sharing != "expand"

    def reset(self) -> None:
        """Forget statistics and inverse."""
        super().reset()
        self.inverse = SafeInverse(self.method, self.kinds)

    def statistics(self, uses: Sequence[Used], batch: Batch) -> tuple[Tensor | Gram, ...]:
        """Return ``A = sum a a' / N`` and ``S = sum g g' / M`` over all uses of the weight.

        M counts the rows of g: N for a plain layer, N T with T positions (KFC, sec. 3).
        """
        if all(used.groups is None for used in uses):
            return self._factors(uses, batch)
        # A packed weight: each group of rows has the uses that multiply with it.
        made: dict[tuple[int, ...], Tensor] = {}
        of_A, of_S = [], []
        for group in range(self.form.shape[0]):
            own = [u for u in uses if u.groups is None or u.groups[0] <= group < u.groups[1]]
            if not own:
                of_A.append(self.like.new_zeros(self.shapes(self.params)[0][1:]))
                of_S.append(self.like.new_zeros(self.shapes(self.params)[1][1:]))
                continue
            A, S = self._factors(own, batch, group)
            inputs = tuple(id(u.use) for u in own)
            if inputs not in made:
                made[inputs] = A.dense() if isinstance(A, Gram) else A
            of_A.append(made[inputs])
            of_S.append(S.dense() if isinstance(S, Gram) else S)
        return torch.stack(of_A), torch.stack(of_S)

    def _factors(
        self, uses: Sequence[Used], batch: Batch, group: int | None = None
    ) -> tuple[Tensor | Gram, Tensor | Gram]:
        a, g = joined(self._rows(uses, batch, group))
        # Under autocast rows come in half precision; averages and inverses are kept in the weight's.
        dtype = self.options.statistics_dtype or self.like.dtype
        a, g = (x if x.dtype.is_floating_point is False else x.to(dtype) for x in (a, g))
        A, S = self._input_factor(a, g, uses, batch), Gram(g, max(g.shape[-2], 1))
        if batch.partial:
            S = Gram(g * counted_rows(g).sum().clamp_min(1.0).rsqrt(), 1.0)
        kinds = self.inverse.kinds
        return (A.split(kinds.A) if isinstance(A, Gram) else A), S.split(kinds.S)

    def _rows(
        self, uses: Sequence[Used], batch: Batch, group: int | None
    ) -> list[tuple[Tensor, Tensor]]:
        """With ``"reduce"``, make one row of the T rows of each sample (Eschenhagen et al. 2023).

        The gradient of a sample is ``sum_t g_t a_t'``. "expand" takes the T terms as independent,
        "reduce" takes every ``a_t`` for their mean, which keeps what the positions do together.
        """
        unit = self.form.shape[-2]
        if self.options.weight_sharing == "expand":
            return [own_rows(u, all_rows(u, batch), unit, group) for u in uses]
        return combined(uses, batch, unit, group)

    def _input_factor(self, a: Tensor, g: Tensor, uses: Sequence[Used], batch: Batch) -> Tensor | Gram:
        counted = counted_rows(g) if batch.partial else None
        if "weight" not in self.params:  # only the bias learns: its input is the constant 1
            if counted is not None:
                return (counted.sum() / batch.units).expand(*g.shape[:-2], 1, 1)
            return g.new_full((*g.shape[:-2], 1, 1), g.shape[-2] / batch.number)
        use = uses[0].use
        if isinstance(use, TableUse):
            return use.counts(a, self.params["weight"].detach(), batch.units, counted)
        if counted is None:
            return Gram(a, batch.number, "bias" in self.params)
        if "bias" in self.params:
            a = torch.cat([a, a.new_ones((*a.shape[:-1], 1))], -1)
        return Gram(a * (counted / batch.units**0.5).to(a).unsqueeze(-1), 1.0)

    def _sizes(self, params: dict[str, nn.Parameter]) -> tuple[tuple[int, ...], int, int]:
        """Return the groups, the columns and the rows of the matrix form."""
        *groups, rows, columns = self.form.shape
        width = columns + ("bias" in params) if "weight" in params else 1
        return tuple(groups), width, rows

    @property
    def is_split(self) -> bool:
        """Whether a factor is kept as diagonal blocks."""
        return any(isinstance(kind, BlockDiagonal) for kind in self.inverse.kinds)

    @property
    def pair(self) -> Pair:
        """The factors of now."""
        A, S = self.average.values
        return Pair(A, S, self.inverse.kinds)

    @property
    def has_inverse(self) -> bool:
        """Whether an inverse was ever made."""
        return bool(self.inverse.tensors)

    def _to_matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = dict(zip(self.params, tensors, strict=True))
        columns = []
        if "weight" in parts:
            columns.append(self.form.to_matrix(parts["weight"]))
        if "bias" in parts:
            bias = parts["bias"]
            if bias.shape != self.form.shape[:-1]:
                bias = bias.reshape(self.form.shape[:-1])
            columns.append(bias.unsqueeze(-1))
        return torch.cat(columns, -1) if len(columns) > 1 else columns[0]

    def _from_matrix(self, matrix: Tensor) -> list[Tensor]:
        parts = []
        for name, param in self.params.items():
            if name == "bias":
                parts.append(matrix.select(-1, -1).reshape(param.shape))
            else:
                width = matrix.shape[-1] - 1
                columns = matrix.narrow(-1, 0, width) if "bias" in self.params else matrix
                parts.append(self.form.from_matrix(columns, param.shape))
        return parts

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``S^-1 G A^-1``."""
        return self._from_matrix(self.inverse.apply(self._to_matrix(grads)))

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``tr(D' S D A)``."""
        A, S = self.average.values
        D = self._to_matrix(steps)
        of_A, of_S = self.inverse.kinds
        product = of_A.right(of_S.left(S, D), A)
        if self.inverse.kinds.padded:
            product = product[..., : of_S.size, : of_A.size]
        return torch.sum(D * product)

    def dense(self) -> Tensor:
        """``kron(S, A)``; with groups, one such block after the other on the diagonal."""
        A, S, (of_A, of_S), _ = self.pair
        if isinstance(of_S, Batched):
            blocks: Tensor = torch.block_diag(*map(torch.kron, S, A))
            return blocks
        return torch.kron(of_S.dense(S), of_A.dense(A))

    def scale(self, factor: float) -> None:
        """Multiply S, and so the product."""
        self.average.values[1].mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """Return factors, inverse and its age."""
        return {**super().state_dict(), "inverse": self.inverse.state_dict()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse other shapes, and an inverse of the other form."""
        super().check_state(state)
        names = self.method.names
        other = ("moments" in state["average"]) != self.method.is_held
        if other or len(state["inverse"]["tensors"]) not in (0, len(names)):
            raise ValueError(
                f"The inverse of block {self.name!r} in this state is not of the form "
                f"approximation={self.options.approximation!r}, inverse={self.options.inverse!r}: "
                "load it into a KFAC with the same curvature."
            )

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of A and S."""
        return [kind.shape for kind in self._kinds(params)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.inverse = SafeInverse(self.method, self.kinds)
        self.inverse.load_state_dict(state["inverse"], self.like)
