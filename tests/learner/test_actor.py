"""Several natural-gradient steps of the actor inside one trust region."""

import pytest
import torch

from acktr import ACKTR
from acktr.actor import actor_loss, natural_step, update_actor
from acktr.errors import ConfigurationError
from acktr.kfac.exact import mean_kl
from tests.helpers.models import make
from tests.helpers.small_envs import IMAGE, VECTOR, small_env

POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE}


def rollout(policy="MlpPolicy", **options):
    options = {"normalize_value_targets": False, **options}  # no update before tells of the scale
    model = make(small_env("Discrete", POLICIES[policy]), policy, **options)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model, model.rollout_buffer.batch()


@pytest.mark.parametrize("policy", POLICIES)
def test_all_steps_together_spend_the_budget(policy):
    model, batch = rollout(policy, n_actor_updates=3, target_kl=0.01)
    old = model._distributions(batch)
    steps = []
    step = model.kfac.step
    model.kfac.step = lambda: (steps.append(1), step())[1]
    _, kl = update_actor(model, batch, 0.01)
    assert len(steps) == 3
    with torch.no_grad():
        assert kl == pytest.approx(mean_kl(old, model._distributions(batch)).item(), rel=1e-5)
    assert 0 < kl < 0.02  # from below eta_max may rule


def test_a_later_step_follows_the_surrogate_of_the_first_policy():
    """Its gradient is that of E[A p_new / p_old], by central differences."""
    model, batch = rollout()
    first = natural_step(model, batch)
    parameters = model.kfac.param_groups[0]["params"]

    def surrogate():
        new = model._model(batch).log_prob
        return -(batch.advantages * (new - first.log_prob).exp()).mean()

    loss, _ = actor_loss(model, model._model(batch), batch, first.log_prob)
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


def test_feedback_does_not_lengthen_what_the_floor_keeps_short():
    """A rollout that says a hundredth of the one before moves the policy by its share, and no more."""
    model, batch = rollout(target_kl=0.01, learning_rate=1e3, kfac_kwargs={"length_floor": 0.5})
    _, first = update_actor(model, batch, 0.01)
    assert 0.005 < first < 0.02
    scale = model.kl_scale
    _, second = update_actor(model, batch._replace(advantages=0.01 * batch.advantages), 0.01)
    assert second < 0.005 * first
    assert model.kl_scale <= scale


def test_a_number_of_updates_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match=r"n_actor_updates must be at least 1, got 0"):
        ACKTR("MlpPolicy", small_env("Discrete", VECTOR), n_actor_updates=0)
