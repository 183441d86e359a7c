"""The step scale: eta = min(lr, sqrt(2 target_kl / step' F step)), per group, on the real step."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.optim.lr_scheduler import LambdaLR

from acktr.kfac import KFAC
from tests.helpers.options import in_groups

from .test_inverse import FORMULAS, matrix


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def flat(net: nn.Module, values: dict[nn.Parameter, Tensor]) -> dict[str, Tensor]:
    layers = {name: m for name, m in net.named_modules() if hasattr(m, "weight")}
    return {name: matrix(layer, values).flatten() for name, layer in layers.items()}


def learn(kfac: KFAC, net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One update; returns theta before minus theta after, by layer."""
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, 0.5))
    kfac.zero_grad()
    (out - 3).square().mean().backward()
    before = {p: p.detach().clone() for p in net.parameters()}
    kfac.step()
    return flat(net, {p: before[p] - p.detach() for p in net.parameters()})


@pytest.mark.parametrize("inverse", FORMULAS)
@pytest.mark.parametrize("lr", [10.0, 1e-3], ids=["kl-binds", "lr-binds"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0, 0), (0.9, 0), (0, 0.3), (0.9, 0.3)])
def test_bound_on_the_step_really_taken(momentum, weight_decay, lr, inverse):
    """Four updates, each rebuilt from the dense blocks: direction, scale and predicted KL."""
    net, target_kl, damping = mlp(), 1e-3, 0.02
    kfac = KFAC(
        net,
        lr=lr,
        damping=damping,
        target_kl=target_kl,
        momentum=momentum,
        weight_decay=weight_decay,
        **in_groups(stat_decay=0.9, inverse=inverse),
    )
    velocity = dict.fromkeys(["0", "2"], 0.0)
    for _ in range(4):
        theta = {k: v.clone() for k, v in flat(net, {p: p.data for p in net.parameters()}).items()}
        taken = learn(kfac, net, torch.randn(20, 3))
        grad = flat(net, {p: p.grad for p in net.parameters()})
        step, quadratic = {}, torch.zeros(())
        for name, (a, s) in kfac.factors().items():
            natural = torch.linalg.solve(FORMULAS[inverse](a, s, damping), grad[name])
            velocity[name] = momentum * velocity[name] + natural
            step[name] = velocity[name] + weight_decay * theta[name]
            quadratic += step[name] @ torch.kron(s, a) @ step[name]
        eta = (2 * target_kl / quadratic).sqrt().clamp(max=lr)

        info = kfac.last_step[0]
        torch.testing.assert_close(info.step_scale, eta, rtol=1e-9, atol=0)
        torch.testing.assert_close(info.predicted_kl, eta**2 * quadratic / 2, rtol=1e-9, atol=0)
        for name in taken:
            torch.testing.assert_close(taken[name], eta * step[name], rtol=1e-9, atol=1e-12)
        assert (eta < lr) == (lr > 1), "the case must exercise the bound that it names"


def test_each_group_has_its_own_bound():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    options = [{"target_kl": 1e-3}, {"target_kl": 1e-5}, {"target_kl": None, "lr": 0.01}]
    groups = [{"params": list(m.parameters()), **o} for m, o in zip(net, options, strict=True)]
    kfac = KFAC(net, lr=10.0, param_groups=groups)
    for _ in range(3):
        taken = learn(kfac, net, torch.randn(20, 3))
        factors = kfac.factors()
        kl = [taken[n] @ torch.kron(*factors[n][::-1]) @ taken[n] / 2 for n in "012"]
        expected = torch.tensor([1e-3, 1e-5, kl[2]])
        torch.testing.assert_close(torch.stack(kl), expected, rtol=1e-9, atol=0)
        predicted = torch.stack([info.predicted_kl for info in kfac.last_step])
        torch.testing.assert_close(predicted, expected, rtol=1e-9, atol=0)
        assert kfac.last_step[2].step_scale == 0.01


def test_a_group_bounds_the_sum_over_its_layers():
    net = mlp()
    kfac = KFAC(net, lr=10.0, target_kl=1e-3)
    taken = learn(kfac, net, torch.randn(20, 3))
    kl = sum(taken[n] @ block @ taken[n] / 2 for n, block in kfac.fisher_blocks().items())
    torch.testing.assert_close(kl, torch.tensor(1e-3), rtol=1e-9, atol=0)


