"""A natural gradient that is shorter than most makes a shorter step (``length_floor``)."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC
from acktr.kfac.exact import flatten

from . import oracle

DELTA, LR = 1e-3, 50.0
# How much each batch has to say.
SIZES = [1.0, 1.0, 0.02, 3.0, 0.3, 1e-4, 1.0]


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def update(kfac, net, size):
    """One update on a loss of this size; the exact Fisher before it, and theta before minus after."""
    x = torch.randn(20, 4)
    fisher = oracle.dense_fisher(net, x, oracle.gaussian(0.5))
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    kfac.zero_grad()
    (size * (out - torch.randn(2)).square().mean()).backward(retain_graph=True)
    before = flatten([p.detach().clone() for p in net.parameters()])
    kfac.step()
    return fisher, before - flatten([p.detach() for p in net.parameters()])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_scales_against_lengths_in_the_dense_fisher(floor, momentum):
    net = mlp()
    kfac = KFAC(net, lr=LR, target_kl=DELTA, length_floor=floor, momentum=momentum, cg_iterations=4)
    lengths: list[float] = []
    ruled = []
    for size in SIZES:
        fisher, taken = update(kfac, net, size)
        info = kfac.last_step[0]
        direction = taken / info.step_scale
        length = (direction @ fisher @ direction).sqrt().item()
        least = floor * sum(lengths) / len(lengths) if lengths else 0.0
        bound = math.sqrt(2 * DELTA)
        eta_max = min(LR, bound / least) if least else LR
        assert info.max_scale.item() == pytest.approx(eta_max, rel=1e-6)
        assert info.step_scale.item() == pytest.approx(min(eta_max, bound / length), rel=1e-6)
        ruled.append(length < least)
        lengths.append(length)
    assert any(ruled) == (floor > 0), "the case must exercise what it names"
    assert not all(ruled)


def test_without_a_bound_there_is_no_floor():
    net = mlp()
    kfac = KFAC(net, lr=0.01, target_kl=None, length_floor=1.0)
    for size in SIZES:
        update(kfac, net, size)
        assert kfac.last_step[0].step_scale == pytest.approx(0.01)


def test_a_step_that_is_not_taken_leaves_the_mean_as_it_was():
    net = mlp()
    kfac = KFAC(net, lr=LR, target_kl=DELTA, length_floor=0.5)
    for size in (1.0, 2.0):
        update(kfac, net, size)
    mean = kfac.param_groups[0]["lengths"].clone()
    update(kfac, net, math.nan)
    torch.testing.assert_close(kfac.param_groups[0]["lengths"], mean, rtol=0, atol=0)
    assert mean[1] == 2


def test_each_group_has_its_own_mean():
    net = mlp()
    groups = [{"params": net[0].parameters(), "length_floor": 0.5}, {"params": net[2].parameters()}]
    kfac = KFAC(net, lr=LR, target_kl=DELTA, param_groups=groups)
    for size in SIZES:
        update(kfac, net, size)
    first, second = (group["lengths"] for group in kfac.param_groups)
    assert first[1] == len(SIZES)
    assert not second.any()


def test_the_mean_goes_on_after_a_resume():
    net = mlp()
    kfac = KFAC(net, lr=LR, target_kl=DELTA, length_floor=0.5)
    for size in SIZES[:3]:
        update(kfac, net, size)
    other = copy.deepcopy(net)
    resumed = KFAC(other, lr=LR, target_kl=DELTA, length_floor=0.5)
    resumed.load_state_dict(kfac.state_dict())
    ends = []
    for model, optimizer in ((net, kfac), (other, resumed)):
        torch.manual_seed(1)
        for size in SIZES[3:]:
            update(optimizer, model, size)
        ends.append(flatten(list(model.parameters())))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_a_state_from_before_there_was_a_floor_is_read():
    net = mlp()
    kfac = KFAC(net, target_kl=DELTA, length_floor=0.5)
    update(kfac, net, 1.0)
    state = kfac.state_dict()
    for key in ("length_floor", "lengths"):
        del state["param_groups"][0][key]
    resumed = KFAC(net, target_kl=DELTA, length_floor=0.5)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["length_floor"] == 0.5
    assert not resumed.param_groups[0]["lengths"].any()
    update(resumed, net, 1.0)
