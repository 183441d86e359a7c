"""Actions drawn without distribution objects, against the distributions' own."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from acktr import ACKTR
from acktr.errors import DivergenceError
from acktr.networks.policies import CnnPolicy
from acktr.rollout.actions import ActionSampler
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env


class Doubled(ActorCriticPolicy):
    """A policy with a distribution of its own making."""

    def get_distribution(self, obs):
        return super().get_distribution(2 * obs)


NETWORKS = {
    "mlp": ("MlpPolicy", VECTOR, {}),
    "linear": ("MlpPolicy", VECTOR, {"net_arch": []}),
    "relu": ("MlpPolicy", VECTOR, {"activation_fn": nn.ReLU, "net_arch": {"pi": [5, 7], "vf": [3]}}),
    "flat image": ("MlpPolicy", IMAGE, {}),
    "pixels": ("CnnPolicy", IMAGE, {}),
    "dict": ("MultiInputPolicy", MIXED, {}),
    "own": (Doubled, VECTOR, {}),
}


def build(action="Box", network="mlp", n_envs=5, **kwargs):
    policy, observation, policy_kwargs = NETWORKS[network]
    env = small_env(action, observation, n_envs)
    model = ACKTR(policy, env, policy_kwargs=policy_kwargs, seed=0, **kwargs)
    model.policy.set_training_mode(False)
    obs, _ = model.policy.obs_to_tensor(env.reset())
    return model.policy, obs


def theirs(policy, obs, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        return policy.get_distribution(obs).sample()


def ours(policy, obs, seed=1):
    torch.manual_seed(seed)
    actor = ActionSampler(policy)
    return actor(obs, actor.noise(5))[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("action", ACTIONS)
def test_the_same_seed_gives_the_same_actions(action, network):
    policy, obs = build(action, network)
    for seed in range(20):
        expected = theirs(policy, obs, seed)
        after = torch.rand(1)
        actions = ours(policy, obs, seed)
        assert torch.equal(torch.rand(1), after), "the generator moved on by another amount"
        assert actions.dtype == expected.dtype
        assert torch.equal(actions, expected)


@pytest.mark.parametrize("action", ACTIONS)
def test_noise_may_be_divided_among_calls(action):
    policy, obs = build(action)
    actor = ActionSampler(policy)
    noise = actor.noise(5)
    parts = torch.cat([actor(obs[:2], noise[:2])[0], actor(obs[2:], noise[2:])[0]])
    torch.testing.assert_close(parts, actor(obs, noise)[0])


def test_a_policy_of_its_own_kind_draws_for_itself():
    policy, obs = build()
    assert ActionSampler(build(network="own")[0]).noise(5) is None
    plain = ours(policy, obs)
    original = policy.get_distribution
    policy.get_distribution = lambda obs: original(2 * obs)
    assert ActionSampler(policy).noise(5) is None
    assert not torch.equal(ours(policy, obs), plain)
    assert torch.equal(ours(policy, obs), theirs(policy, obs))


def test_a_distribution_of_another_kind_draws_for_itself():
    policy, obs = build()
    policy.action_dist = SquashedDiagGaussianDistribution(2)
    assert torch.equal(ours(policy, obs), theirs(policy, obs))
    assert ours(policy, obs).abs().max() < 1


def test_hooks_are_called():
    policy, obs = build()
    called = []
    handle = policy.mlp_extractor.policy_net[0].register_forward_hook(
        lambda *args: called.append(len(args)) or 2 * args[-1]
    )
    hooked = ours(policy, obs)
    assert called == [3]
    assert torch.equal(hooked, theirs(policy, obs))
    handle.remove()
    assert not torch.equal(hooked, ours(policy, obs))
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *args: called.append(0))
    ours(policy, obs)
    handle.remove()
    assert 0 in called


def test_a_layer_that_is_not_known_is_called_as_a_module():
    class Odd(nn.Module):
        def forward(self, x):
            return x**3

    policy, obs = build()
    policy.mlp_extractor.policy_net[1] = Odd()
    assert torch.equal(ours(policy, obs), theirs(policy, obs))


def test_parameters_are_those_of_now():
    policy, obs = build()
    actor = ActionSampler(policy)
    with torch.no_grad():
        policy.action_net.bias += 3  # in place, as optimisers do
    noise = actor.noise(5)
    assert actor(obs, noise)[0].mean() > 1
    policy.action_net.weight = nn.Parameter(torch.zeros(2, 64))  # another tensor: for a new sampler
    policy.log_std.data += 5
    assert ActionSampler(policy)(obs, noise)[0].std() > 50


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("network", ["mlp", "pixels"])
def test_an_output_that_is_not_finite_is_named(action, network):
    policy, obs = build(action, network)
    with torch.no_grad():
        policy.action_net.bias[0] = float("nan")
    with pytest.raises(
        DivergenceError, match=r"policy's output is not finite.*lower target_kl"
    ) as caught:
        ours(policy, obs)
    assert "\n" not in str(caught.value)


def test_large_outputs_are_finite():
    policy, obs = build()
    with torch.no_grad():
        policy.action_net.bias.fill_(3e38)  # their sum is infinite
    assert torch.equal(ours(policy, obs), theirs(policy, obs))


@pytest.mark.parametrize("log_std", [float("nan"), float("inf"), -200.0])
def test_a_standard_deviation_that_is_none_is_named(log_std):
    policy, obs = build()
    policy.log_std.data[1] = log_std
    with pytest.raises(DivergenceError, match="standard deviation is 0 or not finite"):
        ours(policy, obs)


@pytest.mark.parametrize("share", [True, False])
def test_values_come_along_where_the_trunk_is_shared(share):
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 0.0, share_features_extractor=share)
    policy.set_training_mode(False)
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    actor = ActionSampler(policy)
    _, values = actor(obs, actor.noise(5))
    if not share:
        assert values is None
    else:
        torch.testing.assert_close(values, policy.predict_values(obs).detach())


def test_values_of_a_critic_of_its_own_kind_are_left_to_it():
    class Own(CnnPolicy):
        def predict_values(self, obs):
            return 2 * super().predict_values(obs)

    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = Own(space, spaces.Discrete(3), lambda _: 0.0)
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    actor = ActionSampler(policy)
    assert actor(obs, actor.noise(5))[1] is None
