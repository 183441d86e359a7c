"""Networks of linear layers on which the Kronecker-factored blocks are the exact Fisher blocks."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature

from . import oracle
from .heads import CATEGORICAL, GAUSSIAN, GAUSSIAN_LOG_STD, HEADS


def assert_blocks_are_exact(kfac: KFAC, fisher: torch.Tensor, module: nn.Module) -> None:
    """Every Kronecker block against the same rows and columns of the dense Fisher."""
    factors, blocks = kfac.factors(), kfac.fisher_blocks()
    layers = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    assert set(layers) <= set(factors)
    for name in layers:
        a, s = factors[name]
        exact = oracle.layer_block(fisher, module, name)
        torch.testing.assert_close(torch.kron(s, a), exact, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(blocks[name], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_deep_linear_network_with_many_outputs(bias, observe):
    net = nn.Sequential(*[nn.Linear(i, o, bias=bias) for i, o in [(3, 4), (4, 5), (5, 2)]])
    x = torch.randn(7, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))

    observe(kfac, lambda: [Normal(net(x), 0.5)])

    assert_blocks_are_exact(kfac, oracle.dense_fisher(net, x, oracle.gaussian(0.5)), net)


def test_deep_linear_network_with_one_output_needs_no_averaging():
    """The sign squares to 1, so any single draw is exact."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 1))
    x = torch.randn(7, 3)
    kfac = KFAC(net)
    with kfac.capture():
        value = net(x)
    kfac.update_curvature(Normal(value, 0.5))

    assert_blocks_are_exact(kfac, oracle.dense_fisher(net, x, oracle.gaussian(0.5)), net)


class ActorCritic(nn.Module):
    """Policy and value on one tanh trunk."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh())
        self.policy = nn.Linear(5, n_outputs)
        self.value = nn.Linear(5, 1, bias=False)

    def forward(self, x):
        latent = self.trunk(x)
        return self.policy(latent), self.value(latent)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_shared_trunk_with_one_sample_is_the_joint_fisher(head, observe):
    """S = S_policy + S_value and a shared A: exact for one sample, tanh included."""
    net, x = ActorCritic(head.size), torch.randn(1, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))

    def forward():
        outputs, value = net(x)
        return [head.distribution(outputs), Normal(value, 2.0)]

    observe(kfac, forward)

    hessian = oracle.joint((head.size, head.hessian), (1, oracle.gaussian(2.0)))
    assert_blocks_are_exact(kfac, oracle.dense_fisher(net, x, hessian), net)


@pytest.mark.parametrize("head", [CATEGORICAL, GAUSSIAN, GAUSSIAN_LOG_STD])
def test_trunk_adds_the_curvature_of_policy_and_value(head, observe):
    net, x = ActorCritic(head.size), torch.randn(6, 3)

    def factors(use_policy, use_value):
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))

        def forward():
            outputs, value = net(x)
            policy = [head.distribution(outputs)] if use_policy else []
            return policy + ([Normal(value, 1.0)] if use_value else [])

        observe(kfac, forward)
        return kfac.factors()

    both, policy, value = factors(True, True), factors(True, False), factors(False, True)
    for name in ["trunk.0", "trunk.2"]:
        torch.testing.assert_close(both[name][0], policy[name][0], rtol=1e-12, atol=0)
        s = policy[name][1] + value[name][1]
        torch.testing.assert_close(both[name][1], s, rtol=1e-12, atol=1e-12)
    for head_only, name in [(policy, "policy"), (value, "value")]:
        for got, expected in zip(both[name], head_only[name], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
