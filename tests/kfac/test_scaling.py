"""How the factors scale with samples, positions, repeated use of a layer, and not with the loss."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC, Curvature

from .heads import CATEGORICAL, GAUSSIAN, GAUSSIAN_LOG_STD


def factors(net, x, distribution, observe):
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [distribution(net(x))])
    return kfac.factors()


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_linear_by_hand():
    """a = (1, 1) and (3, 1): A = [[(1 + 9) / 2, (1 + 3) / 2], [2, 1]]; g = r / 0.5: S = 4."""
    layer = nn.Linear(1, 1)
    kfac = KFAC(layer)
    with kfac.capture():
        out = layer(torch.tensor([[1.0], [3.0]]))
    kfac.update_curvature(Normal(out, 0.5))

    a, s = kfac.factors()[""]
    assert_same(a, torch.tensor([[5.0, 2.0], [2.0, 1.0]]))
    assert_same(s, torch.tensor([[4.0]]))


def test_convolution_by_hand():
    """12 positions of a = (2, 1): A = 12 [[4, 2], [2, 1]]; S is a mean over positions: 4."""
    layer = nn.Conv2d(1, 1, 1)
    kfac = KFAC(layer)
    with kfac.capture():
        out = layer(torch.full((5, 1, 3, 4), 2.0))
    kfac.update_curvature(Normal(out, 0.5))

    a, s = kfac.factors()[""]
    assert_same(a, torch.tensor([[48.0, 24.0], [24.0, 12.0]]))
    assert_same(s, torch.tensor([[4.0]]))


def test_linear_over_time_by_hand():
    """2 samples of 3 steps: A = sum over 6 rows / 2 samples, S = mean over the 6 rows."""
    layer = nn.Linear(1, 1)
    kfac = KFAC(layer)
    with kfac.capture():
        out = layer(torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]).view(2, 3, 1))
    kfac.update_curvature(Normal(out, 0.5))

    a, s = kfac.factors()[""]
    assert_same(a, torch.tensor([[14.0, 6.0], [6.0, 3.0]]))
    assert_same(s, torch.tensor([[4.0]]))


def test_layer_used_twice_by_hand():
    """Both uses are rows: A = (1 + 4 + 9 + 16) / 2 samples, S = mean over 4 rows."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return torch.cat([self.layer(x[:, :1]), 3 * self.layer(x[:, 1:])], dim=1)

    net = Twice()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    kfac.update_curvature(Normal(out, 1.0))

    a, s = kfac.factors()["layer"]
    assert_same(a, torch.tensor([[15.0]]))
    assert_same(s, torch.tensor([[(1.0 + 9.0) / 2]]))


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (3,), CATEGORICAL),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 3)
        ),
        (2, 4, 4),
        GAUSSIAN,
    ),
    "log-std": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 4)),
        (3,),
        GAUSSIAN_LOG_STD,
    ),
}


@pytest.mark.parametrize(("build", "shape", "head"), NETS.values(), ids=NETS)
def test_copies_of_one_datum_are_that_datum(build, shape, head, observe):
    net, x = build(), torch.randn(1, *shape)
    one = factors(net, x, head.distribution, observe)
    many = factors(net, x.repeat(5, *[1] * len(shape)), head.distribution, observe)
    assert_same(many, one)


@pytest.mark.parametrize(("build", "shape", "head"), NETS.values(), ids=NETS)
def test_a_batch_is_the_mean_of_its_parts(build, shape, head, observe):
    net, x = build(), torch.randn(6, *shape)
    whole = factors(net, x, head.distribution, observe)
    parts = [factors(net, half, head.distribution, observe) for half in x.chunk(2)]
    for name in whole:
        for i, factor in enumerate(whole[name]):
            assert_same(factor, (parts[0][name][i] + parts[1][name][i]) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_has_no_say(reduction):
    """Neither its reduction nor a backward pass before ``update_curvature`` changes a factor."""

    def run(backward_first):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        kfac = KFAC(net)
        with kfac.capture():
            out = net(torch.randn(5, 3))
        loss = getattr((out - 1).square(), reduction)()
        if backward_first:
            loss.backward(retain_graph=True)
        kfac.update_curvature(Categorical(logits=out))
        if not backward_first:
            assert all(p.grad is None for p in net.parameters())
            loss.backward()
        grads = [p.grad.clone() for p in net.parameters()]
        return kfac.factors(), grads

    (after, grads_after), (before, grads_before) = run(False), run(True)
    assert_same(after, before)
    assert_same(grads_after, grads_before)


@pytest.mark.parametrize(
    ("decay", "weights"),
    [(1.0, [1 / 4, 1 / 4, 1 / 4, 1 / 4]), (0.5, [1 / 8, 1 / 8, 1 / 4, 1 / 2])],
)
def test_running_average(decay, weights):
    """rho = min(1 - 1/k, decay): the first batches are averaged plainly, without an identity."""
    layer = nn.Linear(1, 1, bias=False)
    kfac = KFAC(layer, curvature=Curvature(stat_decay=decay))
    for value in [1.0, 2.0, 3.0, 4.0]:
        with kfac.capture():
            out = layer(torch.full((2, 1), value))
        kfac.update_curvature(Normal(out, 1 / value))

    a, s = kfac.factors()[""]
    expected = sum(w * v**2 for w, v in zip(weights, [1, 2, 3, 4], strict=True))
    assert_same(a, torch.tensor([[expected]]))
    assert_same(s, torch.tensor([[expected]]))
