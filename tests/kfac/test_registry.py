"""Layers that users register, and how the forward pass calls them."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, DiagonalLayer, KroneckerLayer, register_layer

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


class TransposedLayer(KroneckerLayer):
    def to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        return weight.mT

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix.mT


class Gain(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class GainLayer(DiagonalLayer):
    def sample_gradients(self, module: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        return {"gain": inputs * grads}


register_layer(Transposed, TransposedLayer())
register_layer(Gain, GainLayer())


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_a_registered_linear_layer_is_a_linear_layer(inverse):
    mine, reference = nn.Sequential(Transposed(3, 2)), nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        reference[0].weight.copy_(mine[0].weight.T)
        reference[0].bias.copy_(mine[0].bias)
    x = torch.randn(9, 3)

    def train(net):
        torch.manual_seed(1)
        kfac = KFAC(net, inverse=inverse, momentum=0.9)
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


def test_a_registered_diagonal_layer_is_exact(observe):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Gain(4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(6, 3)
    kfac = KFAC(net, stat_decay=1.0)
    observe(kfac, lambda: [CATEGORICAL.distribution(net(x))])
    exact = oracle.dense_fisher(net, x, oracle.categorical).diagonal()
    (diagonal,) = kfac.factors()["2"]
    positions = oracle.parameter_positions(net)["2.gain"]
    torch.testing.assert_close(diagonal, exact[positions], rtol=1e-12, atol=1e-12)


def test_a_subclass_is_treated_as_its_parent():
    class Wide(nn.Linear):
        pass

    net = nn.Sequential(Wide(3, 2))
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(9, 3))
    kfac.update_curvature(Normal(out, 1.0))
    assert [f.shape for f in kfac.factors()["0"]] == [(4, 4), (2, 2)]


@pytest.mark.parametrize(
    ("module_type", "layer"),
    [
        (Transposed(1, 1), TransposedLayer()),
        (int, GainLayer()),
        (list[Gain], GainLayer()),
        (Gain, GainLayer),
        (Gain, None),
    ],
    ids=["instance", "no-module", "alias", "class", "none"],
)
def test_wrong_registrations_are_refused(module_type, layer):
    with pytest.raises(TypeError, match="register_layer needs"):
        register_layer(module_type, layer)


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
