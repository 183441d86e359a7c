"""The dense Fisher matrix, F = mean over samples of J' H J, from per-sample Jacobians in float64.

J is the Jacobian of all outputs of one sample with respect to all parameters, in the order of
``named_parameters``; H is the Fisher of the output distribution in those outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from acktr.kfac.blocks import Block, KroneckerBlock

Hessian = Callable[[Tensor], Tensor]


def categorical(logits: Tensor) -> Tensor:
    probs = logits.softmax(-1)
    return probs.diag() - probs.outer(probs)


def bernoulli(logits: Tensor) -> Tensor:
    probs = logits.sigmoid()
    return (probs * (1 - probs)).diag()


def gaussian(std: float = 1.0) -> Hessian:
    return lambda mean: torch.eye(len(mean)) / std**2


def gaussian_log_std(outputs: Tensor) -> Tensor:
    """The first half of the outputs is the mean, the second the logarithm of the deviation."""
    mean, log_std = outputs.chunk(2)
    return torch.cat([(-2 * log_std).exp(), torch.full_like(mean, 2.0)]).diag()


def joint(*parts: tuple[int, Hessian]) -> Hessian:
    """Independent distributions over consecutive outputs: (how many outputs, their Hessian)."""

    def hessian(outputs: Tensor) -> Tensor:
        pieces = outputs.split([size for size, _ in parts])
        blocks = (part(piece) for (_, part), piece in zip(parts, pieces, strict=True))
        return torch.block_diag(*blocks)

    return hessian


def dense_fisher(module: nn.Module, x: Tensor, hessian: Hessian) -> Tensor:
    """The exact Fisher of all parameters, (n_params, n_params), averaged over the batch ``x``."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def outputs(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        out = functional_call(module, params, (sample[None],))
        return torch.cat([o.flatten() for o in (out if isinstance(out, tuple) else (out,))])

    jacobians = vmap(jacrev(outputs), (None, 0))(params, x)
    jacobian = torch.cat([j.flatten(2) for j in jacobians.values()], dim=-1)
    hessians = torch.stack([hessian(out) for out in vmap(outputs, (None, 0))(params, x)])
    return (jacobian.mT @ hessians @ jacobian).mean(0)


def parameter_positions(module: nn.Module) -> dict[str, Tensor]:
    """For each parameter the rows of the dense Fisher that its entries own, in its own shape."""
    sizes = [p.numel() for p in module.parameters()]
    positions = torch.arange(sum(sizes)).split(sizes)
    named = zip(module.named_parameters(), positions, strict=True)
    return {name: position.view_as(p) for (name, p), position in named}


def layer_positions(module: nn.Module, layer: str) -> Tensor:
    """The (out, in + 1) matrix of a layer, bias last, as rows of the dense Fisher."""
    positions = parameter_positions(module)
    matrix = positions[f"{layer}.weight"].flatten(1)
    if f"{layer}.bias" in positions:
        matrix = torch.cat([matrix, positions[f"{layer}.bias"][:, None]], dim=1)
    return matrix


def layer_block(fisher: Tensor, module: nn.Module, layer: str, groups: int = 1) -> Tensor:
    """The layer's diagonal block, acting on its row-major (out, in + 1) matrix.

    :param groups: of a convolution; above 1 the blocks of the groups are stacked
    """
    blocks = [rows.flatten() for rows in layer_positions(module, layer).chunk(groups)]
    cut = torch.stack([fisher[rows][:, rows] for rows in blocks])
    return cut if groups > 1 else cut[0]


def fisher_by_loops(module: nn.Module, x: Tensor, hessian: Hessian) -> Tensor:
    """:func:`dense_fisher` by plain backward passes, for what torch.func does not know."""
    params = list(module.parameters())
    learn = [p for p in params if p.requires_grad]
    total = 0.0
    for sample in x:
        outputs = module(sample[None]).flatten()
        rows = [
            torch.autograd.grad(o, learn, retain_graph=True, materialize_grads=True, allow_unused=True)
            for o in outputs
        ]
        of_each = [dict(zip(map(id, learn), row, strict=True)) for row in rows]
        jacobian = torch.stack(
            [torch.cat([of.get(id(p), torch.zeros_like(p)).flatten() for p in params]) for of in of_each]
        )
        total = total + jacobian.T @ hessian(outputs.detach()) @ jacobian
    return total / len(x)


def block_of(fisher: Tensor, module: nn.Module, block: Block) -> Tensor:
    """The part of the dense Fisher that a block stands for, group by group."""
    positions = parameter_positions(module)
    names = dict(block.spec.params)
    own = [positions[names[key]].double() for key in block.params]
    if not isinstance(block, KroneckerBlock):
        rows = torch.cat([p.flatten() for p in own]).long()
        return fisher[rows][:, rows]
    matrix = block._to_matrix(own).long()
    groups = matrix if matrix.ndim == 3 else [matrix]
    return torch.block_diag(*(fisher[m.flatten()][:, m.flatten()] for m in groups))