def test_diagonal_blocks_count_towards_the_bound():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Linear(3, 2)
            self.log_std = nn.Parameter(torch.zeros(2))

    net = Policy()
    kfac = KFAC(net, lr=10.0, target_kl=1e-3)
    with kfac.capture():
        dist = Normal(net.mean(torch.randn(20, 3)), net.log_std.exp())
    kfac.update_curvature(dist)
    dist.log_prob(torch.ones(20, 2)).mean().backward()
    before = {p: p.detach().clone() for p in net.parameters()}
    kfac.step()
    moved = {p: before[p] - p.detach() for p in net.parameters()}

    a, s = kfac.factors()["mean"]
    weights = matrix(net.mean, moved).flatten()
    kl = weights @ torch.kron(s, a) @ weights / 2 + moved[net.log_std].square().sum()
    torch.testing.assert_close(kl, torch.tensor(1e-3), rtol=1e-9, atol=0)


def test_parameters_outside_all_groups_neither_move_nor_count():
    net = mlp()
    kfac = KFAC(net, lr=10.0, target_kl=1e-3, param_groups=[{"params": list(net[2].parameters())}])
    taken = learn(kfac, net, torch.randn(20, 3))
    assert not taken["0"].any()
    a, s = kfac.factors()["2"]
    kl = taken["2"] @ torch.kron(s, a) @ taken["2"] / 2
    torch.testing.assert_close(kl, torch.tensor(1e-3), rtol=1e-9, atol=0)


def test_target_kl_none_takes_the_learning_rate():
    net = mlp()
    kfac = KFAC(net, lr=5.0, target_kl=None)
    learn(kfac, net, torch.randn(20, 3))
    assert kfac.last_step[0].step_scale == 5.0


def test_a_scheduler_and_a_hand_written_target_are_honoured():
    net = mlp()
    kfac = KFAC(net, lr=1e-4, target_kl=1.0)
    scheduler = LambdaLR(kfac, lambda k: 1 / (k + 1))
    for k in range(3):
        learn(kfac, net, torch.randn(20, 3))
        assert kfac.last_step[0].step_scale.item() == pytest.approx(1e-4 / (k + 1))
        scheduler.step()
    kfac.param_groups[0].update(lr=10.0, target_kl=1e-6)
    learn(kfac, net, torch.randn(20, 3))
    assert kfac.last_step[0].predicted_kl.item() == pytest.approx(1e-6)


@pytest.mark.parametrize("target_kl", [None, 1e-3])
def test_a_zero_gradient_does_nothing(target_kl):
    net = mlp()
    kfac = KFAC(net, target_kl=target_kl)
    with kfac.capture():
        out = net(torch.randn(5, 3))
    kfac.update_curvature(Normal(out, 1.0))
    (0 * out).sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    kfac.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert kfac.last_step[0].predicted_kl == 0


def test_disjoint_networks_have_independent_trust_regions():
    """Policy and critic in one module: neither feels the other's scale."""
    net = nn.ModuleDict({"policy": nn.Linear(3, 4), "value": nn.Linear(3, 1)})
    x = torch.randn(30, 3)

    def policy_step(value_scale):
        policy = {k: v.clone() for k, v in net.state_dict().items()}
        groups = [
            {"params": list(net["policy"].parameters()), "target_kl": 1e-3},
            {"params": list(net["value"].parameters()), "target_kl": None, "damping": 0.1},
        ]
        kfac = KFAC(net, lr=1.0, param_groups=groups)
        torch.manual_seed(1)
        with kfac.capture():
            logits, value = net["policy"](x), net["value"](x)
        kfac.update_curvature(Categorical(logits=logits), Normal(value, 1.0))
        kfac.zero_grad()
        (logits.exp().mean() + value_scale * value.square().mean()).backward()
        kfac.step()
        moved = {k: v.clone() for k, v in net.state_dict().items()}
        net.load_state_dict(policy)
        return moved

    small, large = policy_step(1.0), policy_step(1e3)
    assert torch.equal(small["policy.weight"], large["policy.weight"])
    assert not torch.equal(small["value.weight"], large["value.weight"])
