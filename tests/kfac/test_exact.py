"""The exact Fisher's products and conjugate gradients, against the dense Fisher matrix in float64."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Gamma, Normal

from acktr.kfac import KFAC, Periods, StepRule
from acktr.kfac.exact import FisherProduct, flatten, solve, split_like
from acktr.kfac.likelihood import likelihoods_of
from tests.helpers.options import in_groups

from . import oracle
from .heads import HEADS, distributions
from .test_inverse import FORMULAS


def mlp(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out))


def spd(n: int) -> Tensor:
    root = torch.randn(n, n)
    return root @ root.T + 0.1 * torch.eye(n)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_products_are_those_of_the_dense_fisher(head):
    net, x = mlp(head.size), torch.randn(6, 4)
    params = list(net.parameters())
    product = FisherProduct(likelihoods_of(distributions(head, net(x))), params)
    dense = oracle.dense_fisher(net, x, head.hessian)
    vector = torch.randn(len(dense))
    torch.testing.assert_close(product(vector), dense @ vector, rtol=1e-9, atol=1e-12)


def test_products_of_a_convolution_and_of_a_parameter_that_is_not_used():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    idle = nn.Parameter(torch.randn(3))
    x = torch.randn(4, 2, 6, 6)
    product = FisherProduct([Categorical(logits=net(x))], [*net.parameters(), idle])
    dense = oracle.dense_fisher(net, x, oracle.categorical)
    vector = torch.randn(len(dense) + 3)
    out = product(vector)
    torch.testing.assert_close(out[:-3], dense @ vector[:-3], rtol=1e-9, atol=1e-12)
    assert not out[-3:].any()


def test_conjugate_gradients_solve_to_the_end():
    fisher, damped, g = spd(7), spd(7), torch.randn(7)
    solution = solve(lambda v: fisher @ v, torch.linalg.inv(damped).mv, g, 30)
    x = torch.linalg.solve(fisher + damped, g)
    torch.testing.assert_close(solution.x, x, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(solution.fisher_x, fisher @ x, rtol=1e-8, atol=1e-10)
    assert solution.residual < 1e-8


def test_one_iteration_mends_one_direction():
    """K-FAC right but for one direction: two iterations (it, and all others) solve exactly."""
    damped, u, g = spd(9), torch.randn(9), torch.randn(9)
    fisher = damped + 1e3 * u.outer(u)
    solution = solve(lambda v: fisher @ v, torch.linalg.inv(damped).mv, g, 2)
    torch.testing.assert_close(solution.x, torch.linalg.solve(fisher + damped, g), rtol=1e-6, atol=1e-8)


def test_a_gradient_of_zero_stays_zero():
    solution = solve(lambda v: v, lambda v: v, torch.zeros(3), 4)
    assert not solution.x.any()
    assert not solution.fisher_x.any()


def learn(kfac: KFAC, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One update; the gradient, and theta before minus theta after."""
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    kfac.zero_grad()
    (out - 3).square().mean().backward(retain_graph=True)
    before = flatten([p.detach().clone() for p in net.parameters()])
    kfac.step()
    gradient = flatten([p.grad for p in net.parameters()])
    return gradient, before - flatten([p.detach() for p in net.parameters()])


@pytest.mark.parametrize("inverse", FORMULAS)
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("lr", [10.0, 1e-3], ids=["kl-binds", "lr-binds"])
def test_steps_against_the_dense_solution(inverse, momentum, weight_decay, lr):
    net, target_kl, damping = mlp(2), 1e-3, 0.02
    kfac = KFAC(
        net,
        lr=lr,
        damping=damping,
        target_kl=target_kl,
        momentum=momentum,
        weight_decay=weight_decay,
        **in_groups(stat_decay=0.9, inverse=inverse, cg_iterations=60),
    )
    velocity: Tensor | float = 0.0
    for _ in range(3):
        x = torch.randn(20, 4)
        theta = flatten([p.detach().clone() for p in net.parameters()])
        fisher = oracle.dense_fisher(net, x, oracle.gaussian(0.5))
        gradient, taken = learn(kfac, net, x)
        damped = torch.zeros_like(fisher)
        for name, (a, s) in kfac.factors().items():
            rows = oracle.layer_positions(net, name).flatten()
            damped[rows[:, None], rows] = FORMULAS[inverse](a, s, damping)
        velocity = momentum * velocity + torch.linalg.solve(fisher + damped, gradient)
        step = velocity + weight_decay * theta
        quadratic = step @ fisher @ step
        eta = (2 * target_kl / quadratic).sqrt().clamp(max=lr)
        info = kfac.last_step[0]
        torch.testing.assert_close(info.step_scale, eta, rtol=1e-7, atol=0)
        torch.testing.assert_close(info.predicted_kl, eta**2 * quadratic / 2, rtol=1e-7, atol=0)
        torch.testing.assert_close(taken, eta * step, rtol=1e-7, atol=1e-10)
        assert info.cg_residual < 1e-6
        assert (eta < lr) == (lr > 1), "the case must exercise the bound that it names"


