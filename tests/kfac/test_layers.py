"""Layer types: norms, embeddings, frozen parts, in-place, unused and tied layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from tests.helpers.options import in_groups

from . import oracle
from .heads import CATEGORICAL, GAUSSIAN_LOG_STD, Head


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- norms: exact diagonals

NORMS = {
    "layer-norm": (lambda: [nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh()], 4, (3,)),
    "layer-norm-no-bias": (lambda: [nn.Linear(3, 4), nn.LayerNorm(4, bias=False)], 4, (3,)),
    "layer-norm-image": (
        lambda: [nn.Conv2d(1, 2, 2), nn.LayerNorm([2, 2, 2]), nn.Tanh(), nn.Flatten()],
        8,
        (1, 3, 3),
    ),
    "layer-norm-over-time": (
        lambda: [nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Flatten()],
        8,
        (2, 3),
    ),
    "group-norm": (
        lambda: [nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()],
        16,
        (1, 3, 3),
    ),
    "group-norm-flat": (lambda: [nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Tanh()], 4, (3,)),
    "batch-norm-1d": (lambda: [nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Tanh()], 4, (3,)),
    "batch-norm-1d-over-time": (
        lambda: [nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3).eval(), nn.Tanh(), nn.Flatten()],
        9,
        (1, 4),
    ),
    "batch-norm-2d": (
        lambda: [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2).eval(), nn.Tanh(), nn.Flatten()],
        8,
        (1, 3, 3),
    ),
}


@pytest.mark.parametrize("head", [CATEGORICAL, GAUSSIAN_LOG_STD], ids=["categorical", "gaussian"])
@pytest.mark.parametrize(("build", "width", "shape"), NORMS.values(), ids=NORMS)
def test_norm_layers_have_the_exact_diagonal(build, width, shape, head: Head, observe):
    layers = build()
    net = nn.Sequential(*layers, nn.Linear(width, head.size))
    for p in layers[1].parameters():
        nn.init.normal_(p)
    for buffer in layers[1].buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2.0)
    x = torch.randn(5, *shape)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))

    observe(kfac, lambda: [head.distribution(net(x))])

    exact = oracle.dense_fisher(net, x, head.hessian).diagonal()
    positions = oracle.parameter_positions(net)
    rows = [positions[f"1.{name}"].flatten() for name, _ in layers[1].named_parameters()]
    diagonal = torch.cat(kfac.factors()["1"])
    close(diagonal, exact[torch.cat(rows)])
    close(kfac.fisher_blocks()["1"], diagonal.diag())


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (6, 3, 2, 2))])
def test_batch_norm_in_training_uses_the_normalised_batch(kind, shape, observe):
    """dy/dweight is the normalised input, dy/dbias is 1; sum over positions, mean over samples."""
    norm = nn.Sequential(kind(3))
    nn.init.normal_(norm[0].weight)
    x = torch.randn(shape)
    kfac = KFAC(norm, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [Normal(norm(x), 1.0)], n_patterns=32)

    normalised = kind(3, affine=False)(x).reshape(6, 3, -1)
    weight = normalised.square().sum(-1).mean(0)
    bias = torch.full((3,), float(normalised.shape[-1]))
    close(torch.cat(kfac.factors()["0"]), torch.cat([weight, bias]))


# ---------------------------------------------------------------- embedding


def test_embedding_is_exact_under_a_linear_head(observe):
    """A is the diagonal of token frequencies, on the (dim, n_tokens) matrix."""
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    x = torch.tensor([0, 1, 1, 3, 3, 3])
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))

    observe(kfac, lambda: [Normal(net(x), 0.5)])

    a, s = kfac.factors()["0"]
    close(a, torch.tensor([1.0, 2.0, 0.0, 3.0]) / 6)
    fisher = oracle.dense_fisher(net, x, oracle.gaussian(0.5))
    rows = oracle.parameter_positions(net)["0.weight"].T.flatten()
    close(torch.kron(s, a.diag()), fisher[rows][:, rows])


def test_embedding_step_is_the_damped_inverse():
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    kfac = KFAC(net, lr=1.0, damping=0.05, target_kl=None)
    with kfac.capture():
        out = net(torch.tensor([0, 1, 1, 3, 3, 3]))
    kfac.update_curvature(Normal(out, 0.5))
    out.square().mean().backward()
    before = net[0].weight.detach().clone()
    kfac.step()

    a, s = kfac.factors()["0"]
    pi = (a.mean() / s.diagonal().mean()).sqrt()
    left = torch.linalg.solve(s + 0.05**0.5 / pi * torch.eye(3), net[0].weight.grad.T)
    expected = before - (left / (a + pi * 0.05**0.5)).T
    close(net[0].weight.detach(), expected)


def test_embedding_over_several_tokens():
    """Two tokens a sample: A = counts / samples."""
    net = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 1))
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.tensor([[1, 1], [1, 2], [0, 3]]))
    kfac.update_curvature(Normal(out, 1.0))
    a, s = kfac.factors()["0"]
    close(a, torch.tensor([1.0, 3.0, 1.0, 1.0]) / 3)
    weight = net[2].weight.detach().view(2, 3)
    close(s, weight.mT @ weight / 2)


def test_padding_tokens_are_no_rows():
    """The padding token has no gradient: it counts neither in A nor in S."""
    net = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 1))
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.tensor([[1, 0], [2, 0]]))
    kfac.update_curvature(Normal(out, 1.0))
    a, s = kfac.factors()["0"]
    close(a, torch.tensor([0.0, 1.0, 1.0, 0.0]) / 2)
    weight = net[2].weight.detach().view(2, 3)
    close(s, weight[0].outer(weight[0]))


# ---------------------------------------------------------------- frozen parts


@pytest.mark.parametrize(
    ("frozen", "a_shape"),
    [(["0.weight", "0.bias"], None), (["0.bias"], (3, 3)), (["0.weight"], None)],
    ids=["layer", "bias", "weight"],
)
@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_frozen_parameters(frozen, a_shape, inverse):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for name, p in net.named_parameters():
        p.requires_grad_(name not in frozen)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    kfac = KFAC(net, **in_groups(inverse=inverse))
    for _ in range(3):
        with kfac.capture():
            out = net(torch.randn(8, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()
    for name, p in net.named_parameters():
        assert p.isfinite().all()
        assert torch.equal(p, before[name]) == (name in frozen), name
    if a_shape:
        assert kfac.factors()["0"][0].shape == a_shape
    assert kfac.factors()["2"][0].shape == (5, 5)


def test_a_layer_frozen_later_stays_put():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    kfac = KFAC(net, momentum=0.9, weight_decay=0.1)
    for k in range(4):
        if k == 2:
            net[0].requires_grad_(False)
            frozen = net[0].weight.detach().clone()
        with kfac.capture():
            out = net(torch.randn(8, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()
    assert torch.equal(net[0].weight, frozen)


# ---------------------------------------------------------------- in-place, unused, tied


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ELU, nn.LeakyReLU])
@pytest.mark.parametrize("shape", [(3,), (1, 3, 3)], ids=["linear", "conv"])
def test_an_inplace_activation_changes_nothing(kind, shape, observe):
    first = nn.Linear(3, 8) if len(shape) == 1 else nn.Conv2d(1, 2, 2)
    last, x = nn.Linear(8, 2), torch.randn(6, *shape)

    def factors(inplace):
        net = nn.Sequential(first, kind(inplace=inplace), nn.Flatten(), last)
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
        observe(kfac, lambda: [Normal(net(x), 1.0)])
        return kfac.factors()

    torch.testing.assert_close(factors(True), factors(False), rtol=1e-12, atol=1e-12)


def test_layers_that_do_not_reach_the_distributions():
    """A head that no distribution depends on, and one that is never called, stay as they are."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.uncalled = (nn.Linear(3, 2) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x), self.unused(x)

    net = Net()

    def rest() -> list[Tensor]:
        return [p for m in (net.unused, net.uncalled) for p in m.parameters()]

    others = [p.detach().clone() for p in rest()]
    kfac = KFAC(net)
    for _ in range(2):
        with kfac.capture():
            out, other = net(torch.randn(5, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        (out.square().mean() + 0 * other.detach().sum()).backward()
        kfac.step()
    assert set(kfac.factors()) == {"used"}
    assert all(torch.equal(p, q) for p, q in zip(others, rest(), strict=True))


def test_a_tied_weight_is_stepped_once():
    """Two modules that share a weight: one block, whose rows are those of both."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    kfac = KFAC(net, lr=1.0, target_kl=1e-4)
    x = torch.randn(9, 3)
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 1.0))
    a = torch.cat([x, net[1](net[0](x)).detach()])
    close(kfac.factors()["0"][0], a.T @ a / 9)
    out.square().mean().backward()
    kfac.step()
    assert net[0].weight.isfinite().all()
    assert net[2].weight is net[0].weight
