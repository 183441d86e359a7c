"""Layers of people's own: what they do with their parameters counts, and not their type."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from acktr.kfac import KFAC, Curvature
from acktr.kfac.blocks import KroneckerBlock
from tests.helpers.options import in_groups

from . import oracle
from .heads import CATEGORICAL


class Transposed(nn.Module):
    """A linear layer whose weight lies the other way round, (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Gain(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_a_product_with_a_parameter_is_a_linear_layer(inverse):
    mine, reference = nn.Sequential(Transposed(3, 2)), nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        reference[0].weight.copy_(mine[0].weight.T)
        reference[0].bias.copy_(mine[0].bias)
    x = torch.randn(9, 3)

    def train(net):
        torch.manual_seed(1)
        kfac = KFAC(net, momentum=0.9, **in_groups(inverse=inverse))
        for _ in range(3):
            with kfac.capture():
                out = net(x)
            kfac.update_curvature(Normal(out, 1.0))
            kfac.zero_grad()
            out.exp().mean().backward()
            kfac.step()
        return kfac.factors()

    torch.testing.assert_close(train(mine), train(reference), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine[0].weight.T, reference[0].weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine[0].bias, reference[0].bias, rtol=1e-10, atol=1e-12)


def test_a_gain_is_exact(observe):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Gain(4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(6, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [CATEGORICAL.distribution(net(x))])
    exact = oracle.dense_fisher(net, x, oracle.categorical).diagonal()
    (diagonal,) = kfac.factors()["2.gain"]
    positions = oracle.parameter_positions(net)["2.gain"]
    torch.testing.assert_close(diagonal, exact[positions], rtol=1e-12, atol=1e-12)


class Noisy(nn.Linear):
    """What it multiplies with is not its weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.sigma = nn.Parameter(torch.full((n_out, n_in), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.sigma * torch.ones_like(self.weight), self.bias)


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * torch.eye(*self.weight.shape), self.bias)


class Adapted(nn.Linear):
    """LoRA inside a subclass: the weight is frozen, and a product of two parameters is added."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.A, self.B = nn.Parameter(torch.randn(2, n_in)), nn.Parameter(torch.randn(n_out, 2))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.B @ self.A, self.bias)


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


STRANGE = {
    "noisy": lambda: Noisy(3, 4),
    "masked": lambda: Masked(3, 4),
    "lora": lambda: Adapted(3, 4),
    "standardised": lambda: Standardised(3, 4),
    "weight-norm": lambda: weight_norm(nn.Linear(3, 4)),
    "spectral-norm": lambda: spectral_norm(nn.Linear(3, 4)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.3),
}


@pytest.mark.parametrize("build", STRANGE.values(), ids=STRANGE)
def test_a_weight_that_is_made_of_parameters_has_diagonals_in_those(build, observe):
    """One warning names the layer, its bias has its block, and no parameter takes another's step."""
    net, x = nn.Sequential(build(), nn.Tanh(), nn.Linear(4, 2)).eval(), torch.randn(5, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    with pytest.warns(UserWarning, match="no Kronecker block for 0") as caught:
        observe(kfac, lambda: [Normal(net(x), 1.0)], n_patterns=16, columns="batch")
    assert len(caught) == 1
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian())
    blocks = {block.name: block for block in kfac._all_blocks()}
    assert isinstance(blocks.pop("2"), KroneckerBlock)
    for name, block in blocks.items():
        exact = oracle.block_of(fisher, net, block)
        if "bias" in name or isinstance(block, KroneckerBlock):
            torch.testing.assert_close(block.dense(), exact, rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(block.dense().diagonal(), exact.diagonal(), rtol=1e-9, atol=1e-12)
    net(x).square().mean().backward()
    kfac.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_subclass_that_multiplies_with_its_weight_is_a_linear_layer():
    class Wide(nn.Linear):
        pass

    net = nn.Sequential(Wide(3, 2))
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(9, 3))
    kfac.update_curvature(Normal(out, 1.0))
    assert [f.shape for f in kfac.factors()["0"]] == [(4, 4), (2, 2)]


def test_a_layer_called_with_a_keyword_argument_is_captured():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    net = Net()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(9, 3))
    kfac.update_curvature(Normal(out, 1.0))
    assert kfac.factors()["layer"][0].shape == (4, 4)
