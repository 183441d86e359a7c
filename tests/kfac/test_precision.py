"""Precisions: statistics and inverses live in the precision of the parameters."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Curvature
from tests.helpers.options import in_groups


def network(dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8),
        nn.Tanh(), nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip


def train(net: nn.Sequential, autocast: bool, **settings) -> KFAC:
    kfac = KFAC(net, **in_groups(**settings))
    dtype = net[0].weight.dtype
    for _ in range(3):
        x = torch.randn(64, 1, 3, 3).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), kfac.capture():
            logits = net(x)
        kfac.update_curvature(Categorical(logits=logits.to(dtype)))
        kfac.zero_grad()
        logits.to(dtype).logsumexp(-1).mean().backward()
        kfac.step()
    return kfac


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_have_the_precision_of_the_parameters(dtype, autocast, inverse):
    """Under autocast activations and gradients are bfloat16, which no factorisation takes."""
    net = network(dtype)
    kfac = train(net, autocast, inverse=inverse, momentum=0.9)
    assert all(p.isfinite().all() and p.dtype == dtype for p in net.parameters())
    assert {f.dtype for pair in kfac.factors().values() for f in pair} == {dtype}
    assert sum(kfac.counters.values()) == 0


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), (torch.float32, True)])
def test_lower_precision_stays_close(dtype, autocast):
    """Same seed, same signs: bfloat16 keeps two digits, float32 six."""
    reference, net = network(torch.float64), network(dtype)
    net.load_state_dict(reference.state_dict())
    kfacs = []
    for module, cast in [(reference, False), (net, autocast)]:
        kfac = KFAC(module, curvature=Curvature(fisher="curvature-propagation"))
        torch.manual_seed(3)
        x = torch.randn(64, 1, 3, 3).to(module[0].weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast), kfac.capture():
            logits = module(x)
        # The signs: drawn in float64 for both.
        kfac.update_curvature(Categorical(logits=logits.double()))
        kfacs.append(kfac)
    expected, got = (kfac.factors() for kfac in kfacs)
    for name in expected:
        for f, g in zip(expected[name], got[name], strict=True):
            error = (g.double() - f).norm() / f.norm()
            assert error < (0.03 if autocast else 1e-5), name


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_statistics_in_bfloat16_are_near_the_exact_ones(weight_sharing):
    torch.set_default_dtype(torch.float32)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 16, 4))
    x = torch.randn(64, 2, 6, 6)
    exact, rounded = (
        KFAC(net, curvature=Curvature(weight_sharing=weight_sharing, statistics_dtype=dtype))
        for dtype in (None, "bfloat16")
    )
    for kfac in (exact, rounded):
        torch.manual_seed(1)
        with kfac.capture():
            out = net(x)
        kfac.update_curvature(Categorical(logits=out))
    for name, factors in exact.factors().items():
        for one, other in zip(factors, rounded.factors()[name], strict=True):
            assert other.dtype == torch.float32
            assert not torch.equal(one, other)
            assert (one - other).norm() < 0.01 * one.norm()  # eight bits: 2^-8 = 0.004


def test_a_dtype_that_cannot_hold_statistics_is_refused():
    for dtype in ("int8", "half-ish", torch.int32):
        with pytest.raises(ValueError, match="statistics_dtype must be a floating-point dtype"):
            KFAC(nn.Linear(2, 2), curvature=Curvature(statistics_dtype=dtype))
