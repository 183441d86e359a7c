"""A first-order critic on a shared trunk: it learns by itself, and neither disturbs the other."""

import torch

from acktr import AdamCritic, Natural
from acktr.kfac.likelihood import detached, mean_kl
from tests.helpers.models import POLICIES, make
from tests.helpers.small_envs import small_env


def model_and_batch(**kwargs):
    observation, policy_kwargs = POLICIES["CnnPolicy"]
    model = make(small_env("Discrete", observation), "CnnPolicy", policy_kwargs=policy_kwargs, **kwargs)
    model.learn(16)
    return model, model.rollout_buffer.batch()


def outputs(model, batch):
    """The policy and the values of a batch."""
    with torch.no_grad():
        evaluated = model.parts.actor_update.evaluate(batch)
    return [detached(d) for d in evaluated.distributions[:-1]], evaluated.values.clone()


def test_the_critic_learns_through_the_trunk_and_the_policy_stays():
    model, batch = model_and_batch(critic=AdamCritic(n_updates=40, batch_size=8, learning_rate=1e-2))
    trunk = next(iter(model.policy.features_extractor.parameters()))
    before, policy, values = trunk.detach().clone(), *outputs(model, batch)
    model.parts.critic_update.fit(batch, 1e-2)
    held, fitted = outputs(model, batch)
    assert not torch.equal(trunk, before)
    error, error_before = ((batch.returns - v).square().mean() for v in (fitted, values))
    assert error < 0.5 * error_before
    change = (fitted - values).square().mean() / 2
    assert mean_kl(policy, held) < 0.02 * change


def test_the_actors_step_moves_the_policy_and_hardly_the_values():
    model, batch = model_and_batch(
        critic=AdamCritic(learning_rate=1e-12, std=0.01),
        target_kl=1e-2,
        learning_rate=1e3,
        natural=Natural(cg_iterations=10),
    )
    policy, values = outputs(model, batch)
    model.train()
    moved, still = outputs(model, batch)
    assert mean_kl(policy, moved) > 1e-4
    # The joint KL counts the change of values in units of sigma = 0.01.
    assert (still - values).square().mean().sqrt() < 0.01
