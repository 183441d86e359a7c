"""How each layer type turns what was captured into curvature statistics.

Two kinds of layer:

* a :class:`KroneckerLayer` is linear in its weight. From its input and the gradient of its output it
  gives rows ``a`` and ``g``, so that its block of the Fisher is ``A (x) S`` with ``A = E[a a']`` and
  ``S = E[g g']``. All positions of a convolution, all tokens of a sequence, all uses of a module count
  as rows (KFC, Grosse & Martens 2016; the "expand" setting of Eschenhagen et al. 2023).
* a :class:`DiagonalLayer` gives the gradient of its parameters sample by sample, whose mean square is
  the diagonal of its block.

``register_layer`` adds a type. Everything else gets a diagonal block from batch gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acktr.kfac.factors import Gram


class KroneckerLayer:
    """Adapter of a layer that computes ``s = W a + b``; this one serves :class:`torch.nn.Linear`."""

    diagonal_input = False  # whether A is diagonal and kept as a vector

    def rows(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of ``a`` and ``g``.

        :param inputs: the layer's input
        :param grads: gradient of the summed log-likelihood in the layer's output
        :return: ``(M, in)`` and ``(M, out)``; ``(G, M, in)`` and ``(G, M, out)`` for G groups
        """
        return inputs.reshape(-1, inputs.shape[-1]), grads.reshape(-1, grads.shape[-1])

    def sample_rows(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows whose ``g a'`` add up to the gradient of a sample, one sample after the other.

        Shaped as in :meth:`rows`, which it is unless a layer gives its rows a weight there.
        """
        return self.rows(module, inputs, grads)

    def reduced_rows(
        self, module: nn.Module, inputs: Tensor, grads: Tensor, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Return one row a sample: the mean of its rows of ``a`` and the sum of its rows of ``g``.

        Where rows do not belong to samples in equal parts they are returned as they are.

        :param batch: N
        """
        a, g = self.rows(module, inputs, grads)
        positions = g.shape[-2] // batch
        whole = a.is_floating_point() and g.shape[-2] == positions * batch
        if positions <= 1 or not whole:
            return a, g
        a, g = (x.unflatten(-2, (batch, positions)) for x in (a, g))
        return a.mean(-2), g.sum(-2)

    def input_factor(self, module: nn.Module, a: Tensor, batch: int, bias: bool) -> Tensor | Gram:
        """Return ``A = sum a a' / N``, with the constant 1 as last coordinate if there is a bias."""
        return Gram(a, batch, bias)

    def to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """Arrange a tensor shaped like the weight as ``(out, in)`` or ``(G, out, in)``."""
        return weight

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Undo :meth:`to_matrix`."""
        return matrix

    def bias_to_vector(self, module: nn.Module, bias: Tensor) -> Tensor:
        """Arrange a tensor shaped like the bias as ``(out,)`` or ``(G, out)``."""
        return bias


class ConvolutionLayer(KroneckerLayer):
    """Conv1d, Conv2d and Conv3d with any stride, padding, padding mode, dilation and groups."""

    def rows(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches ``(N T, in k)`` and gradients ``(N T, out)`` of all T positions."""
        patches, g = self._patches(module, inputs, grads)
        spatial = (patches.ndim - 3) // 2
        # (G, N, *positions, in/G, *kernel) -> (G, N T, in/G k)
        a = patches.flatten(2 + spatial).flatten(1, -2)
        g = g.flatten(1, -2)
        return (a.squeeze(0), g.squeeze(0)) if len(g) == 1 else (a, g)

    def reduced_rows(
        self, module: nn.Module, inputs: Tensor, grads: Tensor, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Average patches over positions without ever building them.

        Along each axis the mean over positions is a product with a matrix that says which entries of
        the input lie under which entry of the kernel.
        """
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        spatial = len(module.kernel_size)
        if inputs.ndim == spatial + 1 or len(inputs) != batch:
            return super().reduced_rows(module, inputs, grads, batch)
        sums = self._padded(module, inputs).movedim(1, -1)  # (N, *spatial, in)
        before = batch
        for axis in range(spatial):
            cover = _cover(module, axis, sums.shape[1 + axis], sums.device).to(sums)
            shape = sums.shape
            sums = cover @ sums.reshape(before, shape[1 + axis], -1)
            sums = sums.reshape(*shape[: 1 + axis], len(cover), *shape[2 + axis :])
            before *= len(cover)
        positions = grads.shape[2:].numel()
        a = (sums / positions).movedim(-1, 1).unflatten(1, (module.groups, -1))
        g = grads.flatten(2).sum(-1).unflatten(1, (module.groups, -1))
        a, g = a.transpose(0, 1).flatten(2), g.transpose(0, 1)
        return (a.squeeze(0), g.squeeze(0)) if len(g) == 1 else (a, g)

    def _padded(self, module: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # Torch's own field: the padding in the order of F.pad, with "same" already worked out.
        padding = module._reversed_padding_repeated_twice
        return F.pad(inputs, padding, mode=mode) if any(padding) else inputs

    def _patches(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Views ``(G, N, *positions, in/G, *kernel)`` and ``(G, N, *positions, out/G)``."""
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        spatial = len(module.kernel_size)
        if inputs.ndim == spatial + 1:  # torch takes an unbatched sample too
            inputs, grads = inputs.unsqueeze(0), grads.unsqueeze(0)
        patches = self._padded(module, inputs)
        for axis in range(spatial):
            dilation, kernel = module.dilation[axis], module.kernel_size[axis]
            patches = patches.unfold(axis + 2, dilation * (kernel - 1) + 1, module.stride[axis])
            patches = patches[..., ::dilation]
        groups = module.groups
        positions = range(3, 3 + spatial)
        kernel_axes = range(3 + spatial, 3 + 2 * spatial)
        patches = patches.unflatten(1, (groups, -1)).permute(1, 0, *positions, 2, *kernel_axes)
        return patches, grads.unflatten(1, (groups, -1)).permute(1, 0, *positions, 2)

    def to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """``(out, in/G, *kernel)`` to ``(out, in k)`` or ``(G, out/G, in/G k)``."""
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        matrix = weight.flatten(1)
        return matrix if module.groups == 1 else matrix.unflatten(0, (module.groups, -1))

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Undo :meth:`to_matrix`."""
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return matrix.reshape(module.weight.shape)

    def bias_to_vector(self, module: nn.Module, bias: Tensor) -> Tensor:
        """``(out,)`` to ``(out,)`` or ``(G, out/G)``."""
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return bias if module.groups == 1 else bias.unflatten(0, (module.groups, -1))


def _cover(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, axis: int, length: int, device: torch.device
) -> Tensor:
    """Return ``(kernel, length)``: 1 where an entry of the kernel lies on an entry of the input."""
    kernel, stride = module.kernel_size[axis], module.stride[axis]
    dilation = module.dilation[axis]
    count = (length - dilation * (kernel - 1) - 1) // stride + 1
    along = torch.arange(kernel, device=device).unsqueeze(-1) * dilation
    entries = along + torch.arange(count, device=device) * stride
    return torch.zeros(kernel, length, device=device).scatter_(1, entries, 1.0)


class EmbeddingLayer(KroneckerLayer):
    """Embedding: a linear layer on one-hot inputs, so A is diagonal and kept as a vector."""

    diagonal_input = True

    def rows(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices ``(M,)`` and gradients ``(M, dim)``; padding counts in neither factor."""
        assert isinstance(module, nn.Embedding)
        indices, g = self.sample_rows(module, inputs, grads)
        if module.padding_idx is not None:
            # The rows of padding are zero, and the others stand for them: dropping rows would have
            # to wait for their number.
            kept = (indices != module.padding_idx).to(g)
            g = g * (kept.numel() / kept.sum().clamp_min(1.0)).sqrt()
        return indices, g

    def sample_rows(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices ``(M,)`` and gradients ``(M, dim)``, those of padding zero."""
        assert isinstance(module, nn.Embedding)
        indices, g = inputs.reshape(-1), grads.reshape(-1, grads.shape[-1])
        if module.padding_idx is not None:
            g = g * (indices != module.padding_idx).to(g).unsqueeze(-1)
        return indices, g

    def input_factor(self, module: nn.Module, a: Tensor, batch: int, bias: bool) -> Tensor:
        """Return the diagonal of A: how often each word came, over N."""
        assert isinstance(module, nn.Embedding)
        ones = module.weight.new_full(a.shape, 1.0 / batch)
        A = module.weight.new_zeros(module.num_embeddings).index_add_(0, a, ones)
        if module.padding_idx is not None:
            A[module.padding_idx] = 0.0
        return A

    def to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """``(words, dim)`` to ``(dim, words)``."""
        return weight.mT

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Undo :meth:`to_matrix`."""
        return matrix.mT


class DiagonalLayer:
    """Adapter of a layer whose parameters' gradients are known sample by sample."""

    def sample_gradients(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """Return, by parameter name, gradients ``(N, *parameter.shape)`` of the log-likelihood."""
        raise NotImplementedError


class NormalizationLayer(DiagonalLayer):
    """``y = weight * x_hat + bias``: LayerNorm, GroupNorm, BatchNorm.

    BatchNorm's statistics are taken as constants, as they are at inference.

    :param normalize: ``(module, input) -> x_hat``
    :param channel_axis: axis 1 holds the parameters (GroupNorm, BatchNorm), else the last axes do
    """

    def __init__(self, normalize: Callable[..., Tensor], channel_axis: bool) -> None:
        self.normalize = normalize
        self.channel_axis = channel_axis

    def sample_gradients(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """Sum ``g x_hat`` and ``g`` over all positions of each sample."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        weight_grads = grads * self.normalize(module, inputs)
        if self.channel_axis:
            axes = tuple(range(2, grads.ndim))
        else:
            axes = tuple(range(1, grads.ndim - weight.ndim))
        if not axes:
            return {"weight": weight_grads, "bias": grads}
        return {"weight": weight_grads.sum(axes), "bias": grads.sum(axes)}


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, None, None, module.eps)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, module.num_groups, None, None, module.eps)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor) -> Tensor:
    if module.training or module.running_mean is None:
        return F.batch_norm(x, None, None, training=True, eps=module.eps)
    return F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


Layer = KroneckerLayer | DiagonalLayer
_REGISTRY: dict[type[nn.Module], Layer] = {}


def register_layer(module_type: type[nn.Module], layer: Layer) -> None:
    """Tell K-FAC how to treat a module type and its subclasses; a later call replaces an earlier one.

    The forward of such a module must take one tensor first and return one tensor, and its parameters
    must be called ``weight`` and ``bias`` (a :class:`KroneckerLayer`) or be the keys that
    ``sample_gradients`` returns (a :class:`DiagonalLayer`).

    :raises TypeError: not a module type, or not a layer adapter
    """
    # Of `type(x)`: on Python 3.10 isinstance(list[int], type) is true, and issubclass raises.
    if not (issubclass(type(module_type), type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"register_layer needs a torch.nn.Module type, not {module_type!r}.")
    if not isinstance(layer, (KroneckerLayer, DiagonalLayer)):
        raise TypeError(f"register_layer needs a KroneckerLayer or DiagonalLayer, not {layer!r}.")
    _REGISTRY[module_type] = layer


def find_layer(module: nn.Module) -> Layer | None:
    """Return the adapter of the nearest registered type among the module's bases, if there is one."""
    return next((_REGISTRY[t] for t in type(module).__mro__ if t in _REGISTRY), None)


for _convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_layer(_convolution, ConvolutionLayer())
for _normalization in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    register_layer(_normalization, NormalizationLayer(_batch_norm, channel_axis=True))
register_layer(nn.Linear, KroneckerLayer())
register_layer(nn.Embedding, EmbeddingLayer())
register_layer(nn.LayerNorm, NormalizationLayer(_layer_norm, channel_axis=False))
register_layer(nn.GroupNorm, NormalizationLayer(_group_norm, channel_axis=True))
