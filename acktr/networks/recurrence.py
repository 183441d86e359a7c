"""Recurrent layers over whole rollouts, with resets inside, at the price of plain layers' curvature.

All pre-activations of a recurrent layer are products over the samples of a rollout, as of an LSTM

    s_t = W [x_t, h_{t-1}] + b,

once the states ``h_{t-1}`` are known: a first pass without a graph finds them, step by step. The
products are then made anew for all steps together, of states that are data, and one node of the graph
stands for what the cells do with them. Its backward pass goes back in time (Werbos 1990): it returns the
gradient of *all* later outputs in ``s_t``, through the later steps too. So the gradients of the weights
are those of the unrolled network, and K-FAC finds plain products with a row for each sample,
``F = A ⊗ S``. Recurrent K-FAC takes the steps to be independent of each other (Martens, Ba & Johnson
2018), and finds too little curvature the longer the memory is; to the statistics, gradients of whole
sequences are shown (:func:`of_sequences`).

The graph is the same for every rollout, however many episodes are in it, and its size does not grow with
their length. It has no second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from acktr.errors import ConfigurationError
from acktr.kfac.passes import of_statistics

State = tuple[Tensor, ...]  # h and c of an LSTM, h of a GRU: (n_layers, n_envs, hidden_size) each

_SPAN = 128  # steps: the longest of the times for which units hold what they have, as they begin


class Resets(NamedTuple):
    """Where episodes begin.

    :param starts: boolean, ``(T, N, 1)``
    :param any_at: whether one begins at a step at all, known to the host
    """

    starts: Tensor
    any_at: list[bool]

    @classmethod
    def of(cls, starts: Tensor, device: torch.device) -> Resets:
        """Bring flags ``(T, N)`` from the host to where they are needed."""
        # Of a graph that is recorded, no value decides the course.
        any_at = [True] * len(starts) if torch.compiler.is_compiling() else starts.any(1).tolist()
        return cls(starts.unsqueeze(-1).to(device), any_at)

    def __call__(self, step: int, *states: Tensor) -> State:
        """Return states ``(N, H)`` with zeros where an episode begins."""
        if not self.any_at[step]:
            return states
        return tuple(x.masked_fill(self.starts[step], 0.0) for x in states)


class Trace(NamedTuple):
    """What one layer did in T steps.

    :param saved: what the backward pass needs, ``(T, N, ...)`` each
    :param before: h before each step, where an episode begins zero, ``(T, N, H)``
    :param after: the states after each step, ``(T, N, H)`` each; h, the output, comes first
    """

    saved: tuple[Tensor, ...]
    before: Tensor
    after: State


class Weights(NamedTuple):
    """What one layer multiplies with, ``None`` where there is no bias.

    :param of_input: ``(gates H, in)``
    :param input_bias: ``(gates H,)``
    :param of_state: ``(gates H, H)``
    :param state_bias: ``(gates H,)``
    """

    of_input: Tensor
    input_bias: Tensor | None
    of_state: Tensor
    state_bias: Tensor | None


class Recurrent(nn.Module):
    """One or more recurrent layers, by the formulas of torch's own.

    :param input_size: width of a sample
    :param hidden_size: H
    :param num_layers: each above the one before
    :param bias: whether products have biases
    :param dropout: between layers, the share of outputs that becomes zero
    :param kwargs: further arguments of torch's layers, which have no meaning here
    :raises ConfigurationError: there are such, or a share that is none
    """

    recurrent = True  # for K-FAC
    n_states: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise ConfigurationError(
                f"lstm_kwargs may have bias and dropout, not {', '.join(sorted(kwargs)):.80}: memory "
                "goes forward in time, with steps first, and is as wide as lstm_hidden_size."
            )
        if not isinstance(bias, bool):
            raise ConfigurationError(f"bias in lstm_kwargs must be True or False, got {bias!r:.80}.")
        if not (isinstance(dropout, int | float) and 0.0 <= dropout <= 1.0):
            raise ConfigurationError(f"dropout in lstm_kwargs must be from 0 to 1, got {dropout!r:.80}.")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.dropout = bias, dropout
        for layer in range(num_layers):
            for name, shape in self.shapes(hidden_size if layer else input_size).items():
                if bias or not name.startswith("bias"):
                    self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's parameters, by their names.

        :param width: of its inputs
        """
        raise NotImplementedError

    def weights(self, layer: int) -> Weights:
        """Return the weights of a layer, views of its parameters."""
        raise NotImplementedError

    def keep(self, layer: int, spans: Tensor) -> None:
        """Set the bias of the gate that holds a state; see :meth:`reset_parameters`.

        :param spans: what pre-activations of the gate begin with, ``(H,)``
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw weights; let units hold what they have for times from 2 steps to 128.

        With torch's biases a gate that holds a state begins at 1/2: of what was seen 20 steps ago a
        millionth is left, and as much of its gradient. With ``log u`` it is ``u / (1 + u)``, which
        forgets in about ``1 + u`` steps (Tallec & Ollivier 2018, arXiv 1804.11188, sec. 2). Here u goes
        from 1 to 127 in equal ratios, one for each unit, so that short times are there too.

        Input weights have variance ``1 / input_size``, so that pre-activations have the scale of what is
        seen (LeCun et al. 1998, "Efficient BackProp", sec. 4.6). torch's is that of the hidden size, too
        small for a few numbers; weights of states, and the other biases, are torch's.
        """
        bound = self.hidden_size**-0.5
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-bound, bound)
            for layer in range(self.num_layers):
                w_ih = self.weights(layer).of_input
                w_ih.uniform_(-1.0, 1.0).mul_(math.sqrt(3.0 / w_ih.shape[1]))
                if self.bias:
                    self.keep(layer, torch.linspace(0.0, math.log(_SPAN - 1), self.hidden_size))

    def zeros(self, n_envs: int) -> State:
        """Return the states of those who remember nothing, ``(n_layers, n_envs, H)`` each."""
        size = self.num_layers, n_envs, self.hidden_size
        like = next(self.parameters())
        return tuple(like.new_zeros(size) for _ in range(self.n_states))

    def forward(self, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
        """Go through sequences that may hold several episodes each.

        :param x: ``(T N, input_size)``, steps first
        :param state: of before the first step
        :param starts: whether an episode begins at a step, boolean, ``(T, N)``, on the host
        :return: the outputs ``(T N, H)``, and the states after each step, ``(T, n_layers, N, H)`` each,
            without a graph
        """
        resets = Resets.of(starts, x.device)
        history = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            with torch.no_grad():
                w = self.weights(layer)
                inputs = F.linear(x, w.of_input, w.input_bias).unflatten(0, starts.shape)
                trace = self.scan(inputs, w, [s[layer] for s in state], resets)
            below, x = x, trace.after[0]
            if torch.is_grad_enabled():
                # Of data, so that what K-FAC is shown of their outputs goes no further down.
                rows = self.rows(below.detach(), trace.before.flatten(0, 1))
                sums = self.products(layer, rows)
                through = F.linear(below, w.of_input.detach()) if below.requires_grad else None
                x = _Steps.apply(through, w.of_state.detach(), self, resets, trace, rows, *sums)
            x = x.flatten(0, 1)
            history.append(trace.after)
        if self.num_layers == 1:
            return x, tuple(s.unsqueeze(1) for s in history[0])
        return x, tuple(torch.stack(layers, 1) for layers in zip(*history, strict=True))

    @staticmethod
    def rows(inputs: Tensor, states: Tensor) -> list[Tensor]:
        """Return what each product is of, ``(T N, columns)``.

        :param inputs: ``(T N, in)``
        :param states: before each step, ``(T N, H)``
        """
        return [inputs, states]

    def products(self, layer: int, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the products of a layer, ``(T N, gates H)``, each of its own rows."""
        w = self.weights(layer)
        pairs = ((w.of_input, w.input_bias), (w.of_state, w.state_bias))
        return [F.linear(a, *pair) for a, pair in zip(rows, pairs, strict=True)]

    @staticmethod
    def scan(inputs: Tensor, weights: Weights, state: Sequence[Tensor], resets: Resets) -> Trace:
        """Find the states of all steps.

        :param inputs: ``W_ih x`` and its bias, ``(T, N, gates H)``
        :param weights: of the layer
        :param state: before the first step, ``(N, H)`` each
        :param resets: where they are
        """
        raise NotImplementedError

    @staticmethod
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, ...]:
        """Go back in time.

        :param grad: gradient in the outputs, ``(T, N, H)``
        :param weight: of states, ``(gates H, H)``
        :return: gradients in the outputs of the products, ``(T, N, gates H)`` each; the first is that in
            ``W_ih x``
        """
        raise NotImplementedError


class _Steps(torch.autograd.Function):
    """The cells of all steps as one node: products in, outputs out."""

    @staticmethod
    def forward(
        ctx: Any,
        through: Tensor | None,
        weight: Tensor,
        layer: Recurrent,
        resets: Resets,
        trace: Trace,
        rows: list[Tensor],
        *sums: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.resets = layer, resets
        ctx.n_states, ctx.n_rows = len(trace.after), len(rows)
        ctx.save_for_backward(weight, *rows, trace.before, *trace.after, *trace.saved)
        return trace.after[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, *rest = ctx.saved_tensors
        rows, (before, *rest) = rest[: ctx.n_rows], rest[ctx.n_rows :]
        trace = Trace(tuple(rest[ctx.n_states :]), before, tuple(rest[: ctx.n_states]))
        grads = ctx.layer.back(grad, weight, ctx.resets, trace)
        through = grads[0].flatten(0, 1) if ctx.needs_input_grad[0] else None
        if of_statistics():
            pairs = zip(rows, grads, strict=True)
            grads = [of_sequences(a.unflatten(0, g.shape[:2]), g, ctx.layer.bias) for a, g in pairs]
        return through, *(None,) * 5, *(g.flatten(0, 1) for g in grads)


def of_sequences(a: Tensor, g: Tensor, bias: bool) -> Tensor:
    """Return gradients whose second moment is that of whole sequences, for K-FAC.

    What one sample's log-probability says of a weight is a sum over all earlier steps,
    ``sum_s g_s a_s'``. Steps that are alike do not cancel in it: those of a state that lasts, and of a
    constant. K-FAC takes them as independent and leaves out what each has to do with the others, all the
    more of it the longer the memory is. Cotangents have signs of their own for each sample, so that the
    mean square of the sum over a sequence, ``G_n = sum_t g_t a_t'``, is the Fisher F itself. Its partial
    trace over inputs, ``E[G_n G_n']``, takes the place of ``E[g g']``, in units in which the trace of
    ``A ⊗ S`` is that of F (which Gao et al. 2021, arXiv 2011.10741, ask of independent samples too).

    :param a: inputs of the product, ``(T, N, in)``
    :param g: gradients of its outputs, ``(T, N, out)``
    :param bias: whether a constant is one of the inputs
    :return: ``(T, N, out)``, not in the order of the steps
    """
    wide = torch.promote_types(g.dtype, torch.float32)  # no QR is in bfloat16
    a, own = a.transpose(0, 1).to(wide), g.to(wide)
    if bias:
        a = torch.cat((a, a.new_ones(*a.shape[:2], 1)), -1)
    size = a.square().sum(-1).mean().clamp_min(torch.finfo(a.dtype).tiny)
    columns = a.mT  # (N, in + 1, T)
    if columns.shape[1] > columns.shape[2]:  # as many rows as there are steps have the same square
        columns = torch.linalg.qr(columns, mode="r").R
    sums = (columns @ own.transpose(0, 1)).transpose(0, 1) / size.sqrt()
    return F.pad(sums, (0, 0, 0, 0, 0, len(g) - len(sums))).to(g.dtype)
