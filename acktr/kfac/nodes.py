"""The one place that knows the nodes of torch's autograd graph by their private names.

A node is told by the name of its class (``AddmmBackward0``) and has what it saved for its backward pass
in attributes ``_saved_*``, which torch documents but may rename. ``tests/kfac/test_nodes.py`` runs every
operation below and fails as soon as a version of torch calls something otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

# What hands every entry on as it is, at most to another place: an operand below such nodes alone *is*
# the parameter. `Repeat` and `Expand` are not here: their entries count several times.
VIEWS = frozenset(
    f"{name}Backward{i}"
    for name in (
        "T", "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Unsqueeze", "Squeeze",
        "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Chunk", "Narrow",
        "AsStrided", "Alias", "Clone", "ToCopy", "Unfold", "Diagonal", "Numpy_T", "MT",
    )
    for i in range(3)
)  # fmt: skip
CASTS = frozenset({"ToCopyBackward0"})
# Where in the parameter such a view lies does not follow from names and shapes.
PLACED = {
    "SliceBackward0": ("dim", "start", "end", "step"),
    "SelectBackward0": ("dim", "index"),
    "TransposeBackward0": ("dim0", "dim1"),
    "PermuteBackward0": ("dims",),
}
LEAF = "AccumulateGrad"

# By node and slot of its inputs: what a parameter that lies there is to the operation.
ROLES: dict[str, dict[int, str]] = {
    "AddmmBackward0": {0: "offset", 1: "left", 2: "right"},
    "MmBackward0": {0: "left", 1: "right"},
    "BaddbmmBackward0": {0: "offset", 1: "left", 2: "right"},
    "BmmBackward0": {0: "left", 1: "right"},
    "MvBackward0": {0: "left", 1: "right"},
    "AddmvBackward0": {0: "offset", 1: "left", 2: "right"},
    "LinearBackward0": {1: "left", 2: "offset"},
    "ConvolutionBackward0": {1: "kernel", 2: "offset"},
    "TrilinearBackward0": {1: "bilinear"},
    "EmbeddingBackward0": {0: "table"},
    "EmbeddingBagBackward0": {0: "table"},
    "NativeLayerNormBackward0": {1: "gain", 2: "shift"},
    "NativeGroupNormBackward0": {1: "gain", 2: "shift"},
    "NativeBatchNormBackward0": {1: "gain", 2: "shift"},
    "CudnnBatchNormBackward0": {1: "gain", 2: "shift"},
    "MiopenBatchNormBackward0": {1: "gain", 2: "shift"},
    "FusedRmsNormBackward0": {1: "gain"},
    "MulBackward0": {0: "factor", 1: "factor"},
    "AddBackward0": {0: "term", 1: "term"},
    "SubBackward0": {0: "term", 1: "term"},
    "ThnnFusedGruCellBackward0": {3: "gate", 4: "gate"},
    "ThnnFusedLstmCellBackward0": {3: "gate", 4: "gate"},
}  # fmt: skip
PRODUCTS = frozenset(
    name for name, roles in ROLES.items() if {"left", "kernel", "bilinear"} & {*roles.values()}
)
_OPERANDS = {
    "AddmmBackward0": {"right": "mat1", "left": "mat2"},
    "MmBackward0": {"right": "self", "left": "mat2"},
    "BmmBackward0": {"right": "self", "left": "mat2"},
    "BaddbmmBackward0": {"right": "batch1", "left": "batch2"},
    "MvBackward0": {"right": "self", "left": "vec"},
    "AddmvBackward0": {"right": "mat", "left": "vec"},
    "LinearBackward0": {"left": "input"},
}
COMPILED, CHECKPOINT = "CompiledFunctionBackward", "CheckpointFunctionBackward"


@contextmanager
def without_onednn() -> Iterator[None]:
    """Leave oneDNN out, whose LSTM is one node that hides its steps.

    ``torch.backends.mkldnn.flags`` has other flags too, one of which warns when it is set.
    """
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def name_of(node: Node) -> str:
    """Return the name of a node's class."""
    return type(node).__name__


def created(node: Node) -> int:
    """Return a number that grows from node to node of one forward pass."""
    return node._sequence_nr()


def placement(node: Node) -> tuple[Any, ...]:
    """Return what tells one view from another of the same name."""
    names = PLACED.get(name_of(node), ())
    return tuple(saved(node, name) for name in names)


def saved(node: Node, name: str) -> Any:
    """Return what a node saved.

    :raises RuntimeError: this version of torch calls it otherwise, or the graph is gone
    """
    try:
        return getattr(node, f"_saved_{name}")
    except AttributeError as error:
        raise RuntimeError(
            f"torch {torch.__version__} has no {name!r} in {name_of(node)}, which K-FAC reads: this "
            "version of acktr does not know this version of torch."
        ) from error


def parameter_of(node: Node) -> Tensor:
    """Return the tensor of a leaf."""
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return variable


