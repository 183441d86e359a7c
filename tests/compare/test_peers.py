"""The peers have the Zoo's settings, and are built as it builds them."""

import inspect

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import (
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)
from torch import nn

from acktr.compare import peers
from acktr.compare.peers import PEERS, build_env, build_model, peer_settings
from acktr.errors import ConfigurationError


@pytest.mark.parametrize(
    ("algo", "env_id", "entry", "some"),
    [
        ("ppo", "HalfCheetah-v5", "HalfCheetah-v4", {"learning_rate": 2.0633e-05, "n_epochs": 20}),
        ("ppo", "Reacher-v5", "Reacher-v2", {"gamma": 0.9, "gae_lambda": 1.0}),
        ("ppo", "Ant-v5", "Ant-v4", {"normalize": True}),
        ("ppo", "CartPole-v1", "CartPole-v1", {"learning_rate": "lin_0.001", "n_envs": 8}),
        ("ppo", "ALE/Pong-v5", "atari", {"clip_range": "lin_0.1"}),
        ("trpo", "HalfCheetah-v5", "HalfCheetah-v4", {"target_kl": 0.04, "n_envs": 2}),
        ("trpo", "Swimmer-v5", "Swimmer-v4", {"gamma": 0.9999, "cg_max_steps": 25}),
        ("trpo", "Reacher-v5", "Ant-v4", {"n_critic_updates": 20, "normalize": True}),
        ("trpo", "PongNoFrameskip-v4", "default", {}),
        ("a2c", "InvertedDoublePendulum-v5", "Ant-v4", {"normalize": True}),
        ("a2c", "tests.helpers.toy_envs:Toy-v0", "default", {}),
    ],
)
def test_settings(algo, env_id, entry, some):
    settings = peer_settings(algo, env_id, 1000)
    assert settings["zoo_entry"] == entry
    assert settings["n_timesteps"] == 1000
    assert some.items() <= settings.items()


def test_every_entry_has_arguments_that_the_algorithm_takes():
    pytest.importorskip("sb3_contrib")
    for algo in PEERS:
        known = {*inspect.signature(peers._class(algo).__init__).parameters, *peers._NOT_ARGUMENTS}
        for entry, settings in peers._data()[algo].items():
            assert set(settings) <= known, (algo, entry)


def test_what_overrides_replaces():
    settings = peer_settings("a2c", "HalfCheetah-v5", 10, {"n_steps": 20})
    assert settings["n_steps"] == 20


def test_settings_of_another_entry():
    changes = {"zoo_entry": "default", "normalize": True}
    assert peer_settings("ppo", "Hopper-v5", 10, changes) == {
        "zoo_entry": "default", "policy": "MlpPolicy", "normalize": True, "n_timesteps": 10,
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"no settings 'Hoper-v4' for ppo: zoo_entry is one of"):
        peer_settings("ppo", "Hopper-v5", 10, {"zoo_entry": "Hoper-v4"})


def test_a_model_has_what_the_settings_say():
    settings = peer_settings("ppo", "CartPole-v1", 100, {"policy_kwargs": {"activation_fn": "ReLU"}})
    model = build_model("ppo", "CartPole-v1", settings, seed=0)
    assert (model.n_envs, model.n_steps, model.batch_size, model.n_epochs) == (8, 32, 256, 20)
    assert [model.lr_schedule(x) for x in (1.0, 0.5, 0.0)] == [0.001, 0.0005, 0.0]
    assert model.clip_range(0.5) == 0.1
    assert isinstance(model.policy.mlp_extractor.policy_net[1], nn.ReLU)
    model.env.close()


def test_normalisation_uses_the_discount_and_spares_evaluation():
    settings = {"normalize": True, "gamma": 0.9}
    env = build_env("CartPole-v1", settings, 2, 0)
    assert isinstance(env, VecNormalize)
    assert (env.gamma, env.norm_reward, env.training) == (0.9, True, True)
    env.close()
    env = build_env("CartPole-v1", settings, 2, 0, training=False)
    assert (env.norm_obs, env.norm_reward, env.training) == (True, False, False)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "norm_obs", "keys"),
    [
        ("tests.helpers.toy_envs:Toy-v0", True, None),
        ("tests.helpers.toy_envs:ToyDict-v0", True, ["a"]),
        ("tests.helpers.toy_envs:ToyImage-v0", False, None),
        ("tests.helpers.toy_envs:ToyBytes-v0", False, None),  # which SB3's rollout keeps as bytes
        ("FrozenLake-v1", False, None),
    ],
)
def test_what_the_zoo_does_not_know_is_normalised(env_id, norm_obs, keys):
    env = unwrap_vec_normalize(build_env(env_id, peer_settings("ppo", env_id, 100), 1, 0))
    assert (env.norm_obs, env.norm_obs_keys, env.norm_reward) == (norm_obs, keys, True)
    env.close()


def test_an_evaluation_ends_where_episodes_do_not():
    env = build_env("tests.helpers.toy_envs:Endless-v0", {}, 1, 0, training=False)
    assert env.get_attr("spec")[0].max_episode_steps == 27_000
    env.close()


def test_atari_is_wrapped_and_stacked():
    pytest.importorskip("ale_py")
    settings = peer_settings("a2c", "PongNoFrameskip-v4", 100, {"n_envs": 1})
    model = build_model("a2c", "PongNoFrameskip-v4", settings, seed=0)
    assert isinstance(model.env, VecTransposeImage)
    assert isinstance(model.env.venv, VecFrameStack)
    assert model.env.observation_space.shape == (4, 84, 84)
    assert isinstance(model.policy.optimizer, RMSpropTFLike)
    model.env.close()


def test_channels_last_is_only_another_layout():
    """A peer learns the same with it, but for rounding, and keeps it."""
    pytest.importorskip("ale_py")
    parameters = []
    for channels_last in (False, True):
        overrides = {"n_envs": 1, "n_steps": 8, "batch_size": 4, "channels_last": channels_last}
        settings = peer_settings("ppo", "PongNoFrameskip-v4", 100, overrides)
        model = build_model("ppo", "PongNoFrameskip-v4", settings, seed=0)
        model.learn(16)
        kernel = model.policy.features_extractor.cnn[0].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) == channels_last
        parameters.append(dict(model.policy.named_parameters()))
        model.env.close()
    torch.testing.assert_close(parameters[1], parameters[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("env_id", "policy"),
    [
        ("tests.helpers.toy_envs:ToyDict-v0", "MultiInputPolicy"),
        ("tests.helpers.toy_envs:Toy-v0", "MlpPolicy"),
    ],
)
def test_the_policy_fits_the_observations(env_id, policy):
    settings = peer_settings("a2c", env_id, 100)
    model = build_model("a2c", env_id, settings, seed=0)
    assert isinstance(model.policy, model.policy_aliases[policy])
    model.env.close()


def test_refusals_are_one_sentence(monkeypatch):
    with pytest.raises(ConfigurationError, match="HalfCheetah-v5"):
        peer_settings("a2c", "HalfChetah-v5", 100)
    settings = peer_settings("a2c", "CartPole-v1", 100, {"n_step": 3})
    with pytest.raises(ConfigurationError, match=r"a2c cannot be built for CartPole-v1: .*n_step"):
        build_model("a2c", "CartPole-v1", settings, seed=0)
    monkeypatch.setattr(peers, "is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=r'pip install "acktr\[compare\]"'):
        peers.check_installed("trpo")
