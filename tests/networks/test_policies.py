"""Policies: the paper's network, and which parameters belong to actor and critic."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from acktr import ACKTR
from acktr.networks.outputs import Outputs
from acktr.networks.policies import CnnPolicy, MlpPolicy, PaperCNN, PixelCNN
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env

ATARI = spaces.Box(0, 255, (4, 84, 84), "uint8")


def build(policy, observation, action="Discrete", **kwargs):
    return policy(observation, ACTIONS[action], lambda _: 0.0, **kwargs)


def names(policy, params):
    ids = {id(p) for p in params}
    return {name for name, p in policy.named_parameters() if id(p) in ids}


def test_the_papers_network():
    network = PaperCNN(ATARI)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 32]
    assert [c.kernel_size[0] for c in convolutions] == [8, 4, 3]
    assert [c.stride[0] for c in convolutions] == [4, 2, 1]
    linear = next(m for m in network.modules() if isinstance(m, nn.Linear))
    assert (linear.in_features, linear.out_features) == (1568, 512)
    assert network(torch.zeros(2, 4, 84, 84)).shape == (2, network.features_dim)


def test_the_papers_network_for_continuous_control():
    network = PixelCNN(spaces.Box(0, 255, (6, 42, 42), "uint8"))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(6, 32), (32, 32)]
    assert all((c.kernel_size, c.stride) == ((3, 3), (2, 2)) for c in convolutions)
    linear = next(m for m in network.modules() if isinstance(m, nn.Linear))
    assert (linear.in_features, linear.out_features) == (11 * 11 * 32, 256)
    assert sum(isinstance(m, nn.ELU) for m in network.modules()) == 3
    assert network(torch.zeros(2, 6, 42, 42)).shape == (2, network.features_dim)


def test_pixels_get_the_papers_network_with_linear_heads():
    policy = build(CnnPolicy, ATARI)
    assert isinstance(policy.features_extractor, PaperCNN)
    assert policy.action_net.in_features == policy.value_net.in_features == 512
    image = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    actions, values, _ = policy(image)
    assert actions.shape == (2,)
    assert values.shape == (2, 1)
    # Eight bits become [0, 1].
    scaled = policy.features_extractor(image.float() / 255)
    torch.testing.assert_close(policy.extract_features(image), scaled)


def test_the_network_for_pixels_can_be_replaced():
    policy = build(
        CnnPolicy,
        IMAGE,
        features_extractor_class=NatureCNN,
        features_extractor_kwargs={"features_dim": 16},
        net_arch={"pi": [8], "vf": [4]},
    )
    assert isinstance(policy.features_extractor, NatureCNN)
    assert (policy.action_net.in_features, policy.value_net.in_features) == (8, 4)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_mlp_policy_divides_into_actor_and_critic(action):
    policy = build(MlpPolicy, VECTOR, action)
    outputs = Outputs(policy)
    actor, critic = names(policy, outputs.actor), names(policy, outputs.critic)
    assert not actor & critic
    assert actor | critic == {name for name, _ in policy.named_parameters()}
    assert ("log_std" in actor) == (action == "Box")
    assert {"action_net.weight", "mlp_extractor.policy_net.0.weight"} <= actor
    assert {"value_net.weight", "mlp_extractor.value_net.0.weight"} <= critic


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_trunk_is_in_both(shared):
    policy = build(CnnPolicy, IMAGE, "Box", share_features_extractor=shared)
    outputs = Outputs(policy)
    actor, critic = outputs.actor, outputs.critic
    trunk = set(actor) & set(critic)
    expected = set(policy.features_extractor.parameters()) if shared else set()
    assert trunk == expected
    assert set(actor) | set(critic) == set(policy.parameters())
    assert len(actor) == len(set(actor))


def test_a_network_shared_by_the_mlp_extractor_is_a_trunk():
    class Shared(nn.Module):
        """The same layers for actor and critic."""

        def __init__(self):
            super().__init__()
            self.policy_net = self.value_net = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
            self.latent_dim_pi = self.latent_dim_vf = 5

        def forward(self, features):
            latent = self.policy_net(features)
            return latent, latent

        def forward_actor(self, features):
            return self.policy_net(features)

        forward_critic = forward_actor

    class SharedPolicy(MlpPolicy):
        def _build_mlp_extractor(self):
            self.mlp_extractor = Shared()

    policy = build(SharedPolicy, VECTOR)
    outputs = Outputs(policy)
    actor, critic = outputs.actor, outputs.critic
    trunk = names(policy, set(actor) & set(critic))
    assert trunk == {"mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"}
    model = ACKTR(SharedPolicy, small_env(), n_steps=8, seed=0).learn(32)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_the_same_keys_serve_all_policies():
    for name, observation in (("MlpPolicy", VECTOR), ("CnnPolicy", IMAGE), ("MultiInputPolicy", MIXED)):
        model = ACKTR(name, small_env(observation=observation), policy_kwargs={"net_arch": [8]})
        assert model.policy.value_net.linear.in_features == 8


@pytest.mark.parametrize("share", [True, False])
def test_images_are_scaled_as_stable_baselines_scales_them(share):
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 0.0, share_features_extractor=share)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    theirs = BasePolicy.extract_features(policy, obs, policy.pi_features_extractor)
    assert torch.equal(policy.features(obs, policy.pi_features_extractor), theirs)
    logits = policy.get_distribution(obs).distribution.logits
    assert torch.equal(logits, ActorCriticPolicy.get_distribution(policy, obs).distribution.logits)
    assert torch.equal(policy.predict_values(obs), ActorCriticPolicy.predict_values(policy, obs))
    values, log_prob, _ = policy.evaluate_actions(obs, torch.tensor([0, 1, 2]))
    assert torch.equal(values, policy.predict_values(obs))
    assert torch.equal(log_prob, logits.diagonal())


def test_observations_that_are_no_bytes_are_left_to_stable_baselines():
    space = spaces.Box(0.0, 1.0, (4, 84, 84), np.float32)
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 0.0, **kwargs)
    obs = torch.rand(2, 4, 84, 84)
    theirs = BasePolicy.extract_features(policy, obs, policy.pi_features_extractor)
    assert torch.equal(policy.features(obs, policy.pi_features_extractor), theirs)


@pytest.mark.parametrize("share", [True, False])
def test_a_saved_policy_of_images_keeps_its_networks(share, tmp_path):
    """SB3's own list of a policy's arguments leaves out whether actor and critic share one."""
    policy = build(CnnPolicy, IMAGE, share_features_extractor=share)
    policy.save(tmp_path / "policy")
    loaded = CnnPolicy.load(tmp_path / "policy")
    assert loaded.share_features_extractor == share
    image = torch.randint(0, 256, (2, *IMAGE.shape), dtype=torch.uint8)
    assert torch.equal(loaded.predict_values(image), policy.predict_values(image))
