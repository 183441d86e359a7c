"""Blocks of the block-diagonal Fisher: one for each layer, one for each bare parameter.

A block knows four things: how to average its statistics, how to refresh its damped inverse, how to
precondition its gradient, and its quadratic form ``D' F D`` with the *undamped* statistics. Each can
print itself as a dense matrix, which is what the tests compare with the exact Fisher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.capture import Record
from acktr.kfac.factors import RunningAverage, gram
from acktr.kfac.inverses import SafeInverse, multiply_right
from acktr.kfac.layers import DiagonalLayer, KroneckerLayer

WEIGHT_SHARING = ("expand", "reduce")


class Block:
    """Common part: names, parameters and the running average.

    :param name: dotted name of the module, or of the bare parameter
    :param module: the layer; ``None`` for a bare parameter
    :param params: its parameters by their names in the module
    :param decay: rho of the running average
    """

    def __init__(
        self, name: str, module: nn.Module | None, params: dict[str, nn.Parameter], decay: float
    ) -> None:
        self.name = name
        self.module = module
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
        self.average = RunningAverage(self.average.decay)

    @property
    def ready(self) -> bool:
        """Whether statistics have been seen."""
        return bool(self.average.values)

    @property
    def has_inverse(self) -> bool:
        """Whether the block can precondition without a refresh."""
        return True

    def refresh(self, damping: float, counters: dict[str, Tensor], defer: bool) -> None:
        """Make the damped inverse anew, if the block keeps one."""

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """Return the damped natural gradient for gradients in the order of ``params``."""
        raise NotImplementedError

    def multiply(self, steps: Sequence[Tensor], damping: float) -> list[Tensor]:
        """Return the product of the *damped* block with a step: what ``precondition`` undoes."""
        raise NotImplementedError

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """Return ``D' F D`` with the undamped statistics, a 0-dim tensor in nats."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the block of the Fisher as a matrix ``(P, P)``."""
        raise NotImplementedError

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
        if shapes and shapes != self.shapes(params):
            raise ValueError(
                f"The curvature of block {self.name!r} has shapes {shapes} in this state, but the "
                f"model needs {self.shapes(params)}."
            )

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of the statistics for these trainable parameters."""
        raise NotImplementedError

    def _params_of(self, state: dict[str, Any]) -> dict[str, nn.Parameter]:
        named = zip(self.all_params.items(), state["trainable"], strict=True)
        return {name: p for (name, p), trains in named if trains}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        like = next(iter(self.all_params.values()))
        self.params = self._params_of(state)
        self.average.load_state_dict(state["average"], like)


class KroneckerBlock(Block):
    """``F = A (x) S`` of a layer that is linear in its weight.

    Its matrix form is ``(out, in + 1)``, bias last; the dense form acts on that matrix flattened row
    by row, so it is ``kron(S, A)`` in the order of :func:`torch.kron`.
    """

    module: nn.Module

    def __init__(
        self,
        name: str,
        module: nn.Module,
        params: dict[str, nn.Parameter],
        decay: float,
        layer: KroneckerLayer,
        inverse: str,
        weight_sharing: str,
    ) -> None:
        super().__init__(name, module, params, decay)
        self.layer = layer
        self.weight_sharing = weight_sharing
        self.inverse = SafeInverse(inverse)

    def reset(self) -> None:
        """Forget statistics and inverse."""
        super().reset()
        self.inverse = SafeInverse(self.inverse.kind)

    def update(self, records: list[Record], grads: list[Tensor], batch: int) -> Tensor:
        """Average in ``A = sum a a' / N`` and ``S = sum g g' / M`` over all uses of the layer.

        M counts the rows of g: N for a plain layer, N T with T positions (KFC, sec. 3).
        """
        pairs = [
            self._rows(record.inputs, grad, batch) for record, grad in zip(records, grads, strict=True)
        ]
        a, g = (torch.cat(rows, -2 if rows[0].ndim > 1 else 0) for rows in zip(*pairs, strict=True))
        S = gram(g, max(g.shape[-2], 1))
        # Under autocast rows come in half precision; averages and inverses are kept in the weight's.
        like = next(iter(self.params.values()))
        return self.average.update((self._input_factor(a, g, batch).to(like), S.to(like)))

    def _rows(self, inputs: Tensor, grads: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """With ``"reduce"``, make one row of the T rows of each sample (Eschenhagen et al. 2023).

        The gradient of a sample is ``sum_t g_t a_t'``. "expand" takes the T terms as independent,
        "reduce" takes every ``a_t`` for their mean, which keeps what the positions do together.
        """
        if self.weight_sharing == "expand":
            return self.layer.rows(self.module, inputs, grads)
        return self.layer.reduced_rows(self.module, inputs, grads, batch)

    def _input_factor(self, a: Tensor, g: Tensor, batch: int) -> Tensor:
        if "weight" not in self.params:  # only the bias learns: its input is the constant 1
            groups = g.shape[:-2]
            return g.new_full((*groups, 1, 1), g.shape[-2] / batch)
        return self.layer.input_factor(self.module, a, batch, "bias" in self.params)

    @property
    def has_inverse(self) -> bool:
        """Whether an inverse was ever made."""
        return bool(self.inverse.tensors)

    def refresh(self, damping: float, counters: dict[str, Tensor], defer: bool) -> None:
        """Invert both factors with the damping of now."""
        A, S = self.average.values
        self.inverse.refresh(A, S, damping, counters, defer)

    def _to_matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = dict(zip(self.params, tensors, strict=True))
        columns = []
        if "weight" in parts:
            columns.append(self.layer.to_matrix(self.module, parts["weight"]))
        if "bias" in parts:
            columns.append(self.layer.bias_to_vector(self.module, parts["bias"]).unsqueeze(-1))
        return torch.cat(columns, -1) if len(columns) > 1 else columns[0]

    def _from_matrix(self, matrix: Tensor) -> list[Tensor]:
        parts = []
        for name, param in self.params.items():
            if name == "bias":
                parts.append(matrix[..., -1].reshape(param.shape))
            else:
                columns = matrix[..., :-1] if "bias" in self.params else matrix
                parts.append(self.layer.from_matrix(self.module, columns))
        return parts

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``S^-1 G A^-1``."""
        return self._from_matrix(self.inverse.apply(self._to_matrix(grads)))

    def multiply(self, steps: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``S D A`` with the factors of now, damped."""
        A, S = self.average.values
        product = self.inverse.form.multiply(A, S, damping, self._to_matrix(steps))
        return self._from_matrix(product)

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``tr(D' S D A)``."""
        A, S = self.average.values
        D = self._to_matrix(steps)
        return torch.sum(D * multiply_right(S @ D, A))

    def dense(self) -> Tensor:
        """``kron(S, A)``; with groups, one such block after the other on the diagonal."""
        A, S = self.average.values
        if A.ndim == 1:
            A = torch.diag(A)
        if A.ndim == 2:
            return torch.kron(S, A)
        blocks: Tensor = torch.block_diag(*map(torch.kron, S, A))
        return blocks

    def state_dict(self) -> dict[str, Any]:
        """Return factors, inverse and its age."""
        return {**super().state_dict(), "inverse": self.inverse.state_dict()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse other shapes, and an inverse of the other form."""
        super().check_state(state)
        if len(state["inverse"]["tensors"]) not in (0, len(self.inverse.form.names)):
            raise ValueError(
                f"The inverse of block {self.name!r} in this state is not of the form "
                f"inverse={self.inverse.kind!r}: load it into a KFAC with the other form."
            )

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the shapes of A and S."""
        if "weight" not in params:
            matrix = self.layer.bias_to_vector(self.module, params["bias"]).unsqueeze(-1)
            diagonal = False
        else:
            matrix = self.layer.to_matrix(self.module, params["weight"])
            diagonal = self.layer.diagonal_input
        *groups, rows, columns = matrix.shape
        columns += "bias" in params and "weight" in params
        A = (columns,) if diagonal else (*groups, columns, columns)
        return [A, (*groups, rows, rows)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.inverse.load_state_dict(state["inverse"], next(iter(self.all_params.values())))


class DiagonalBlock(Block):
    """The diagonal of the Fisher, one running average for each parameter of the block.

    :param layer: gives gradients sample by sample; ``None`` where only batch gradients are at hand
    """

    def __init__(
        self,
        name: str,
        module: nn.Module | None,
        params: dict[str, nn.Parameter],
        decay: float,
        layer: DiagonalLayer | None = None,
    ) -> None:
        super().__init__(name, module, params, decay)
        self.layer = layer

    def update(self, records: list[Record], grads: list[Tensor], batch: int) -> Tensor:
        """Average in the mean square of the gradients sample by sample, over all uses."""
        assert self.layer is not None
        assert self.module is not None
        squares = [torch.zeros_like(p) for p in self.params.values()]
        for record, grad in zip(records, grads, strict=True):
            by_name = self.layer.sample_gradients(self.module, record.inputs, grad)
            for square, name in zip(squares, self.params, strict=True):
                square += by_name[name].square().sum(0) / batch
        return self.average.update(tuple(square.reshape(-1) for square in squares))

    def update_from_batch(self, squares: Sequence[Tensor]) -> Tensor:
        """Average in squared batch gradients of the summed log-likelihood, already divided by N.

        Samples are independent and their gradients have mean zero, so the square of the sum has the
        mean of the sum of squares.
        """
        return self.average.update(tuple(square.reshape(-1) for square in squares))

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``g / (F + lambda)``."""
        return [g / (f.view_as(g) + damping) for g, f in zip(grads, self.average.values, strict=True)]

    def multiply(self, steps: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``(F + lambda) D``."""
        return [d * (f.view_as(d) + damping) for d, f in zip(steps, self.average.values, strict=True)]

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``sum F D^2``."""
        parts = [
            (f * d.reshape(-1).square()).sum() for d, f in zip(steps, self.average.values, strict=True)
        ]
        return torch.stack(parts).sum()

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the lengths of the diagonals."""
        return [(p.numel(),) for p in params.values()]

    def dense(self) -> Tensor:
        """Return a diagonal matrix over the block's parameters, flattened in order."""
        return torch.diag(torch.cat(self.average.values))
