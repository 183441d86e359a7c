"""Misuse: every wrong argument is refused in one sentence that names it."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Gamma, MultivariateNormal, Normal

from acktr.kfac import KFAC
from acktr.kfac.options import EARLIER
from tests.helpers.options import in_groups


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


WRONG = [
    ("lr", [-1.0, math.nan]),
    ("damping", [-0.1, math.nan]),
    ("target_kl", [0.0, -1e-3, math.nan]),
    ("momentum", [-0.1, 1.0, math.nan]),
    ("weight_decay", [-0.1, math.nan]),
    ("stat_decay", [0.0, -0.5, 1.1, math.nan]),
    ("burn_in", [-1]),
    ("factor_period", [0, -1]),
    ("inverse_period", [0, -1]),
    ("fisher", ["empirical", ""]),
    ("inverse", ["lu", ""]),
]
CASES = [(name, value) for name, values in WRONG for value in values]
GROUP_OPTIONS = {
    "lr", "damping", "target_kl", "momentum", "weight_decay",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_wrong_argument_is_named(name, value):
    with pytest.raises(ValueError, match=EARLIER.get(name, ("", name))[1]) as caught:
        KFAC(mlp(), **in_groups(**{name: value}))
    message = str(caught.value)
    assert str(value) in message
    assert len(message) > 20


@pytest.mark.parametrize(("name", "value"), [c for c in CASES if c[0] in GROUP_OPTIONS])
def test_a_wrong_group_option_is_named(name, value):
    net = mlp()
    with pytest.raises(ValueError, match=name):
        KFAC(net, param_groups=[{"params": list(net.parameters()), name: value}])


@pytest.mark.parametrize("name", ["fisher", "inverse"])
def test_an_unknown_name_lists_the_known_ones(name):
    known = {"fisher": ["curvature-propagation", "monte-carlo"], "inverse": ["cholesky", "eigen"]}
    with pytest.raises(ValueError, match=name) as caught:
        KFAC(mlp(), **in_groups(**{name: "nonsense"}))
    assert all(option in str(caught.value) for option in known[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"damping": 0.0},
        {"target_kl": None},
        {"momentum": 0.0},
        {"momentum": 0.999},
        {"stat_decay": 1.0},
        {"stat_decay": 1e-6},
    ],
    ids=str,
)
def test_values_at_the_edge_are_allowed(settings):
    net = mlp()
    kfac = KFAC(net, **in_groups(**settings))
    with kfac.capture():
        out = net(torch.randn(30, 3))
    kfac.update_curvature(Normal(out, 1.0))
    out.sum().backward()
    kfac.step()
    assert all(p.isfinite().all() for p in net.parameters())


# ---------------------------------------------------------------- parameter groups


def groups_of(net: nn.Sequential) -> dict[str, tuple[list, str]]:
    first, last = list(net[0].parameters()), list(net[2].parameters())
    return {
        "the same parameter in two groups": (
            [{"params": first}, {"params": first + last}],
            "more than one",
        ),
        "the same parameter twice in a group": ([{"params": first + first}], "more than once"),
        "a stranger": ([{"params": [nn.Parameter(torch.ones(1))]}], "module|model"),
        "no parameters": ([], "empty|param"),
    }


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("case", groups_of(mlp()))
def test_wrong_groups(case):
    net = mlp()
    groups, words = groups_of(net)[case]
    with pytest.raises(ValueError, match=words):
        KFAC(net, param_groups=groups)


def test_parameters_alone_are_one_group():
    net = mlp()
    for given in (net[0].parameters(), list(net[0].parameters()), net[0].named_parameters()):
        kfac = KFAC(net, param_groups=given)
        assert [group["params"] for group in kfac.param_groups] == [list(net[0].parameters())]


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="or the module itself, holds no parameters"):
        KFAC(nn.Tanh())


def test_weight_and_bias_may_lie_in_groups_of_their_own():
    """Such as those that give no weight decay to biases."""
    net = mlp()
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    kfac = KFAC(net, param_groups=[{"params": weights, "weight_decay": 0.1}, {"params": biases}])
    before = [p.detach().clone() for p in net.parameters()]
    x = torch.randn(6, 3)
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 1.0))
    out.exp().sum().backward()
    kfac.step()
    assert all(not torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))
    assert [[b.name for b in blocks] for blocks in kfac._blocks] == [["0", "2"], ["0.bias", "2.bias"]]
    torch.testing.assert_close(kfac.factors()["0"][0], x.T @ x / 6)


def test_parameters_in_the_place_of_a_module():
    with pytest.raises(TypeError, match=r"needs the torch\.nn\.Module itself, not generator"):
        KFAC(mlp().parameters())


def test_a_batch_of_no_samples_is_left_out():
    net = mlp()
    kfac = KFAC(net)
    for n in (0, 6, 0):
        with kfac.capture():
            out = net(torch.randn(n, 3))
        kfac.update_curvature(Categorical(logits=out, validate_args=False))
        factors = {name: [x.clone() for x in pair] for name, pair in kfac.factors().items()}
    assert set(factors) == {"0", "2"}
    assert all(x.isfinite().all() for pair in factors.values() for x in pair)
    assert kfac.factors()["0"][0][-1, -1] == 1


def test_a_module_without_parameters():
    with pytest.raises(ValueError, match="param"):
        KFAC(nn.Tanh())


# ---------------------------------------------------------------- update_curvature


def captured() -> tuple[KFAC, torch.Tensor]:
    net = mlp()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(6, 3))
    return kfac, out


def test_update_curvature_without_capture():
    net = mlp()
    with pytest.raises(RuntimeError, match="capture"):
        KFAC(net).update_curvature(Categorical(logits=net(torch.randn(6, 3))))


def test_update_curvature_twice_for_one_capture():
    kfac, out = captured()
    kfac.update_curvature(Categorical(logits=out))
    with pytest.raises(RuntimeError, match="capture"):
        kfac.update_curvature(Categorical(logits=out))


@pytest.mark.parametrize("detach", [torch.Tensor.detach, torch.ones_like], ids=["detached", "constant"])
def test_distributions_that_do_not_depend_on_the_module(detach):
    kfac, out = captured()
    with pytest.raises((RuntimeError, ValueError), match=r"\w+ .{20,}"):
        kfac.update_curvature(Categorical(logits=detach(out)))


def test_distributions_that_reach_no_layer_of_any_group():
    """The critic's group alone, but the policy's distribution."""
    net = nn.ModuleDict({"policy": nn.Linear(3, 2), "value": nn.Linear(3, 1)})
    kfac = KFAC(net, param_groups=[{"params": list(net["value"].parameters())}])
    x = torch.randn(6, 3)
    with kfac.capture():
        logits, _ = net["policy"](x), net["value"](x)
    with pytest.raises(RuntimeError, match=r"distributions do not depend|captured"):
        kfac.update_curvature(Categorical(logits=logits))


def test_distributions_over_different_numbers_of_samples():
    kfac, out = captured()
    with pytest.raises(ValueError, match=r"samples.*5.*6|samples.*6.*5"):
        kfac.update_curvature(Categorical(logits=out), Bernoulli(logits=out[:5]))


def test_no_distribution():
    kfac, _ = captured()
    with pytest.raises(ValueError, match="distribution"):
        kfac.update_curvature()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda out: Gamma(out.exp(), 1.0), "Gamma"),
        (lambda out: MultivariateNormal(out, torch.eye(2)), "MultivariateNormal"),
        (lambda out: [Normal(out, 1.0), Gamma(out.exp(), 1.0)], "Gamma"),
        (lambda out: out, "Tensor"),
        (lambda out: "gaussian", "str"),
    ],
    ids=["gamma", "multivariate", "in-a-list", "tensor", "string"],
)
def test_an_unsupported_distribution_is_named(build, name):
    kfac, out = captured()
    with pytest.raises(TypeError, match=name):
        kfac.update_curvature(build(out))


def test_an_unsupported_distribution_says_how_to_register_it():
    kfac, out = captured()
    with pytest.raises(TypeError, match="register"):
        kfac.update_curvature(Gamma(out.exp(), 1.0))


def test_a_wrong_call_leaves_the_factors_alone():
    kfac, out = captured()
    before = str(kfac.factors())
    with pytest.raises(TypeError):
        kfac.update_curvature(Normal(out, 1.0), Gamma(out.exp(), 1.0))
    assert str(kfac.factors()) == before
