"""LSTM and GRU: what their gates do in a step, forward and back in time.

All that does not depend on the gates is in :mod:`acktr.networks.recurrence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acktr.networks.recurrence import Recurrent, Resets, Trace, Weights


class LSTM(Recurrent):
    """``c' = f c + i g``, ``h' = o tanh(c')`` with the gates i, f and o.

    Its parameters are one weight and one bias for each layer, ``weight_l0`` of ``(4 H, in + H)`` and
    ``bias_l0``: torch's ``weight_ih_l0`` and ``weight_hh_l0`` side by side, and the sum of its biases.
    """

    n_states = 2

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's parameters; see :meth:`Recurrent.shapes`."""
        gates = 4 * self.hidden_size
        return {"weight": (gates, width + self.hidden_size), "bias": (gates,)}

    def weights(self, layer: int) -> Weights:
        """Return the weights of a layer, views of its parameters."""
        weight, bias = getattr(self, f"weight_l{layer}"), getattr(self, f"bias_l{layer}", None)
        own = weight.shape[1] - self.hidden_size
        return Weights(weight[:, :own], bias, weight[:, own:], None)

    def keep(self, layer: int, spans: Tensor) -> None:
        """Set the bias of f; see :meth:`Recurrent.keep`."""
        getattr(self, f"bias_l{layer}")[self.hidden_size : 2 * self.hidden_size] = spans

    @staticmethod
    def rows(inputs: Tensor, states: Tensor) -> list[Tensor]:
        """Return inputs and states side by side: one product; see :meth:`Recurrent.rows`."""
        return [torch.cat((inputs, states), 1)]

    def products(self, layer: int, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the one product of a layer; see :meth:`Recurrent.products`."""
        bias = getattr(self, f"bias_l{layer}", None)
        return [F.linear(rows[0], getattr(self, f"weight_l{layer}"), bias)]

    @staticmethod
    def scan(inputs: Tensor, weights: Weights, state: Sequence[Tensor], resets: Resets) -> Trace:
        """Find the states of all steps; see :meth:`Recurrent.scan`."""
        (h, c), turned, width = state, weights.of_state.t(), weights.of_state.shape[1]
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
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, ...]:
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
        return (grads.flatten(2),)


class GRU(Recurrent):
    """``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``, ``h' = n + z (h - n)`` with the gates r and z.

    Its parameters have torch's names and shapes. Two products, for n sees x itself, and h by way of r.
    """

    n_states = 1

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's parameters; see :meth:`Recurrent.shapes`."""
        gates = 3 * self.hidden_size
        weights = {"weight_ih": (gates, width), "weight_hh": (gates, self.hidden_size)}
        return {**weights, "bias_ih": (gates,), "bias_hh": (gates,)}

    def weights(self, layer: int) -> Weights:
        """Return the weights of a layer; see :meth:`Recurrent.weights`."""
        names = "weight_ih", "bias_ih", "weight_hh", "bias_hh"
        found: list[Any] = [getattr(self, f"{name}_l{layer}", None) for name in names]
        return Weights(*found)

    def keep(self, layer: int, spans: Tensor) -> None:
        """Set the biases of z; see :meth:`Recurrent.keep`."""
        own = slice(self.hidden_size, 2 * self.hidden_size)
        getattr(self, f"bias_ih_l{layer}")[own] = spans
        getattr(self, f"bias_hh_l{layer}")[own] = 0.0

    @staticmethod
    def scan(inputs: Tensor, weights: Weights, state: Sequence[Tensor], resets: Resets) -> Trace:
        """Find the states of all steps; see :meth:`Recurrent.scan`."""
        (h,), turned, width = state, weights.of_state.t(), weights.of_state.shape[1]
        bias = weights.state_bias
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
    def back(grad: Tensor, weight: Tensor, resets: Resets, trace: Trace) -> tuple[Tensor, ...]:
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
