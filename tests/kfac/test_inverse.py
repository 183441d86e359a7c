"""The damped inverse of each block against the dense formula it stands for."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from acktr.kfac import KFAC
from tests.helpers.options import in_groups

DAMPING = 0.05


def tikhonov(a: Tensor, s: Tensor, damping: float) -> Tensor:
    """Factored Tikhonov: (S + sqrt(l)/pi I) kron (A + pi sqrt(l) I)."""
    pi = ((a.trace() / len(a)) / (s.trace() / len(s))).sqrt()
    a = a + pi * damping**0.5 * torch.eye(len(a))
    return torch.kron(s + damping**0.5 / pi * torch.eye(len(s)), a)


def exact(a: Tensor, s: Tensor, damping: float) -> Tensor:
    """The eigen form damps the product of the eigenvalues: S kron A + l I."""
    block = torch.kron(s, a)
    return block + damping * torch.eye(len(block))


FORMULAS = {"cholesky": tikhonov, "eigen": exact}

NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "no-bias": (lambda: nn.Sequential(nn.Linear(3, 2, bias=False)), (3,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(), nn.Flatten()),
        (2, 3, 3),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), nn.Tanh()), (2, 4)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh()), (4, 3, 3)),
}


def matrix(layer: nn.Module, values: dict[nn.Parameter, Tensor]) -> Tensor:
    """The (out, in + 1) matrix of a layer's gradients or steps, bias last."""
    columns = [values[layer.weight].flatten(1)]
    if layer.bias is not None:
        columns.append(values[layer.bias][:, None])
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("batch", [40, 2], ids=["full-rank", "rank-deficient"])
@pytest.mark.parametrize("inverse", FORMULAS)
@pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)
def test_damped_inverse(build, shape, inverse, batch):
    net = build()
    kfac = KFAC(net, lr=1.0, damping=DAMPING, target_kl=None, **in_groups(inverse=inverse))
    with kfac.capture():
        out = net(torch.randn(batch, *shape))
    kfac.update_curvature(Normal(out, 0.5))
    out.square().mean().backward()
    before = {p: p.detach().clone() for p in net.parameters()}
    kfac.step()
    step = {p: before[p] - p.detach() for p in net.parameters()}
    grad = {p: p.grad for p in net.parameters()}

    layers = {name: m for name, m in net.named_modules() if hasattr(m, "weight")}
    for name, layer in layers.items():
        a, s = kfac.factors()[name]
        groups = getattr(layer, "groups", 1)
        rows = zip(matrix(layer, step).chunk(groups), matrix(layer, grad).chunk(groups), strict=True)
        for i, (got, g) in enumerate(rows):
            pair = (a[i], s[i]) if groups > 1 else (a, s)
            expected = torch.linalg.solve(FORMULAS[inverse](*pair, DAMPING), g.flatten())
            torch.testing.assert_close(got.flatten(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("inverse", FORMULAS)
def test_damping_is_read_from_each_group_at_each_step(inverse):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": list(net[0].parameters()), "damping": 0.3},
        {"params": list(net[1].parameters()), "damping": 0.02},
    ]
    kfac = KFAC(net, lr=1.0, target_kl=None, param_groups=groups, **in_groups(inverse=inverse))
    x = torch.randn(30, 3)
    for dampings in [(0.3, 0.02), (0.001, 2.0)]:
        for group, damping in zip(kfac.param_groups, dampings, strict=True):
            group["damping"] = damping
        with kfac.capture():
            out = net(x)
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        before = {p: p.detach().clone() for p in net.parameters()}
        kfac.step()
        for name, layer, damping in zip("01", net, dampings, strict=True):
            g = matrix(layer, {p: p.grad for p in layer.parameters()}).flatten()
            got = matrix(layer, {p: before[p] - p.detach() for p in layer.parameters()})
            dense = FORMULAS[inverse](*kfac.factors()[name], damping)
            expected = torch.linalg.solve(dense, g)
            torch.testing.assert_close(got.flatten(), expected, rtol=1e-11, atol=1e-12)


def test_a_state_independent_log_std_is_divided_by_two_plus_damping():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Linear(3, 2)
            self.log_std = nn.Parameter(torch.tensor([-0.5, 0.3]))

        def forward(self, x):
            return Independent(Normal(self.mean(x), self.log_std.exp()), 1)

    net = Policy()
    kfac = KFAC(net, lr=1.0, damping=DAMPING, target_kl=None)
    with kfac.capture():
        dist = net(torch.randn(10, 3))
    kfac.update_curvature(dist)
    before = net.log_std.detach().clone()
    dist.entropy().sum().backward()
    kfac.step()

    expected = before - net.log_std.grad / (2 + DAMPING)
    torch.testing.assert_close(net.log_std.detach(), expected, rtol=1e-12, atol=0)
