"""LSTM and GRU over whole rollouts, with resets inside, whose curvature costs what a plain layer's does.

All pre-activations of a recurrent layer are one product over the samples of a rollout,

    s_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,

once the states ``h_{t-1}`` are known: a first pass without a graph finds them, step by step. The
products are then made anew for all steps together, of states that are data, and one node of the graph
stands for what the cells do with them. Its backward pass goes back in time (Werbos 1990): it returns the
gradient of *all* later outputs in ``s_t``, through the later steps too. So the gradients of ``W_ih`` and
``W_hh`` are those of the unrolled network, and K-FAC finds two plain products with a row for each
sample, ``F = A ⊗ S``. Recurrent K-FAC takes the steps to be independent of each other (Martens, Ba &
Johnson 2018), and finds too little curvature the longer the memory is; to the statistics, gradients of
whole sequences are shown (:func:`of_sequences`).

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
_REFUSED = {"bidirectional": False, "proj_size": 0, "batch_first": False}  # and what they must be


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


class Recurrent(nn.RNNBase):
    """One or more recurrent layers, by the names, parameters and formulas of torch's own.

    :param input_size: width of a sample
    :param hidden_size: H
    :param num_layers: each above the one before
    :param kwargs: ``bias`` and ``dropout`` of torch's; the others have no meaning here
    :raises ConfigurationError: it is bidirectional, projects, or has the samples first
    """

    n_states: ClassVar[int]
    _keeps: ClassVar[int]  # the gate that holds a state, by its place in the biases

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int, **kwargs: Any
    ) -> None:
        for name, needed in _REFUSED.items():
            if kwargs.get(name, needed) != needed:
                raise ConfigurationError(
                    f"{name} in lstm_kwargs must be {needed}: memory goes forward in time, with steps "
                    "first, and is as wide as lstm_hidden_size."
                )
        super().__init__(mode, input_size, hidden_size, num_layers, **kwargs)

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
        super().reset_parameters()
        with torch.no_grad():
            for layer in range(self.num_layers):
                w_ih = getattr(self, f"weight_ih_l{layer}")
                w_ih.uniform_(-1.0, 1.0).mul_(math.sqrt(3.0 / w_ih.shape[1]))
        if not self.bias:
            return
        width = self.hidden_size
        own = slice(self._keeps * width, (self._keeps + 1) * width)
        with torch.no_grad():
            for layer in range(self.num_layers):
                getattr(self, f"bias_hh_l{layer}")[own] = 0.0
                spans = torch.linspace(0.0, math.log(_SPAN - 1), width)
                getattr(self, f"bias_ih_l{layer}")[own] = spans

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
        steps, n_envs = starts.shape
        resets = Resets.of(starts, x.device)
        history = []
        for layer in range(self.num_layers):
            w_ih, w_hh, *biases = (
                getattr(self, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if self.bias else ()))
            )
            b_ih, b_hh = biases or (None, None)
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            with torch.no_grad():
                inputs = F.linear(x, w_ih, b_ih).view(steps, n_envs, -1)
                trace = self.scan(inputs, w_hh, b_hh, [s[layer] for s in state], resets)
            below, x = x, trace.after[0]
            if torch.is_grad_enabled():
                # Of data both, so that what K-FAC is shown of their outputs goes no further down.
                of_input = F.linear(below.detach(), w_ih, b_ih)
                of_state = F.linear(trace.before.flatten(0, 1), w_hh, b_hh)
                through = F.linear(below, w_ih.detach()) if below.requires_grad else None
                own = w_hh.detach(), type(self), resets, trace, below.detach(), self.bias
                x = _Steps.apply(of_input, of_state, through, *own)
            x = x.flatten(0, 1)
            history.append(trace.after)
        if self.num_layers == 1:
            return x, tuple(s.unsqueeze(1) for s in history[0])
        return x, tuple(torch.stack(layers, 1) for layers in zip(*history, strict=True))

    @staticmethod
    def scan(
        inputs: Tensor, weight: Tensor, bias: Tensor | None, state: Sequence[Tensor], resets: Resets
    ) -> Trace:
        """Find the states of all steps.

        :param inputs: ``W_ih x + b_ih``, ``(T, N, gates H)``
        :param weight: ``W_hh``, ``(gates H, H)``
        :param bias: ``b_hh``
        :param state: before the first step, ``(N, H)`` each
        :param resets: where they are
        """
        raise NotImplementedError

    @staticmethod
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, Tensor]:
        """Go back in time.

        :param grad: gradient in the outputs, ``(T, N, H)``
        :return: gradients in ``W_ih x + b_ih`` and in ``W_hh h + b_hh``, ``(T, N, gates H)`` each
        """
        raise NotImplementedError


class LSTM(Recurrent):
    """``c' = f c + i g``, ``h' = o tanh(c')`` with the gates i, f and o.

    :param input_size: width of a sample
    :param hidden_size: H
    :param num_layers: each above the one before
    :param kwargs: of :class:`Recurrent`
    """

    n_states = 2
    _keeps = 1

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, **kwargs: Any) -> None:
        super().__init__("LSTM", input_size, hidden_size, num_layers, **kwargs)

    @staticmethod
    def scan(
        inputs: Tensor, weight: Tensor, bias: Tensor | None, state: Sequence[Tensor], resets: Resets
    ) -> Trace:
        """Find the states of all steps; see :meth:`Recurrent.scan`."""
        (h, c), turned, width = state, weight.t(), weight.shape[1]
        if bias is not None:
            inputs = inputs + bias
        sums, before_h, before_c, after_h, after_c = [], [], [], [], []
        for step, of_input in enumerate(inputs):
            h, c = resets(step, h, c)
            before_h.append(h)
            before_c.append(c)
            s = torch.addmm(of_input, h, turned)
            i_f, g, o = s.split((2 * width, width, width), -1)
            i, f = i_f.sigmoid().chunk(2, -1)
            c = torch.addcmul(i * g.tanh(), f, c)
            h = o.sigmoid() * c.tanh()
            sums.append(s)
            after_h.append(h)
            after_c.append(c)
        s, hs, cs, h, c = map(torch.stack, (sums, before_h, before_c, after_h, after_c))
        return Trace((s, cs), hs, (h, c))

    @staticmethod
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, Tensor]:
        """Go back in time; see :meth:`Recurrent.back`."""
        s, c_before = trace.saved
        i, f, g, o = s.chunk(4, -1)
        i, f, g, o, tanh_c = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), trace.after[1].tanh()
        to_c = o * (1.0 - tanh_c.square())
        slopes = (g * i * (1.0 - i), c_before * f * (1.0 - f), i * (1.0 - g.square()))
        of_c, of_h = torch.stack(slopes, 2), tanh_c * o * (1.0 - o)
        grads = torch.empty(*of_h.shape[:2], 4, of_h.shape[2], dtype=grad.dtype, device=grad.device)
        dh = dc = grad.new_zeros(grad.shape[1:])
        for step in reversed(range(len(grad))):
            dh = grad[step] + dh
            dc = torch.addcmul(dc, dh, to_c[step])
            grads[step, :, :3] = of_c[step] * dc.unsqueeze(1)
            grads[step, :, 3] = of_h[step] * dh
            dh, dc = resets(step, grads[step].flatten(1) @ weight, dc * f[step])
        grads = grads.flatten(2)
        return grads, grads


class GRU(Recurrent):
    """``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``, ``h' = n + z (h - n)`` with the gates r and z.

    :param input_size: width of a sample
    :param hidden_size: H
    :param num_layers: each above the one before
    :param kwargs: of :class:`Recurrent`
    """

    n_states = 1
    _keeps = 1

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, **kwargs: Any) -> None:
        super().__init__("GRU", input_size, hidden_size, num_layers, **kwargs)

    @staticmethod
    def scan(
        inputs: Tensor, weight: Tensor, bias: Tensor | None, state: Sequence[Tensor], resets: Resets
    ) -> Trace:
        """Find the states of all steps; see :meth:`Recurrent.scan`."""
        (h,), turned, width = state, weight.t(), weight.shape[1]
        sums, before, after = [], [], []
        for step, of_input in enumerate(inputs):
            (h,) = resets(step, h)
            before.append(h)
            s = h @ turned if bias is None else torch.addmm(bias, h, turned)
            r, z = (of_input[:, : 2 * width] + s[:, : 2 * width]).sigmoid().chunk(2, -1)
            n = torch.addcmul(of_input[:, 2 * width :], r, s[:, 2 * width :]).tanh()
            h = torch.addcmul(n, z, h - n)
            sums.append(s)
            after.append(h)
        s, hs, h = map(torch.stack, (sums, before, after))
        return Trace((inputs, s), hs, (h,))

    @staticmethod
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, Tensor]:
        """Go back in time; see :meth:`Recurrent.back`."""
        (of_input, of_state), width = trace.saved, weight.shape[1]
        r, z = (of_input + of_state)[..., : 2 * width].sigmoid().chunk(2, -1)
        s_n = of_state[..., 2 * width :]
        n = torch.addcmul(of_input[..., 2 * width :], r, s_n).tanh()
        of_n, of_z = (1.0 - z) * (1.0 - n.square()), (trace.before - n) * z * (1.0 - z)
        # h' moves with r by way of n alone.
        slopes = torch.stack((of_n * s_n * r * (1.0 - r), of_z, of_n * r), 2)
        in_state, in_output = torch.empty_like(slopes), torch.empty_like(of_n)
        dh = grad.new_zeros(grad.shape[1:])
        for step in reversed(range(len(grad))):
            dh = in_output[step] = grad[step] + dh
            in_state[step] = slopes[step] * dh.unsqueeze(1)
            (dh,) = resets(step, torch.addcmul(in_state[step].flatten(1) @ weight, dh, z[step]))
        in_input = in_state.clone()
        in_input[:, :, 2] = of_n * in_output  # n sees x itself, and h by way of r
        return in_input.flatten(2), in_state.flatten(2)


class _Steps(torch.autograd.Function):
    """The cells of all steps as one node: pre-activations in, outputs out."""

    @staticmethod
    def forward(
        ctx: Any,
        of_input: Tensor,
        of_state: Tensor,
        through: Tensor | None,
        weight: Tensor,
        kind: Any,
        resets: Resets,
        trace: Trace,
        inputs: Tensor,
        bias: bool,
    ) -> Tensor:
        ctx.kind, ctx.resets, ctx.bias = kind, resets, bias
        ctx.save_for_backward(weight, inputs, trace.before, *trace.after, *trace.saved)
        ctx.n_states = len(trace.after)
        return trace.after[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, inputs, before, *rest = ctx.saved_tensors
        trace = Trace(tuple(rest[ctx.n_states :]), before, tuple(rest[: ctx.n_states]))
        in_input, in_state = ctx.kind.back(grad, weight, ctx.resets, trace)
        through = in_input.flatten(0, 1) if ctx.needs_input_grad[2] else None
        if of_statistics():
            in_input = of_sequences(inputs.view(*before.shape[:2], -1), in_input, ctx.bias)
            in_state = of_sequences(before, in_state, ctx.bias)
        return in_input.flatten(0, 1), in_state.flatten(0, 1), through, *(None,) * 6


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
