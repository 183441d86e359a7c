"""Policies by themselves: saved and loaded as SB3's are, and parameters that go to and fro."""

import copy
import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from acktr import ACKTR, NaturalCritic
from acktr.networks.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from acktr.networks.value_head import NormalizedValue
from tests.helpers.models import POLICIES, make, parameters, same
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env


class Own(BaseFeaturesExtractor):
    def __init__(self, observation_space, width=4):
        super().__init__(observation_space, width)
        self.linear = nn.Linear(observation_space.shape[0], width)

    def forward(self, observations):
        return self.linear(observations)


def trained(policy="MlpPolicy", action="Box", steps=48, **kwargs):
    observation, policy_kwargs = POLICIES[policy]
    model = make(small_env(action, observation), policy, **{"policy_kwargs": policy_kwargs, **kwargs})
    return model.learn(steps) if steps else model


def observed(model, n=6):
    space = model.observation_space
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([x[key] for x in samples]) for key in samples[0]}
    return np.stack(samples)


def answers(policy, model):
    obs = observed(model)
    tensors = policy.obs_to_tensor(obs)[0]
    with torch.no_grad():
        return policy.predict(obs, deterministic=True)[0], policy.predict_values(tensors)


def agree(policy, model):
    found, expected = answers(policy, model), answers(model.policy, model)
    np.testing.assert_array_equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


CLASSES = {"MlpPolicy": MlpPolicy, "CnnPolicy": CnnPolicy, "MultiInputPolicy": MultiInputPolicy}


@pytest.mark.parametrize("steps", [0, 48])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_saves_and_loads_by_itself(policy, normalized, steps, tmp_path):
    model = trained(policy, steps=steps, critic=NaturalCritic(normalize_targets=normalized))
    model.policy.save(tmp_path / "policy")
    loaded = CLASSES[policy].load(tmp_path / "policy")
    agree(loaded, model)
    loaded.save(tmp_path / "again")
    agree(CLASSES[policy].load(tmp_path / "again"), model)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_class_that_stable_baselines_has_loads_it_too(action, tmp_path):
    model = trained(action=action, policy_kwargs={"features_extractor_class": Own})
    model.policy.save(tmp_path / "policy")
    agree(ActorCriticPolicy.load(tmp_path / "policy"), model)


def test_a_policy_is_built_without_an_algorithm():
    for cls, space in ((MlpPolicy, VECTOR), (CnnPolicy, IMAGE), (MultiInputPolicy, MIXED)):
        policy = cls(space, ACTIONS["Discrete"], lambda _: 0.1)
        policy.load_state_dict(copy.deepcopy(policy).state_dict())


@pytest.mark.parametrize("steps", [0, 48])
@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_parameters_of_another_algorithm_fit(algorithm, steps):
    """Values are what they were, whether or not the model knows a scale of its own."""
    options = {} if algorithm is A2C else {"batch_size": 8}
    net = dict(POLICIES["MlpPolicy"][1])  # into which A2C writes
    theirs = algorithm("MlpPolicy", small_env("Box"), n_steps=8, policy_kwargs=net, **options).learn(32)
    state = theirs.policy.state_dict()
    for load in (
        lambda model: model.policy.load_state_dict(state),
        lambda model: model.set_parameters({"policy": state}, exact_match=False),
        lambda model: model.set_parameters({**model.get_parameters(), "policy": state}),
    ):
        model = trained(steps=steps)
        load(model)
        agree(theirs.policy, model)
        moments = [getattr(model.policy.value_net, name).item() for name in ("mean", "std", "count")]
        assert moments == [0.0, 1.0, 1.0] if not steps else moments[2] == 3.0
        model.learn(32)
        assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_values_of_another_algorithm_stay_when_the_moments_move():
    theirs = PPO("MlpPolicy", small_env("Box"), n_steps=8, batch_size=8)
    model = make(small_env("Box"))
    model.policy.load_state_dict(theirs.policy.state_dict())
    head = model.policy.value_net
    head.update(30.0, 400.0)
    assert head.std > 1.0
    agree(theirs.policy, model)


@pytest.mark.parametrize("steps", [0, 48])
@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_its_parameters_fit_another_algorithm(algorithm, steps):
    options = {} if algorithm is A2C else {"batch_size": 8}
    net = dict(POLICIES["MlpPolicy"][1])  # into which A2C writes
    theirs = algorithm("MlpPolicy", small_env("Box"), n_steps=8, policy_kwargs=net, **options)
    model = trained(steps=steps)
    theirs.policy.load_state_dict(model.policy.state_dict())
    agree(theirs.policy, model)
    theirs.learn(16)


@pytest.mark.parametrize("steps", [0, 48])
def test_parameters_go_from_one_model_to_another(steps):
    model, other = trained(steps=steps), trained(steps=32)
    other.policy.load_state_dict(model.policy.state_dict())
    agree(other.policy, model)
    other.learn(32)
    other.set_parameters(model.get_parameters())  # bit for bit
    assert same(model.get_parameters()["policy"], other.get_parameters()["policy"])


def test_an_untrained_head_that_was_loaded_can_learn():
    """Its values are 0, and so are the weights that say so; they are not what it learns from."""
    model, other = trained(steps=0), trained(steps=0)
    other.policy.load_state_dict(model.policy.state_dict())
    assert other.policy.value_net.linear.weight.any()
    before = parameters(other)
    other.learn(32)
    assert all(not torch.equal(p, before[name]) for name, p in other.policy.named_parameters())


def test_a_snapshot_of_a_policy_is_put_back_in_the_units_that_the_optimiser_knows():
    model = trained()
    head = model.policy.value_net
    snapshot = copy.deepcopy(model.policy.state_dict())
    before = {name: x.clone() for name, x in head.exact_state().items()}
    model.policy.load_state_dict(snapshot)
    for name, x in head.exact_state().items():
        torch.testing.assert_close(x, before[name])


def test_what_is_saved_of_a_model_is_exact():
    model = trained()
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = ACKTR.load(buffer)
    assert isinstance(loaded.policy.value_net, NormalizedValue)
    assert same(model.get_parameters(), loaded.get_parameters())
    names = {"mean", "std", "count", "linear.weight", "linear.bias"}
    assert {f"value_net.{name}" for name in names} < model.get_parameters()["policy"].keys()
    assert not {f"value_net.{name}" for name in names} & model.policy.state_dict().keys()


@pytest.mark.parametrize("policy", POLICIES)
def test_copies_are_their_own(policy):
    model = trained(policy)
    copied = copy.deepcopy(model)
    agree(copied.policy, model)
    assert copied.policy.optimizer.module is copied.policy
    before = parameters(model)
    copied.learn(32)
    assert same(before, parameters(model))
    assert not same(before, parameters(copied))