def test_the_predicted_kl_is_the_measured_one_where_kfac_overshoots():
    """Samples that are all alike: K-FAC's blocks, of full rank, promise far too small a KL."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1)
    )
    x = torch.rand(1, 1, 10, 10) + 0.01 * torch.rand(32, 1, 10, 10)
    measured = {}
    for iterations in (0, 5):
        model = copy.deepcopy(net)
        kfac = KFAC(
            model, lr=1e6, target_kl=1e-4, damping=1e-3, step_rule=StepRule(cg_iterations=iterations)
        )
        with kfac.capture():
            out = model(x)
        kfac.update_curvature(Normal(out, 1.0))
        (out - out.detach() - 1).square().mean().backward(retain_graph=True)
        kfac.step()
        measured[iterations] = (model(x) - out).square().mean().item() / 2
    assert 0.9e-4 < measured[5] < 1.1e-4
    assert measured[0] > 10 * measured[5]


def test_groups_are_solved_each_for_itself_and_before_any_of_them_moves():
    net, x = mlp(2), torch.randn(20, 4)
    kfac = KFAC(
        net,
        lr=10.0,
        target_kl=1e-3,
        damping=0.02,
        param_groups=[{"params": net[0].parameters()}, {"params": net[2].parameters()}],
        step_rule=StepRule(cg_iterations=60),
    )
    fisher = oracle.dense_fisher(net, x, oracle.gaussian(0.5))
    gradient, taken = learn(kfac, net, x)
    for name, (a, s) in kfac.factors().items():
        rows = oracle.layer_positions(net, name).flatten()
        block = fisher[rows[:, None], rows]
        step = torch.linalg.solve(block + FORMULAS["cholesky"](a, s, 0.02), gradient[rows])
        eta = (2e-3 / (step @ block @ step)).sqrt()
        torch.testing.assert_close(taken[rows], eta * step, rtol=1e-7, atol=1e-10)


def test_a_part_of_the_batch_gives_the_exact_fisher():
    net, x = mlp(2), torch.randn(20, 4)
    fisher = oracle.dense_fisher(net, x[:7], oracle.gaussian(0.5))
    whole, part = (
        KFAC(n, lr=1.0, step_rule=StepRule(cg_iterations=3)) for n in (copy.deepcopy(net), net)
    )
    taken = []
    for kfac in (whole, part):
        model = kfac.module
        with kfac.capture():
            out = model(x)
        kfac.update_curvature(Normal(out, 0.5))
        if kfac is part:
            kfac.use_exact_fisher(Normal(model(x[:7]), 0.5))
        (out - 3).square().mean().backward(retain_graph=True)
        before = flatten(list(model.parameters())).detach()
        kfac.step()
        taken.append(before - flatten(list(model.parameters())).detach())
    step = taken[1]
    assert not torch.allclose(*taken)
    predicted = part.last_step[0].predicted_kl
    torch.testing.assert_close(predicted, step @ fisher @ step / 2, rtol=1e-7, atol=0)


def test_a_frozen_layer_and_a_missing_gradient_stay():
    net, x = mlp(2), torch.randn(20, 4)
    net[0].requires_grad_(False)
    kfac = KFAC(net, step_rule=StepRule(cg_iterations=2))
    _, taken = learn_frozen(kfac, net, x)
    assert not taken[: 4 * 5 + 5].any()
    assert taken[4 * 5 + 5 :].all()


def learn_frozen(kfac: KFAC, net: nn.Module, x: Tensor) -> tuple[None, Tensor]:
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    (out - 3).square().mean().backward(retain_graph=True)
    before = flatten([p.detach().clone() for p in net.parameters()])
    kfac.step()
    return None, before - flatten([p.detach() for p in net.parameters()])


def test_factor_period_does_not_age_the_exact_fisher():
    net = mlp(2)
    kfac = KFAC(
        net,
        lr=10.0,
        target_kl=1e-6,
        periods=Periods(factor=3, inverse=2),
        step_rule=StepRule(cg_iterations=8),
    )
    for _ in range(4):
        x = torch.randn(20, 4)
        before = net(x).detach()
        learn(kfac, net, x)
        measured = (net(x) - before).square().sum(1).mean() / (2 * 0.25)
        torch.testing.assert_close(measured.item(), 1e-6, rtol=0.02, atol=0)


def test_state_and_copies_survive():
    net, x = mlp(2), torch.randn(20, 4)
    kfac = KFAC(net, step_rule=StepRule(cg_iterations=3))
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    pickle.loads(pickle.dumps(kfac))
    clone = copy.deepcopy(kfac)
    clone.load_state_dict(kfac.state_dict())
    assert clone.param_groups[0]["cg_iterations"] == 3


def test_a_step_without_the_graph_says_what_to_do():
    net, x = mlp(2), torch.randn(20, 4)
    kfac = KFAC(net, step_rule=StepRule(cg_iterations=3))
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    out.square().mean().backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        kfac.step()


def test_a_second_step_on_one_batch_says_what_to_do():
    net, x = mlp(2), torch.randn(20, 4)
    kfac = KFAC(net, step_rule=StepRule(cg_iterations=3))
    learn(kfac, net, x)
    with pytest.raises(RuntimeError, match="call update_curvature or use_exact_fisher"):
        kfac.step()


def test_an_unknown_distribution_is_named():
    net, x = mlp(2), torch.randn(20, 4)
    out = net(x).exp()
    with pytest.raises(TypeError, match="Gamma"):
        FisherProduct([Gamma(out, out)], list(net.parameters()))


def test_distributions_of_another_model_are_refused():
    net, other, x = mlp(2), mlp(2), torch.randn(20, 4)
    with pytest.raises(RuntimeError, match="do not depend"):
        FisherProduct([Normal(other(x), 1.0)], list(net.parameters()))


@pytest.mark.parametrize("value", [-1, 1.5, "many"])
def test_bad_cg_iterations(value):
    with pytest.raises(ValueError, match="cg_iterations must be 0 or more"):
        KFAC(mlp(), step_rule=StepRule(cg_iterations=value))


def test_flatten_and_split_undo_each_other():
    tensors = [torch.randn(2, 3), torch.randn(()), torch.randn(4)]
    for x, y in zip(tensors, split_like(flatten(tensors), tensors), strict=True):
        torch.testing.assert_close(x, y)
