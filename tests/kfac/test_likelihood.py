"""Output cotangents: their second moment is the Fisher of the output distribution."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from acktr.kfac import KFAC, Curvature

from .heads import HEADS, Head


def head_only(head: Head) -> nn.Linear:
    """A layer whose pre-activations are the distribution's parameters: S is E[v v'] itself."""
    return nn.Linear(1, head.size, bias=False)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_curvature_propagation_is_exact_on_average(head, observe):
    layer, x = head_only(head), torch.randn(4, 1)
    kfac = KFAC(layer, curvature=Curvature(stat_decay=1.0))

    observe(kfac, lambda: [head.distribution(layer(x))])

    _, s = kfac.factors()[""]
    expected = torch.stack([head.hessian(out) for out in layer(x).detach()]).mean(0)
    torch.testing.assert_close(s, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fisher", ["curvature-propagation", "monte-carlo"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_both_estimators_are_unbiased(head, fisher):
    """The error of 200,000 draws is below 1 % (one deviation, worst head: the log deviation)."""
    layer, x = head_only(head), torch.ones(1, 1).expand(200_000, 1)
    kfac = KFAC(layer, curvature=Curvature(fisher=fisher))
    with kfac.capture():
        out = layer(x)
    kfac.update_curvature(head.distribution(out))

    _, s = kfac.factors()[""]
    expected = head.hessian(out[0].detach())
    # The scale of an output with few draws differs from the others': compare whitened.
    scale = expected.diagonal().rsqrt()
    error = scale[:, None] * (s - expected) * scale
    assert error.abs().max() < 0.06


@pytest.mark.parametrize("fisher", ["curvature-propagation", "monte-carlo"])
def test_draws_follow_the_seed_and_change_between_updates(fisher):
    def updated(n_updates):
        torch.manual_seed(1)
        layer = nn.Linear(2, 3)
        kfac = KFAC(layer, curvature=Curvature(fisher=fisher, stat_decay=1.0))
        x = torch.randn(5, 2)
        for _ in range(n_updates):
            with kfac.capture():
                out = layer(x)
            kfac.update_curvature(Categorical(logits=out))
        return kfac.factors()[""][1]

    assert torch.equal(updated(1), updated(1))
    assert not torch.allclose(updated(1), updated(2))


@pytest.mark.parametrize("fisher", ["curvature-propagation", "monte-carlo"])
@pytest.mark.parametrize(
    "distribution",
    [
        lambda out: Categorical(logits=out * 1e4),
        lambda out: Categorical(logits=out - 1e8 * torch.tensor([0.0, 1.0, 1.0])),
        lambda out: Categorical(logits=out.masked_fill(torch.tensor([0, 1, 0]).bool(), -torch.inf)),
        lambda out: Bernoulli(logits=out * 1e4),
        lambda out: Normal(out, torch.full_like(out, 1e-6)),
    ],
    ids=["saturated", "masked-large", "masked-inf", "bernoulli-saturated", "tiny-scale"],
)
def test_extreme_outputs_stay_finite(distribution, fisher):
    layer = nn.Linear(2, 3)
    kfac = KFAC(layer, curvature=Curvature(fisher=fisher))
    with kfac.capture():
        out = layer(torch.randn(50, 2))
    kfac.update_curvature(distribution(out))

    assert all(factor.isfinite().all() for factor in kfac.factors()[""])


def test_a_masked_action_has_no_curvature(observe):
    layer, x = nn.Linear(1, 3, bias=False), torch.randn(4, 1)
    kfac = KFAC(layer, curvature=Curvature(stat_decay=1.0))
    mask = torch.tensor([False, True, False])

    observe(kfac, lambda: [Categorical(logits=layer(x).masked_fill(mask, -torch.inf))])

    _, s = kfac.factors()[""]
    p = layer(x).detach()[:, [0, 2]].softmax(-1).prod(-1).mean()
    expected = p * torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])
    torch.testing.assert_close(s, expected, rtol=1e-12, atol=1e-12)
