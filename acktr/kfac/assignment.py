"""Which parameter belongs to which block."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from acktr.kfac.blocks import Block, BlockOptions, DiagonalBlock, KroneckerBlock
from acktr.kfac.ekfac import EigenvalueCorrectedBlock
from acktr.kfac.layers import DiagonalLayer, KroneckerLayer, find_layer


def build_blocks(
    module: nn.Module,
    params: Sequence[nn.Parameter],
    owned: Sequence[nn.Parameter],
    options: BlockOptions,
) -> list[Block]:
    """Give each parameter of one group its block.

    :param module: the whole model
    :param params: the group's parameters
    :param owned: parameters of the earlier groups
    :param options: how factors are made and inverted
    :raises ValueError: a parameter that the model does not hold, a layer divided between groups
    """
    if not params:
        raise ValueError("A parameter group, or the module itself, holds no parameters.")
    if len({id(p) for p in params}) < len(params):
        raise ValueError("A parameter group holds a parameter more than once.")
    names = {id(p): name for name, p in module.named_parameters()}
    wanted, others = {id(p) for p in params}, {id(p) for p in owned}
    if wanted - names.keys():
        raise ValueError("A parameter group holds parameters that are not parameters of the module.")
    blocks: list[Block] = []
    layers, unknown = _sort_modules(module, wanted)
    for name, child in layers:
        own = dict(child.named_parameters(recurse=False))
        if any(id(p) in others for p in own.values()):
            raise ValueError(
                f"The parameters of layer {name!r} lie in different parameter groups: put its weight "
                "and its bias into one."
            )
        own = {n: p for n, p in own.items() if id(p) in wanted}
        blocks.append(_layer_block(name, child, own, options))
    covered = {id(p) for block in blocks for p in block.all_params.values()}
    holders = {id(p): child for _, child, _ in unknown for p in child.parameters()}
    for p in params:
        if id(p) not in covered:
            # An unknown module is watched too: outputs that it feeds differ between samples.
            blocks.append(DiagonalBlock(names[id(p)], holders.get(id(p)), {"param": p}, options.decay))
    for name, child, why in unknown:
        warnings.warn(
            f"K-FAC has no Kronecker block for {name or 'the model'} ({type(child).__name__}){why}: its "
            "parameters get a diagonal block; acktr.kfac.register_layer adds a layer type.",
            UserWarning,
            stacklevel=5,
        )
    return blocks


def _layer_block(
    name: str,
    module: nn.Module,
    params: dict[str, nn.Parameter],
    options: BlockOptions,
) -> Block:
    layer = find_layer(module)
    if isinstance(layer, KroneckerLayer):
        kind = EigenvalueCorrectedBlock if options.inverse == "ekfac" else KroneckerBlock
        return kind(name, module, params, layer, options)
    assert isinstance(layer, DiagonalLayer)
    return DiagonalBlock(name, module, params, options.decay, layer)


def _sort_modules(
    module: nn.Module, wanted: set[int]
) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module, str]]]:
    """Divide the modules that hold wanted parameters into known layers and unknown ones.

    A container's own parameters are bare Parameters and need no warning: a module with children that
    is not one of torch's own, or the model itself.
    """
    holders = Counter(id(p) for _, child in _modules(module) for p in child.parameters(recurse=False))
    layers: list[tuple[str, nn.Module]] = []
    unknown: list[tuple[str, nn.Module, str]] = []
    inside: list[str] = []  # names of unknown modules, whose children are theirs to call
    for name, child in _modules(module):
        own = [p for p in child.parameters(recurse=False) if id(p) in wanted]
        if not own or any(name.startswith(prefix) for prefix in inside):
            continue
        tied = any(holders[id(p)] > 1 for p in own)
        if find_layer(child) is not None and not tied:
            layers.append((name, child))
        elif tied:
            unknown.append((name, child, ", whose parameters are tied to another module's"))
        elif type(child).__module__.startswith("torch.") or not (
            child is module or any(child.children())
        ):
            unknown.append((name, child, ""))
            inside.append(f"{name}.")
    return layers, unknown


def _modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from module.named_modules()
