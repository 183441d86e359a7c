"""Sides of a policy that are frozen for a while, and thawed."""

import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from tests.helpers.models import learn, names
from tests.helpers.small_envs import IMAGE, VECTOR, small_env


def freeze(model, params, frozen=True):
    for p in params:
        p.requires_grad_(not frozen)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("kwargs", [{}, {"critic": AdamCritic()}, {"natural": Natural(cg_iterations=2)}])
@pytest.mark.parametrize("side", ["actor", "critic", "both"])
def test_a_frozen_side_is_skipped(side, kwargs, policy):
    observation = IMAGE if policy == "CnnPolicy" else VECTOR
    model = ACKTR(policy, small_env(observation=observation), n_steps=8, seed=0, **kwargs)
    model.learn(16)
    sides = {"actor": model.outputs.actor, "critic": model.outputs.critic}
    sides["both"] = list(model.policy.parameters())
    freeze(model, sides[side])
    before = [p.clone() for p in sides[side]]
    others = [p for p in model.policy.parameters() if p.requires_grad]
    moving = [p.detach().clone() for p in others]
    model.learn(48)
    assert all(map(torch.equal, sides[side], before))
    assert not others or not any(map(torch.equal, others, moving))
    freeze(model, sides[side], frozen=False)
    model.learn(32)
    assert not any(map(torch.equal, sides[side], before))


@pytest.mark.parametrize("critic", [NaturalCritic(), NaturalCritic(std="adaptive"), AdamCritic()])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_a_value_head_that_is_frozen_from_the_start_has_a_unit(policy, critic):
    """Layers below learn: values have the scale of the returns, though no weight of the head moves."""
    model = ACKTR(policy, small_env(observation=VECTOR), n_steps=8, seed=0, critic=critic)
    head = list(model.policy.value_net.parameters())
    freeze(model, head)
    before = [p.clone() for p in head]
    model.learn(8)
    unit = model.policy.value_net.std.item()
    assert unit > 0
    model.learn(32)
    assert all(map(torch.equal, head, before))
    assert model.policy.value_net.std.item() == unit


def test_what_is_frozen_before_the_model_is_built_can_be_thawed():
    class Begun(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.mlp_extractor.policy_net.requires_grad_(False)
            self.action_net.requires_grad_(False)

    model, still = learn(Begun)
    assert still == names(model, model.outputs.actor)
    freeze(model, model.outputs.actor, frozen=False)
    before = [p.clone() for p in model.outputs.actor]
    model.learn(32)
    assert not any(map(torch.equal, model.outputs.actor, before))
