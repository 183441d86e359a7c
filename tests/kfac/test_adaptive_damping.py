"""Damping by Levenberg and Marquardt: the promise against dense matrices, and the rule."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, StepRule
from acktr.kfac.damping import DECAY, MAX_DAMPING, MIN_DAMPING, PERIOD, Promise, adapt
from acktr.kfac.exact import flatten
from tests.helpers.options import in_groups

from . import oracle
from .test_ekfac import dense

SIGMA = 1.0


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    """Negative log-likelihood of targets under N(out, sigma^2), without its constant."""
    return 0.5 * ((net(x) - x[:, :2].sin()) / SIGMA).square().sum(1).mean()


def learn(kfac: KFAC, x: Tensor) -> Tensor:
    """One update; the loss before it."""
    with kfac.capture():
        out = kfac.module(x)
    kfac.update_curvature(Normal(out, SIGMA))
    kfac.zero_grad()
    loss = loss_of(kfac.module, x)
    loss.backward(retain_graph=True)
    kfac.step()
    return loss.detach()


def learn_to_the_report(kfac: KFAC, x: Tensor) -> Tensor:
    for _ in range(PERIOD - 1):
        learn(kfac, x)
        assert not kfac.wants_reduction
    loss = learn(kfac, x)
    assert kfac.wants_reduction
    return loss


def vector(net: nn.Module) -> Tensor:
    return flatten([p.detach().clone() for p in net.parameters()])


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"inverse": "ekfac"}])
@pytest.mark.parametrize("target_kl", [None, 1e-4])
def test_the_promise_is_that_of_the_dense_model(target_kl, options):
    x, damping = torch.randn(20, 4), 0.3
    kfac = KFAC(
        mlp(), lr=0.1, damping=damping, target_kl=target_kl, **in_groups(adapt_damping=True, **options)
    )
    for _ in range(PERIOD - 1):
        learn(kfac, x)
    theta = vector(kfac.module)
    learn(kfac, x)
    moved = theta - vector(kfac.module)
    gradient = flatten([p.grad for p in kfac.module.parameters()])
    model = dense(kfac) + damping * torch.eye(len(moved))
    promised = gradient @ moved - moved @ model @ moved / 2
    torch.testing.assert_close(kfac._promised.reduction, promised, rtol=1e-9, atol=0)
    assert kfac.report_reduction(0.5 * promised) == pytest.approx(0.5)


def test_the_promise_is_kept_where_the_model_is_exact():
    """One linear layer and a Gaussian: but for damping, the model with the exact Fisher is the loss."""
    net, x, damping = nn.Linear(4, 2), torch.randn(20, 4), 1e-3
    kfac = KFAC(
        net,
        lr=0.3,
        damping=damping,
        target_kl=None,
        momentum=0.5,
        step_rule=StepRule(exact_scaling=True, adapt_damping=True),
    )
    for _ in range(PERIOD):
        before = vector(net)
        loss = learn(kfac, x)
    moved = before - vector(net)
    promised = kfac._promised.reduction + damping * moved.square().sum() / 2
    torch.testing.assert_close(promised, loss - loss_of(net, x), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("actual", "factor"),
    [
        (2.0, DECAY**PERIOD),
        (0.76, DECAY**PERIOD),
        (0.74, 1.0),
        (0.26, 1.0),
        (0.24, DECAY**-PERIOD),
        (-3.0, DECAY**-PERIOD),
        (math.nan, DECAY**-PERIOD),
        (-math.inf, DECAY**-PERIOD),
    ],
)
def test_the_rule(actual, factor):
    groups = [{"damping": 0.1}, {"damping": torch.tensor(2.0)}]
    ratio = adapt(Promise(torch.tensor(1.0), groups), actual)
    assert ratio == actual or math.isnan(actual)
    assert [group["damping"] for group in groups] == pytest.approx([0.1 * factor, 2.0 * factor])


@pytest.mark.parametrize(("start", "actual"), [(MIN_DAMPING, 1.0), (MAX_DAMPING, -1.0)])
def test_it_stays_within_its_bounds(start, actual):
    group = {"damping": start}
    for _ in range(3):
        adapt(Promise(torch.tensor(1.0), [group]), actual)
    assert group["damping"] == start


@pytest.mark.parametrize("promised", [0.0, -1.0, math.nan])
def test_a_step_that_promised_nothing_changes_nothing(promised):
    group = {"damping": 0.1}
    assert adapt(Promise(torch.tensor(promised), [group]), 1.0) is None
    assert group["damping"] == 0.1


def test_every_fifth_step_and_no_other_is_asked_for():
    kfac, x = KFAC(mlp(), step_rule=StepRule(adapt_damping=True)), torch.randn(20, 4)
    asked = []
    for _ in range(12):
        loss = learn(kfac, x)
        asked.append(kfac.wants_reduction)
        told = kfac.report_reduction(loss - loss_of(kfac.module, x))  # of other steps it means nothing
        assert (told is not None) == asked[-1]
        assert kfac.report_reduction(-1.0) is None  # nor twice
    assert [k + 1 for k, wanted in enumerate(asked) if wanted] == [5, 10]


def test_it_finds_a_damping_from_both_sides():
    """Far too much is taken back; far too little fails and is given."""
    dampings = {}
    for start in (MIN_DAMPING, 1e3):
        torch.manual_seed(0)
        kfac = KFAC(mlp(), lr=1.0, target_kl=None, damping=start, step_rule=StepRule(adapt_damping=True))
        for _ in range(300):
            x = torch.randn(8, 4)
            loss = learn(kfac, x)
            if kfac.wants_reduction:
                kfac.report_reduction(loss - loss_of(kfac.module, x))
        dampings[start] = kfac.param_groups[0]["damping"]
    assert dampings[1e3] < 1e3
    assert dampings[MIN_DAMPING] > MIN_DAMPING


def test_the_new_damping_is_the_next_step_s():
    x = torch.randn(20, 4)
    kfac = KFAC(mlp(), lr=1.0, target_kl=None, step_rule=StepRule(adapt_damping=True))
    learn_to_the_report(kfac, x)
    kfac.report_reduction(-1.0)
    other = copy.deepcopy(kfac)
    other.param_groups[0]["adapt_damping"] = False
    assert other.param_groups[0]["damping"] == pytest.approx(0.01 / DECAY**PERIOD)
    for one in (kfac, other):
        torch.manual_seed(1)
        learn(one, x)
    assert torch.equal(vector(kfac.module), vector(other.module))


def test_groups_adapt_each_for_itself_to_one_promise():
    net, x = mlp(), torch.randn(20, 4)
    groups = [
        {"params": net[0].parameters(), "adapt_damping": True, "damping": 0.2},
        {"params": net[2].parameters(), "damping": 0.3},
    ]
    kfac = KFAC(net, param_groups=groups)
    for _ in range(PERIOD - 1):
        learn(kfac, x)
    theta = vector(net)
    learn(kfac, x)
    moved = theta - vector(net)
    gradient = flatten([p.grad for p in net.parameters()])
    model = dense(kfac)
    for name, damping in (("0", 0.2), ("2", 0.3)):
        rows = oracle.layer_positions(net, name).flatten()
        model[rows, rows] += damping
    promised = gradient @ moved - moved @ model @ moved / 2
    torch.testing.assert_close(kfac._promised.reduction, promised, rtol=1e-9, atol=0)
    kfac.report_reduction(promised)
    assert kfac.param_groups[0]["damping"] == pytest.approx(0.2 * DECAY**PERIOD)
    assert kfac.param_groups[1]["damping"] == 0.3


def test_a_group_that_did_not_move_does_not_adapt():
    net, x = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]), torch.randn(20, 4)
    kfac = KFAC(
        net,
        param_groups=[{"params": m.parameters()} for m in net],
        step_rule=StepRule(adapt_damping=True),
    )
    for k in range(2 * PERIOD):
        kfac.zero_grad()
        with kfac.capture():
            outputs = [m(x) for m in net]
        kfac.update_curvature(*(Normal(out, 1.0) for out in outputs))
        outputs[k >= PERIOD].square().mean().backward()
        kfac.step()
        if kfac.wants_reduction:
            kfac.report_reduction(1e9)
            assert [g["damping"] < 0.01 for g in kfac.param_groups] == [True, k >= PERIOD]
            assert kfac.param_groups[0]["damping"] == pytest.approx(0.01 * DECAY**PERIOD)


def test_a_refused_step_changes_nothing():
    kfac, x = KFAC(mlp(), step_rule=StepRule(adapt_damping=True)), torch.randn(20, 4)
    for _ in range(PERIOD - 1):
        learn(kfac, x)
    with kfac.capture():
        out = kfac.module(x)
    kfac.update_curvature(Normal(out, SIGMA))
    (out * torch.nan).sum().backward()
    kfac.step()
    assert kfac.counters["rejected_steps"] == 1
    assert kfac.report_reduction(0.0) is None
    assert kfac.param_groups[0]["damping"] == 0.01


def test_a_resumed_optimiser_goes_on_exactly():
    batches = torch.randn(14, 20, 4)
    whole, cut = (KFAC(mlp(), step_rule=StepRule(adapt_damping=True)) for _ in range(2))
    cut.module.load_state_dict(whole.module.state_dict())
    for i, x in enumerate(batches):
        for kfac in (whole, cut):
            torch.manual_seed(i)
            loss = learn(kfac, x)
            if kfac.wants_reduction:
                kfac.report_reduction(loss - loss_of(kfac.module, x))
        if i == 6:
            weights, state = copy.deepcopy((cut.module.state_dict(), cut.state_dict()))
            cut = KFAC(mlp())
            cut.module.load_state_dict(weights)
            cut.load_state_dict(state)
    assert torch.equal(vector(whole.module), vector(cut.module))
    assert whole.param_groups[0]["damping"] == cut.param_groups[0]["damping"] != 0.01


def test_a_report_that_nobody_asked_for_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"KFAC\(step_rule=StepRule\(adapt_damping=True\)\)"):
        KFAC(mlp()).report_reduction(1.0)


@pytest.mark.parametrize("damping", [0.0, 1e5])
def test_a_damping_out_of_bounds_is_refused(damping):
    with pytest.raises(ValueError, match="adapt_damping moves damping between 1e-06 and 10000"):
        KFAC(mlp(), damping=damping, step_rule=StepRule(adapt_damping=True))


def test_something_else_than_a_choice_is_refused():
    with pytest.raises(ValueError, match="adapt_damping must be True or False, got 1"):
        KFAC(mlp(), step_rule=StepRule(adapt_damping=1))
