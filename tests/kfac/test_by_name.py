"""Layers that are left out, or have a diagonal block, because their name says so."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.diagonal import DiagonalBlock

from . import oracle
from .models import MODELS, inputs

SIGMA = 0.7


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(kfac: KFAC, net: nn.Module, steps: int = 3) -> None:
    for _ in range(steps):
        with kfac.capture():
            out = net(torch.randn(6, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_diagonal_is_that_of_the_dense_fisher(model, observe):
    """Whatever is done with the parameters."""
    net, x = model.build(), inputs(model)
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian(SIGMA))
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0, layers={"": "diagonal"}))
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=2)
    blocks = kfac._all_blocks()
    assert {name for b in blocks for _, name in b.spec.params} == {
        name for name, p in net.named_parameters() if p.requires_grad
    }
    for block in blocks:
        assert isinstance(block, DiagonalBlock)
        exact = oracle.block_of(fisher, net, block).diagonal()
        torch.testing.assert_close(torch.cat(block.average.values), exact, rtol=1e-9, atol=1e-11)


def test_the_nearest_name_counts():
    net = nn.ModuleDict({"body": mlp(), "head": mlp()})
    kfac = KFAC(
        net,
        curvature=Curvature(layers={"head": "diagonal", "head.2.bias": None, "body.0.bias": "diagonal"}),
    )
    with kfac.capture():
        out = net["head"](net["body"](torch.randn(6, 3))[:, [0, 1, 1]])
    kfac.update_curvature(Normal(out, 1.0))
    kinds = {block.name: type(block) for block in kfac._all_blocks()}
    assert kinds == {
        "body.0": KroneckerBlock,
        "body.0.bias": DiagonalBlock,
        "body.2": KroneckerBlock,
        "head.0.weight": DiagonalBlock,
        "head.0.bias": DiagonalBlock,
        "head.2.weight": DiagonalBlock,
    }


def test_what_is_left_out_is_for_another_optimiser():
    net = mlp()
    kfac, adam = (
        KFAC(net, curvature=Curvature(layers={"2": None})),
        torch.optim.Adam(net[2].parameters()),
    )
    assert [id(p) for p in kfac.param_groups[0]["params"]] == [id(p) for p in net[0].parameters()]
    before = [p.detach().clone() for p in net.parameters()]
    train(kfac, net)
    moved = [not torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True)]
    assert moved == [True, True, False, False]
    adam.step()
    assert not torch.equal(before[2], net[2].weight)


def test_a_state_is_restored():
    net = mlp()
    kfac, other = (KFAC(net, curvature=Curvature(layers={"0": "diagonal"})) for _ in range(2))
    train(kfac, net)
    other.load_state_dict(kfac.state_dict())
    for name, factors in kfac.factors().items():
        assert all(map(torch.equal, factors, other.factors()[name]))
    train(other, net)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"1.weight": "diagonal"}, "'1.weight', which is no module or parameter .* mean '[02].weight'"),
        ({"head": None}, "names 'head', which is no module or parameter of the model"),
        ({"0": "dense"}, r"layers\['0'\] is not valid: approximation must be one of .*, got 'dense'"),
    ],
)
def test_a_name_or_a_word_that_is_not_known_is_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        KFAC(mlp(), curvature=Curvature(layers=layers))


def test_nothing_is_left():
    with pytest.raises(ValueError, match="holds no parameters"):
        KFAC(mlp(), curvature=Curvature(layers={"": None}))