def output_shapes(node: Node) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs that a node stands for."""
    return [tuple(m.shape) for m in node._input_metadata]


def pull(node: Node, output: int, gradient: Tensor) -> Tensor:
    """Send a gradient of one output of a view through its node alone."""
    if name_of(node) in CASTS:  # it would round
        return gradient
    inputs: list[Tensor | None] = [None] * len(node._input_metadata)
    inputs[output] = gradient
    backward: Any = node
    result: Any = backward(*inputs)
    pulled: Tensor = result[0] if isinstance(result, tuple) else result
    return pulled


def repeats(node: Node) -> tuple[int, ...] | None:
    """Return how often ``x.repeat`` repeats along each axis, ``None`` for another node."""
    return tuple(saved(node, "repeats")) if name_of(node) == "RepeatBackward0" else None


def is_plain_sum(node: Node) -> bool:
    """Whether a sum or difference has no coefficient."""
    return bool(saved(node, "alpha") == 1)


def other_operand(node: Node, role: str) -> Tensor:
    """Return what a product multiplies a parameter with; ``left`` and ``right`` say where that lies."""
    tensor: Tensor = saved(node, _OPERANDS[name_of(node)][role])
    return tensor


def multiplicand(node: Node, slot: int) -> Tensor:
    """Return the other factor of an elementwise product."""
    tensor: Tensor = saved(node, "other" if slot == 0 else "self")
    return tensor


class Convolving(NamedTuple):
    """What a convolution saved."""

    input: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    transposed: bool
    output_padding: Sequence[int]


def convolution(node: Node) -> Convolving:
    """Read a convolution."""
    return Convolving(*(saved(node, name) for name in Convolving._fields))


def bilinear(node: Node) -> tuple[Tensor, Tensor]:
    """Return both inputs of a bilinear form, ``(M, in1)`` and ``(M, in2)``."""
    return saved(node, "i1"), saved(node, "i3")


class Looking(NamedTuple):
    """What an embedding saved.

    :param indices: of words
    :param bag: the row of the output that each index belongs to; ``None``: a row each
    :param weights: of indices in their bags, ``None`` for ones
    :param padding: the index that has no gradient, if there is one
    """

    indices: Tensor
    bag: Tensor | None
    weights: Tensor | None
    padding: int | None


def embedding(node: Node) -> Looking | None:
    """Read an embedding; ``None`` where it is not linear in its table (the maximum of a bag).

    :raises RuntimeError: it makes sparse gradients
    """
    if saved(node, "sparse"):
        raise RuntimeError(
            "An embedding with sparse=True has gradients that K-FAC cannot take a step with: build "
            "it with sparse=False."
        )
    indices, padding = saved(node, "indices"), saved(node, "padding_idx")
    known = padding if 0 <= padding < saved(node, "weight_sym_argsize_0") else None
    if name_of(node) == "EmbeddingBackward0":
        return Looking(indices, None, None, known)
    mode = saved(node, "mode")  # 0 sum, 1 mean, 2 max
    if mode == 2:
        return None
    offsets, length = saved(node, "offsets"), len(indices)
    # Of the bag of each index: how many bags have begun before it or with it.
    starts = torch.arange(length, device=indices.device)
    bag = torch.searchsorted(offsets.contiguous(), starts, right=True) - 1
    weights = saved(node, "per_sample_weights")
    if mode == 1:
        counted = torch.ones_like(bag) if known is None else (indices != known).to(bag)
        sizes = torch.zeros_like(offsets).index_add_(0, bag, counted.to(offsets))
        weights = sizes.clamp_min(1)[bag].to(torch.get_default_dtype()).reciprocal()
    return Looking(indices, bag, weights, known)


def normalized(node: Node) -> tuple[Tensor, bool]:
    """Return the normalised input of a norm layer, and whether its parameters belong to channels.

    Those are axis 1. Else the parameters lie along the last axes.
    """
    name = name_of(node)
    x: Tensor = saved(node, "input")
    if name == "NativeLayerNormBackward0":
        return (x - saved(node, "result1")) * saved(node, "result2"), False
    if name == "FusedRmsNormBackward0":
        return x * saved(node, "result1"), False
    if name == "NativeGroupNormBackward0":
        shape = (saved(node, "N"), saved(node, "group"), -1)
        mean, scale = (saved(node, f"result{i}").unsqueeze(-1) for i in (1, 2))
        return ((x.reshape(shape) - mean) * scale).view(x.shape), True
    if name == "NativeBatchNormBackward0" and not saved(node, "training"):
        mean = saved(node, "running_mean")
        scale = (saved(node, "running_var") + saved(node, "eps")).rsqrt()
    elif name != "NativeBatchNormBackward0" and not saved(node, "training"):
        mean = saved(node, "running_mean")
        scale = (saved(node, "running_var") + saved(node, "epsilon")).rsqrt()
    else:
        mean, scale = saved(node, "result1"), saved(node, "result2")
    channels = (-1, *[1] * (x.ndim - 2))
    return (x - mean.view(channels)) * scale.view(channels), True
