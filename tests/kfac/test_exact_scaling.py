"""Length and momentum of a step by the exact Fisher, against the dense matrix in float64."""

import copy
import functools
import io

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from acktr.kfac import KFAC, StepRule
from acktr.kfac.exact import flatten
from acktr.kfac.scaling import Candidate, best_mix
from tests.helpers.options import in_groups

from . import oracle
from .test_ekfac import dense
from .test_ekfac import learn as learn_with
from .test_exact import spd
from .test_inverse import FORMULAS

SIGMA = 0.5
learn = functools.partial(learn_with, sigma=SIGMA)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def damped(kfac: KFAC, damping: float) -> Tensor:
    """K-FAC's damped matrix."""
    kind = kfac.curvature.inverse
    if kfac.curvature.approximation == "ekfac":
        whole = dense(kfac)
        return whole + damping * torch.eye(len(whole))
    whole = torch.zeros_like(dense(kfac))
    for name, (a, s) in kfac.factors().items():
        rows = oracle.layer_positions(kfac.module, name).flatten()
        whole[rows[:, None], rows] = FORMULAS[kind](a, s, damping)
    return whole


@pytest.mark.parametrize("inverse", [*FORMULAS, "ekfac"])
@pytest.mark.parametrize("iterations", [0, 60], ids=["kfac", "conjugate-gradients"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.3)])
@pytest.mark.parametrize("lr", [10.0, 1e-3], ids=["kl-binds", "lr-binds"])
def test_steps_against_the_dense_solution(lr, momentum, weight_decay, iterations, inverse):
    """Martens & Grosse 2015, sec. 7: the 2 x 2 system, then the trust region, both with the exact F."""
    net, target_kl, damping = mlp(), 1e-3, 0.02
    kfac = KFAC(
        net,
        lr=lr,
        damping=damping,
        target_kl=target_kl,
        momentum=momentum,
        weight_decay=weight_decay,
        **in_groups(stat_decay=0.9, inverse=inverse, cg_iterations=iterations, exact_scaling=True),
    )
    previous: list[Tensor] = []
    for _ in range(4):
        x = torch.randn(20, 4)
        theta = flatten([p.detach().clone() for p in net.parameters()])
        fisher = oracle.dense_fisher(net, x, oracle.gaussian(SIGMA))
        gradient, taken = learn(kfac, x)
        matrix = damped(kfac, damping) + (fisher if iterations else 0.0)
        span = torch.stack([torch.linalg.solve(matrix, gradient), *previous], 1)
        model = fisher + damping * torch.eye(len(fisher))
        velocity = span @ torch.linalg.solve(span.T @ model @ span, span.T @ gradient)
        step = velocity + weight_decay * theta
        quadratic = step @ fisher @ step
        eta = (2 * target_kl / quadratic).sqrt().clamp(max=lr)
        info = kfac.last_step[0]
        torch.testing.assert_close(info.step_scale, eta, rtol=1e-6, atol=0)
        torch.testing.assert_close(info.predicted_kl, eta**2 * quadratic / 2, rtol=1e-6, atol=0)
        torch.testing.assert_close(taken, eta * step, rtol=1e-6, atol=1e-9)
        assert (info.cg_residual is None) == (iterations == 0)
        previous = [velocity] if momentum else []


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_predicted_kl_becomes_the_measured_one(momentum):
    """Two layers and many samples: K-FAC's own prediction is off by more than a half."""
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    x, labels = torch.randn(40, 1) @ torch.ones(1, 3) + 0.1 * torch.randn(40, 3), torch.zeros(40).long()
    for exact in (False, True):
        for target_kl in [1e-4, 1e-6, 1e-8]:
            model = copy.deepcopy(net)
            kfac = KFAC(
                model,
                lr=1e6,
                target_kl=target_kl,
                momentum=momentum,
                step_rule=StepRule(exact_scaling=exact),
            )
            for _ in range(3):
                with kfac.capture():
                    out = model(x)
                kfac.update_curvature(Categorical(logits=out))
                kfac.zero_grad()
                nn.functional.cross_entropy(out, labels).backward(retain_graph=True)
                kfac.step()
            new = Categorical(logits=model(x).detach())
            measured = kl_divergence(Categorical(logits=out.detach()), new).mean()
            error = abs(measured / kfac.last_step[0].predicted_kl - 1)
            # What is left is of first order in the step, hence in sqrt(KL).
            assert error < 10 * target_kl**0.5 if exact else error > 0.5


def test_no_other_mix_is_better():
    fisher, g, damping = spd(8), torch.randn(8), 0.3
    candidates = [Candidate(x, fisher @ x) for x in torch.randn(3, 8)]
    mix = best_mix(candidates, g, damping)
    torch.testing.assert_close(mix.fisher, fisher @ mix.direction)
    residual = g - fisher @ mix.direction - damping * mix.direction
    for candidate in candidates:  # the model is flat along each of them
        assert abs(residual @ candidate.direction) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_previous_step_that_adds_nothing_is_left_out(dtype):
    fisher, g, x = spd(5).to(dtype), torch.randn(5).to(dtype), torch.randn(5).to(dtype)
    alone = best_mix([Candidate(x, fisher @ x)], g, 0.1)
    for other in (torch.zeros(5).to(dtype), 3 * x, (1 + 1e-7) * x):
        mix = best_mix([Candidate(x, fisher @ x), Candidate(other, fisher @ other)], g, 0.1)
        torch.testing.assert_close(mix.direction, alone.direction)


