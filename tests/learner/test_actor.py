"""The natural-gradient step of the actor."""

import math

import pytest
import torch

from acktr import NaturalCritic
from acktr.kfac.likelihood import mean_kl
from acktr.learner.actor import ActorLimits
from acktr.learner.natural_step import NaturalStep
from tests.helpers.models import make
from tests.helpers.small_envs import IMAGE, VECTOR, small_env

POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE}


def rollout(policy="MlpPolicy", **options):
    # No update before tells of the scale.
    options = {"critic": NaturalCritic(normalize_targets=False), **options}
    model = make(small_env("Discrete", POLICIES[policy]), policy, **options)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model, model.rollout_buffer.batch()


@pytest.mark.parametrize("policy", POLICIES)
def test_one_step_spends_the_budget(policy):
    model, batch = rollout(policy, target_kl=0.01)
    update = model.parts.actor_update
    old = update.distributions(batch)
    steps = []
    step = model.kfac.step
    model.kfac.step = lambda: (steps.append(1), step())[1]
    _, kl = update.update(batch, ActorLimits(0.01, 1.0, math.inf, 0.0))
    assert len(steps) == 1
    with torch.no_grad():
        assert kl == pytest.approx(mean_kl(old, update.distributions(batch)).item(), rel=1e-5)
    assert 0 < kl < 0.02  # from below eta_max may rule


def test_after_a_step_the_surrogate_is_that_of_the_policy_before():
    """Its gradient is that of E[A p_new / p_old], by central differences."""
    model, batch = rollout()
    update = model.parts.actor_update
    old = update.evaluate(batch).log_prob.detach()
    NaturalStep(model.kfac)(update, batch)
    parameters = model.kfac.param_groups[0]["params"]

    def surrogate():
        new = update.evaluate(batch).log_prob
        return -(batch.advantages * (new - old).exp()).mean()

    loss = update.losses(update.evaluate(batch), batch, old)["loss"]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    known = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    length = torch.stack([g.square().sum() for _, g in known]).sum().sqrt()
    values = []
    with torch.no_grad():
        for sign in (1, -2):  # along the gradient itself, where the slope is its length
            for p, g in known:
                p += sign * 1e-2 * g / length
            values.append(surrogate())
    assert ((values[0] - values[1]) / 2e-2).item() == pytest.approx(length.item(), rel=0.02)
