"""From one use of a parameter to rows: the input ``a`` and the gradient ``g`` of the use's output.

A use that multiplies, ``s = W a + b``, has rows of both, whose products ``g a'`` add up to the gradient
of its weight. All positions of a convolution and all tokens of a sequence are rows (KFC, Grosse &
Martens 2016; the "expand" setting of Eschenhagen et al. 2023). Whatever else uses a parameter gives its
gradient sample by sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node

from acktr.kfac import nodes
from acktr.kfac.forms import Form
from acktr.kfac.graph import Site

# Where the samples are among rows: how many rows stand before the axis of samples, and how many behind.
Layout = tuple[int, int]


class Owners(NamedTuple):
    """Whose each of M rows is, where samples do not have one each or the same number in order.

    :param sample: which, ``(M,)``
    :param place: where among those of its sample, ``(M,)``
    :param counts: whether it has a gradient at all, ``(M,)``, boolean
    :param longest: most rows of a sample
    """

    sample: Tensor
    place: Tensor
    counts: Tensor
    longest: int


_VECTORS = ("MvBackward0", "AddmvBackward0")


class Use:
    """A node that uses parameters, in one captured forward pass.

    :param node: the node
    :param site: of the parameter that it is read for
    """

    lead: tuple[int, ...]  # lengths of the axes that are, or hold, the samples
    positions = 1  # rows for each entry of those
    inputs: tuple[Tensor, ...] = ()  # what it reads, to be looked at for values that are not finite
    created = 0  # its place in the order of the forward pass

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of ``a`` and ``g``.

        :param grads: gradient of the summed log-likelihood in the use's output
        :return: ``(M, in)`` and ``(M, out)``; ``(G, M, in)`` and ``(G, M, out)`` for G groups
        """
        raise NotImplementedError

    def sample_rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows whose ``g a'`` add up to the gradient of a sample; :meth:`rows` as a rule."""
        return self.rows(grads)

    def reduced(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row for each entry of ``lead``: the mean over ``positions`` of a, the sum of g."""
        a, g = self.rows(grads)
        if self.positions == 1:
            return a, g
        a, g = (x.unflatten(-2, (-1, self.positions)) for x in (a, g))
        return a.mean(-2), g.sum(-2)


class ProductUse(Use):
    """A matrix product: ``x W'``, or ``W x`` with the samples along the last axis."""

    def __init__(self, node: Node, site: Site) -> None:
        role = site.role
        spread = role not in ("right", "left")
        side = role[7:] if spread else role
        other = nodes.other_operand(node, side)
        self.inputs = (other,)
        self._left, self._vector, self._groups = side == "left", False, False
        if other.ndim == 2 and role == "right" and nodes.name_of(node) not in _VECTORS:
            self.lead, self._a = (len(other),), other  # a linear layer, nearly always
            return
        self._vector = nodes.name_of(node) in _VECTORS
        if nodes.name_of(node) == "LinearBackward0":
            self._left = False
        elif self._vector:
            other = other.unsqueeze(0) if self._left else other
        elif self._left:
            other = other.mT
        self._groups = other.ndim == 3 and not spread and nodes.name_of(node) != "LinearBackward0"
        self.lead = tuple(other.shape[1:-1] if self._groups else other.shape[:-1])
        self._a = other if self._groups else other.reshape(-1, other.shape[-1])

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows as they are, ``(M, in)`` and ``(M, out)``."""
        if self._vector:
            grads = grads.unsqueeze(0 if self._left else 1)
        elif self._left:
            grads = grads.mT
        if not self._groups:
            return self._a, grads if grads.ndim == 2 else grads.reshape(-1, grads.shape[-1])
        if len(grads) == 1:
            return self._a[0], grads[0]
        return self._a, grads


class BiasUse(Use):
    """A product whose weight is none of the parameters, or frozen: its bias alone."""

    def __init__(self, node: Node, site: Site, groups: int = 1) -> None:
        shape = nodes.output_shapes(node)[0]
        self._channels = nodes.name_of(node) == "ConvolutionBackward0"
        self._groups = groups
        self.lead = shape[:1] if self._channels else shape[:-1]
        self.positions = math.prod(shape[2:]) if self._channels else 1

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return a constant and the gradients of all positions."""
        if self._channels:
            grads = grads.movedim(1, -1)
        g = grads.reshape(-1, grads.shape[-1])
        if self._groups > 1:
            g = g.unflatten(-1, (self._groups, -1)).transpose(0, 1)
        return torch.ones_like(g[..., :1]), g


class BilinearUse(Use):
    """``x1' W_o x2``: linear in W with the products of both inputs as its input."""

    def __init__(self, node: Node, site: Site) -> None:
        first, second = nodes.bilinear(node)
        self.inputs = (first, second)
        self._a = (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)
        self._a = self._a.reshape(-1, self._a.shape[-1])
        self.lead = tuple(self._a.shape[:1])

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(M, in1 in2)`` and ``(M, out)``."""
        return self._a, grads.reshape(-1, grads.shape[-1])


class ConvolutionUse(Use):
    """A convolution of one, two or three dimensions, with groups, or transposed.

    A transposed convolution is a plain one of its input with zeros between the entries, and with the
    kernel the other way round.
    """

    def __init__(self, node: Node, site: Site) -> None:
        call = nodes.convolution(node)
        shape = nodes.output_shapes(node)[0]
        self.inputs = (call.input,)
        self.lead, self.positions = shape[:1], math.prod(shape[2:])
        self._groups, self._dilation, self._stride = call.groups, call.dilation, call.stride
        self._kernel = tuple(site.parameter.shape[2:]) if site.view is None else site.view.size[2:]
        self._transposed = call.transposed
        x = call.input
        if call.transposed:
            self._stride = [1] * len(call.stride)
            x = _spread_out(x, call.stride)
            reach = [d * (k - 1) for d, k in zip(call.dilation, self._kernel, strict=True)]
            sides = zip(reach, call.padding, call.output_padding, strict=True)
            padding = [y for r, p, q in reversed(list(sides)) for y in (r - p, r - p + q)]
        else:
            padding = [y for p in reversed(list(call.padding)) for y in (p, p)]
        self._x = F.pad(x, padding) if any(padding) else x

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches ``(N T, in k)`` and gradients ``(N T, out)`` of all T positions."""
        spatial = len(self._kernel)
        patches = self._x
        for axis, kernel in enumerate(self._kernel):
            dilation = self._dilation[axis]
            patches = patches.unfold(axis + 2, dilation * (kernel - 1) + 1, self._stride[axis])
            patches = patches[..., ::dilation]
        positions, entries = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
        patches = patches.unflatten(1, (self._groups, -1)).permute(1, 0, *positions, 2, *entries)
        if self._transposed:
            patches = patches.flip(tuple(entries))
        # (G, N, *positions, in/G, *kernel) -> (G, N T, in/G k)
        a = patches.flatten(2 + spatial).flatten(1, -2)
        g = grads.unflatten(1, (self._groups, -1)).permute(1, 0, *positions, 2).flatten(1, -2)
        return (a.squeeze(0), g.squeeze(0)) if self._groups == 1 else (a, g)

    def reduced(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Average patches over positions without ever building them.

        Along each axis the mean over positions is a product with a matrix that says which entries of
        the input lie under which entry of the kernel.
        """
        spatial = len(self._kernel)
        sums = self._x.movedim(1, -1)  # (N, *spatial, in)
        before = len(sums)
        for axis in range(spatial):
            cover = self._cover(axis, sums.shape[1 + axis]).to(sums)
            shape = sums.shape
            sums = cover @ sums.reshape(before, shape[1 + axis], -1)
            sums = sums.reshape(*shape[: 1 + axis], len(cover), *shape[2 + axis :])
            before *= len(cover)
        a = (sums / self.positions).movedim(-1, 1).unflatten(1, (self._groups, -1))
        if self._transposed:
            a = a.flip(tuple(range(3, 3 + spatial)))
        g = grads.flatten(2).sum(-1).unflatten(1, (self._groups, -1))
        a, g = a.transpose(0, 1).flatten(2), g.transpose(0, 1)
        return (a.squeeze(0), g.squeeze(0)) if self._groups == 1 else (a, g)

    def _cover(self, axis: int, length: int) -> Tensor:
        """Return ``(kernel, length)``: 1 where an entry of the kernel lies on an entry of the input."""
        kernel, stride, dilation = self._kernel[axis], self._stride[axis], self._dilation[axis]
        device = self._x.device
        count = (length - dilation * (kernel - 1) - 1) // stride + 1
        along = torch.arange(kernel, device=device).unsqueeze(-1) * dilation
        entries = along + torch.arange(count, device=device) * stride
        return torch.zeros(kernel, length, device=device).scatter_(1, entries, 1.0)


def _spread_out(x: Tensor, stride: object) -> Tensor:
    """Put ``stride - 1`` zeros between neighbouring entries of ``(N, C, *spatial)``."""
    steps = [int(s) for s in stride]  # type: ignore[attr-defined]
    if all(s == 1 for s in steps):
        return x
    lengths = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], steps, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *lengths)
    entries = (slice(None), slice(None), *(slice(None, None, s) for s in steps))
    wide[entries] = x
    return wide


class TableUse(Use):
    """An embedding: a linear layer on one-hot inputs, whose rows of ``a`` are indices."""

    def __init__(self, node: Node, looking: nodes.Looking) -> None:
        self._words = looking.indices.reshape(-1)
        self._looking = looking
        bags = looking.bag is not None
        self.lead = nodes.output_shapes(node)[0][:1] if bags else tuple(looking.indices.shape)

    @property
    def ragged(self) -> bool:
        """Whether bags hold different numbers of words, at which one has to look."""
        bag, bags = self._looking.bag, self.lead[0]
        if bag is None:
            return False
        whole = bags > 0 and len(bag) % bags == 0
        return not whole or bool(
            (bag.view(bags, -1) != torch.arange(bags, device=bag.device)[:, None]).any()
        )

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices ``(M,)`` and gradients ``(M, dim)``; padding counts in neither factor."""
        words, g = self.sample_rows(grads)
        if self._looking.padding is not None:
            # The rows of padding are zero, and the others stand for them: dropping rows would have
            # to wait for their number.
            kept = (words != self._looking.padding).to(g)
            g = g * (kept.numel() / kept.sum().clamp_min(1.0)).sqrt()
        return words, g

    def sample_rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices ``(M,)`` and gradients ``(M, dim)``, those of padding zero."""
        words, g, looking = self._words, grads.reshape(-1, grads.shape[-1]), self._looking
        if looking.bag is not None:
            g = g[looking.bag]
        if looking.weights is not None:
            g = g * looking.weights.to(g).unsqueeze(-1)
        if looking.padding is not None:
            g = g * (words != looking.padding).to(g).unsqueeze(-1)
        return words, g

    def reduced(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows: words have no mean."""
        return self.rows(grads)

    def counts(
        self, words: Tensor, like: Tensor, units: float | Tensor, counted: Tensor | None = None
    ) -> Tensor:
        """Return the diagonal of A: how often each word came, over N.

        :param units: N, or what else the loss averages over
        :param counted: how much each place counts, ``(M,)``; all alike by default
        """
        ones = like.new_ones(words.shape) if counted is None else counted.to(like)
        ones = ones * (1.0 / units)
        A = like.new_zeros(len(like)).index_add_(0, words, ones)
        if self._looking.padding is not None:
            A[self._looking.padding] = 0.0
        return A


class ElementwiseUse(Use):
    """A gain, a shift, a factor or a term: each entry of the parameter acts on entries of its own.

    ``y = w x_hat + b``: BatchNorm's statistics are taken as constants, as they are at inference.
    """

    def __init__(self, node: Node, site: Site) -> None:
        assert site.view is not None
        shape, self.size = nodes.output_shapes(node)[0], site.view.size
        self._multiplier: Tensor | None = None
        self._times, self._channels = site.times, False
        if site.role in ("gain", "shift"):
            x_hat, self._channels = nodes.normalized(node)
            if site.role == "gain":
                self._multiplier = x_hat
        elif site.role == "factor":
            self._multiplier = nodes.multiplicand(node, site.slot)
        self.inputs = () if self._multiplier is None else (self._multiplier,)
        aligned = [1] * (len(shape) - len(self.size)) + list(self.size)
        # The axes along which an entry acts many times: over samples, among others.
        self._axes = [axis for axis, length in enumerate(aligned) if length == 1]
        if self._channels:
            self.lead = (self._times,) if self._times > 1 else shape[:1]
        else:
            self.lead = tuple(shape[axis] for axis in self._axes)

    def gradients(self, grads: Tensor) -> Tensor:
        """Return gradients of what the operation sees of the parameter, ``(*lead, *size)``."""
        if self._multiplier is not None:
            grads = grads * self._multiplier
        if self._channels:
            if self._times > 1:  # InstanceNorm puts its samples among the channels
                grads = grads.reshape(self._times, -1, *grads.shape[2:])
            return grads.flatten(2).sum(-1) if grads.ndim > 2 else grads
        rest = [axis for axis in range(grads.ndim) if axis not in self._axes]
        return grads.permute(*self._axes, *rest).reshape(*self.lead, *self.size)


class Used(NamedTuple):
    """A use with the gradient of its output.

    :param use: the use
    :param grads: gradient of the summed log-likelihood in its output
    :param layout: where the samples are in ``use.lead``, or whose its rows are; ``None`` where they
        belong to none
    :param groups: which groups of a packed weight it multiplies with; ``None`` for all
    :param form: of the part of the weight that it multiplies with, if it does
    """

    use: Use
    grads: Tensor
    layout: Layout | Owners | None
    groups: tuple[int, int] | None = None
    form: Form | None = None


def read(node: Node, site: Site) -> Use:
    """Read what a node saved.

    :raises RuntimeError: an embedding with sparse gradients, or a graph that is gone
    """
    role = site.role
    if role == "right":
        return ProductUse(node, site)
    if role == "kernel":
        return ConvolutionUse(node, site)
    if role == "bilinear":
        return BilinearUse(node, site)
    if role == "table":
        looking = nodes.embedding(node)
        assert looking is not None
        return TableUse(node, looking)
    if role == "offset":
        convolves = nodes.name_of(node) == "ConvolutionBackward0"
        return BiasUse(node, site, nodes.convolution(node).groups if convolves else 1)
    if role in ("gain", "shift", "factor", "term"):
        return ElementwiseUse(node, site)
    return ProductUse(node, site)