def test_without_curvature_and_damping_the_length_is_left():
    x, zero = torch.randn(5), torch.zeros(5)
    mix = best_mix([Candidate(x, zero), Candidate(x.flip(0), zero)], torch.randn(5), 0.0)
    assert torch.equal(mix.direction, x)
    assert not best_mix([Candidate(zero, zero)], zero, 0.1).direction.any()


def test_the_value_of_momentum_plays_no_role():
    net, x = mlp(), torch.randn(20, 4)
    taken = []
    for momentum in (0.1, 0.9):
        torch.manual_seed(1)
        kfac = KFAC(copy.deepcopy(net), momentum=momentum, step_rule=StepRule(exact_scaling=True))
        taken.append([learn(kfac, x)[1] for _ in range(3)])
    torch.testing.assert_close(*taken, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"exact_scaling": True}, {"cg_iterations": 3}], ids=str)
def test_a_parameter_without_a_gradient_stays_and_does_not_count(options):
    net, x = mlp(), torch.randn(20, 4)
    kfac = KFAC(net, lr=10.0, momentum=0.9, **in_groups(**options))
    learn(kfac, x)
    fisher = oracle.dense_fisher(net, x, oracle.gaussian(SIGMA))
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, SIGMA))
    kfac.zero_grad()
    (out - 3).square().mean().backward(retain_graph=True)
    net[0].bias.grad = None
    before = flatten([p.detach().clone() for p in net.parameters()])
    kfac.step()
    taken = before - flatten([p.detach() for p in net.parameters()])
    assert not taken[20:25].any()
    predicted = kfac.last_step[0].predicted_kl
    torch.testing.assert_close(predicted, taken @ fisher @ taken / 2, rtol=1e-9, atol=0)


def test_groups_choose_each_for_themselves():
    net, x = mlp(), torch.randn(20, 4)
    groups = [{"params": net[0].parameters(), "exact_scaling": True}, {"params": net[2].parameters()}]
    kfac = KFAC(net, lr=10.0, target_kl=1e-3, param_groups=groups)
    fisher = oracle.dense_fisher(net, x, oracle.gaussian(SIGMA))
    _, taken = learn(kfac, x)
    first, second = (oracle.layer_positions(net, name).flatten() for name in "02")
    kl = taken[first] @ fisher[first][:, first] @ taken[first] / 2
    torch.testing.assert_close(kl, torch.tensor(1e-3), rtol=1e-9, atol=0)
    kl = taken[second] @ kfac.fisher_blocks()["2"] @ taken[second] / 2
    torch.testing.assert_close(kl, torch.tensor(1e-3), rtol=1e-9, atol=0)


def test_a_resumed_optimiser_goes_on_exactly():
    batches = torch.randn(6, 20, 4)
    whole, cut = (KFAC(mlp(), momentum=0.9, step_rule=StepRule(exact_scaling=True)) for _ in range(2))
    cut.module.load_state_dict(whole.module.state_dict())
    for i, x in enumerate(batches):
        for kfac in (whole, cut):
            torch.manual_seed(i)
            learn(kfac, x)
        if i == 2:
            file = io.BytesIO()
            torch.save((cut.module.state_dict(), cut.state_dict()), file)
            file.seek(0)
            model, state = torch.load(file, weights_only=True)
            cut = KFAC(mlp(), step_rule=StepRule(exact_scaling=False))
            cut.module.load_state_dict(model)
            cut.load_state_dict(state)
    for p, q in zip(whole.module.parameters(), cut.module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_from_before_there_was_the_setting_is_read():
    kfac = KFAC(mlp(), step_rule=StepRule(exact_scaling=True))
    learn(kfac, torch.randn(20, 4))
    state = copy.deepcopy(kfac.state_dict())
    del state["param_groups"][0]["exact_scaling"]
    kfac.load_state_dict(state)
    learn(kfac, torch.randn(20, 4))
    assert kfac.param_groups[0]["exact_scaling"] is True


def test_a_step_without_the_graph_says_what_to_do():
    kfac = KFAC(mlp(), step_rule=StepRule(exact_scaling=True))
    with kfac.capture():
        out = kfac.module(torch.randn(20, 4))
    kfac.update_curvature(Normal(out, SIGMA))
    out.square().mean().backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        kfac.step()


def test_a_second_step_on_one_batch_says_what_to_do():
    kfac = KFAC(mlp(), step_rule=StepRule(exact_scaling=True))
    learn(kfac, torch.randn(20, 4))
    with pytest.raises(RuntimeError, match=r"exact_scaling need the exact Fisher.*update_curvature"):
        kfac.step()


def test_something_else_than_a_choice_is_refused():
    with pytest.raises(ValueError, match="exact_scaling must be True or False, got 'yes'"):
        KFAC(mlp(), step_rule=StepRule(exact_scaling="yes"))
