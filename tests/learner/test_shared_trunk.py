"""A first-order critic on a shared trunk: it learns by itself, and neither disturbs the other."""

import torch

from acktr.kfac.exact import detached, mean_kl
from acktr.learner.critic import update_critic
from tests.helpers.models import POLICIES, make
from tests.helpers.small_envs import small_env


def model_and_batch(**kwargs):
    observation, policy_kwargs = POLICIES["CnnPolicy"]
    model = make(
        small_env("Discrete", observation), "CnnPolicy", policy_kwargs=policy_kwargs,
        critic_norm="euclidean", **kwargs,
    )  # fmt: skip
    model.learn(16)
    return model, model.rollout_buffer.batch()


def outputs(model, batch):
    """The policy and the values of a batch."""
    with torch.no_grad():
        evaluated = model._model(batch)
    return [detached(d) for d in evaluated.distributions[:-1]], evaluated.values.clone()


def test_the_critic_learns_through_the_trunk_and_the_policy_stays():
    model, batch = model_and_batch(n_critic_updates=40, critic_batch_size=8, critic_learning_rate=1e-2)
    trunk = next(iter(model.policy.features_extractor.parameters()))
    before, policy, values = trunk.detach().clone(), *outputs(model, batch)
    update_critic(model, batch)
    held, fitted = outputs(model, batch)
    assert not torch.equal(trunk, before)
    error, error_before = ((batch.returns - v).square().mean() for v in (fitted, values))
    assert error < 0.5 * error_before
    change = (fitted - values).square().mean() / 2
    assert mean_kl(policy, held) < 0.02 * change


def test_the_actors_step_moves_the_policy_and_hardly_the_values():
    model, batch = model_and_batch(
        critic_learning_rate=1e-12, critic_std=0.01, target_kl=1e-2, learning_rate=1e3,
        cg_iterations=10,
    )  # fmt: skip
    policy, values = outputs(model, batch)
    model.train()
    moved, still = outputs(model, batch)
    assert mean_kl(policy, moved) > 1e-4
    # The joint KL counts the change of values in units of sigma = 0.01.
    assert (still - values).square().mean().sqrt() < 0.01
