"""Singular, zero, rank-one and non-finite statistics: counted, and never in the parameters."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC
from tests.helpers.options import in_groups

COUNTERS = {"float64_retries", "damping_escalations", "kept_inverses"}


@pytest.fixture(params=[False, True], ids=["host-checks", "deferred"])
def net_and_kfac(request) -> Callable[..., tuple[nn.Sequential, KFAC]]:
    """Both paths: a look from the host (CPU) and decisions on the device (accelerators)."""

    def build(dtype=torch.float64, **settings):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
        kfac = KFAC(net, **in_groups(**settings))
        kfac.defer_checks = request.param
        return net, kfac

    return build


def update(net: nn.Module, kfac: KFAC, x: torch.Tensor) -> None:
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(
        Categorical(logits=out, validate_args=False), Normal(out, 1.0, validate_args=False)
    )
    kfac.zero_grad()
    out.square().mean().backward()


def assert_finite(net: nn.Module) -> None:
    assert all(p.isfinite().all() for p in net.parameters())


INPUTS = {
    "zero": lambda k: torch.zeros(16, 4),
    "constant": lambda k: torch.ones(16, 4),
    "rank-one": lambda k: torch.randn(16, 1) @ torch.ones(1, 4),
    "one-sample": lambda k: torch.ones(1, 4) * (k + 1),
    "huge": lambda k: 1e15 * torch.randn(16, 4),
    "tiny": lambda k: 1e-25 * torch.randn(16, 4),
    "collinear": lambda k: torch.randn(16, 1) + 1e-9 * torch.randn(16, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("inverse", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("damping", [0.0, 1e-12, 0.01])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_degenerate_inputs(make, damping, inverse, dtype, net_and_kfac):
    net, kfac = net_and_kfac(damping=damping, inverse=inverse, momentum=0.9, dtype=dtype)
    for k in range(4):
        update(net, kfac, make(k).to(dtype))
        kfac.step()
        assert_finite(net)
        assert kfac.last_step[0].predicted_kl <= 0.001 * (1 + 1e-3)
    assert set(kfac.counters) >= COUNTERS
    assert all(isinstance(v, int) and v >= 0 for v in kfac.counters.values())


@pytest.mark.parametrize("inverse", ["cholesky", "eigen", "ekfac"])
def test_dead_relus(inverse, net_and_kfac):
    net, kfac = net_and_kfac(inverse=inverse)
    nn.init.constant_(net[0].bias, -100.0)
    for _ in range(3):
        update(net, kfac, torch.randn(16, 4))
        kfac.step()
    assert_finite(net)


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_a_singular_factor_without_damping_is_counted(inverse, net_and_kfac):
    net, kfac = net_and_kfac(damping=0.0, inverse=inverse)
    for _ in range(3):
        update(net, kfac, torch.zeros(16, 4))
        kfac.step()
    assert sum(kfac.counters.values()) > 0


def test_healthy_factors_count_nothing(net_and_kfac):
    net, kfac = net_and_kfac()
    for _ in range(3):
        update(net, kfac, torch.randn(64, 4))
        kfac.step()
    assert sum(kfac.counters.values()) == 0


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
@pytest.mark.parametrize("first", [True, False], ids=["first-batch", "later-batch"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_statistics_that_are_not_finite(value, first, inverse, net_and_kfac):
    """Such a batch reaches neither the averages nor, given good gradients, the parameters."""
    net, kfac = net_and_kfac(inverse=inverse)
    if not first:
        update(net, kfac, torch.randn(16, 4))
        kfac.step()
    before = sum(kfac.counters.values())
    bad = torch.randn(16, 4)
    bad[3, 2] = value
    update(net, kfac, bad)
    kfac.zero_grad()
    net(torch.randn(16, 4)).square().mean().backward()
    kfac.step()
    assert_finite(net)
    assert sum(kfac.counters.values()) > before

    for _ in range(3):
        update(net, kfac, torch.randn(16, 4))
        start = net[0].weight.detach().clone()
        kfac.step()
    assert_finite(net)
    assert all(f.isfinite().all() for pair in kfac.factors().values() for f in pair)
    assert not torch.equal(net[0].weight, start), "it must learn again once the data are good"


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_without_any_accepted_statistics_nothing_moves(inverse, net_and_kfac):
    """No Fisher means no distance: a step then would be bounded by nothing."""
    net, kfac = net_and_kfac(inverse=inverse)
    update(net, kfac, torch.full((16, 4), math.nan))
    kfac.zero_grad()
    net(torch.randn(16, 4)).square().mean().backward()
    before = [p.detach().clone() for p in net.parameters()]
    kfac.step()
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
    assert kfac.last_step[0].step_scale == 0, "the report must say that nothing moved"


@pytest.mark.parametrize("target_kl", [1e-3, None])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_that_is_not_finite_never_reaches_the_parameters(momentum, target_kl, net_and_kfac):
    """Nor the velocity: the next good gradient is followed again."""
    net, kfac = net_and_kfac(momentum=momentum, target_kl=target_kl)
    for bad in [False, True, False]:
        update(net, kfac, torch.randn(16, 4))
        if bad:
            net[0].weight.grad[0, 0] = math.nan
        start = net[0].weight.detach().clone()
        kfac.step()
        assert_finite(net)
        assert (kfac.last_step[0].step_scale == 0) == bad
    assert not torch.equal(net[0].weight, start)


def test_states_of_before_that_had_a_floor_of_lengths():
    net = nn.Linear(3, 2)
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(5, 3))
    kfac.update_curvature(Normal(out, 1.0))
    out.sum().backward()
    kfac.step()
    state = copy.deepcopy(kfac.state_dict())
    state["param_groups"][0].update(length_floor=0.0, lengths=torch.zeros(2))
    other = KFAC(net)
    other.load_state_dict(state)
    assert other.param_groups[0].keys() == kfac.param_groups[0].keys()
    state["param_groups"][0]["length_floor"] = 0.5
    with pytest.raises(ValueError, match=r"length_floor 0\.5, which is gone"):
        KFAC(net).load_state_dict(state)
