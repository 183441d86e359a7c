"""SAC and TQC as peers: the Zoo's settings, a training, and what a checkpoint of theirs holds."""

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from stable_baselines3 import SAC

from acktr.compare import peers
from acktr.compare.curve import LearningCurve
from acktr.compare.peer_checkpoint import PeerCheckpoint, restore
from acktr.compare.peers import OFF_POLICY, build_model, peer_settings
from acktr.compare.process import train
from acktr.compare.trial import Trial
from acktr.errors import ConfigurationError

SMALL = {"learning_starts": 20, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}


def needed(algo):
    if algo == "tqc":
        pytest.importorskip("sb3_contrib")


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_settings_are_the_zoos(algo):
    # Not imported, as the Zoo would change gymnasium's TimeLimit.
    spec = importlib.util.find_spec("rl_zoo3")
    if spec is None:
        pytest.skip("rl_zoo3 is not installed")
    zoo = yaml.safe_load((Path(spec.origin).parent / "hyperparams" / f"{algo}.yml").read_text())
    entries = peers._data()[algo]
    assert len(entries) == 12
    for entry, settings in entries.items():
        theirs = dict(zoo[entry])
        if "policy_kwargs" in theirs:
            theirs["policy_kwargs"] = eval(theirs["policy_kwargs"], {"dict": dict})
        assert settings == theirs, entry


@pytest.mark.parametrize(
    ("env_id", "entry"),
    [
        ("HalfCheetah-v5", "HalfCheetah-v4"),
        ("Reacher-v5", "Ant-v4"),
        ("tests.helpers.toy_envs:Toy-v0", "default"),
    ],
)
def test_nothing_is_normalised_that_the_zoo_does_not(env_id, entry):
    for algo in OFF_POLICY:
        settings = peer_settings(algo, env_id, 100)
        assert (settings["zoo_entry"], "normalize" in settings) == (entry, False)


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_train(algo, tmp_path):
    needed(algo)
    one = Trial("Pendulum-v1", algo, 0, 200, algo, SMALL, eval_episodes=1)
    outcome = train(one, tmp_path)
    assert (outcome.scores["steps"], outcome.scores["episodes"]) == (200, 1)
    assert -2000 < outcome.scores["last_100_return"] < 0
    assert outcome.scores["eval_episodes"] == 1
    assert outcome.curve.points[-1].steps == 200
    assert outcome.scores["cpu_seconds"] > 0


@pytest.mark.parametrize("algo", OFF_POLICY)
@pytest.mark.parametrize("buffer_size", [1000, 32])
def test_a_checkpoint_has_what_was_seen(algo, buffer_size, tmp_path):
    """All of it, or of a buffer that is full what is left; and the entropy's coefficient."""
    needed(algo)
    settings = peer_settings(algo, "Pendulum-v1", 200, {**SMALL, "buffer_size": buffer_size})
    models = [build_model(algo, "Pendulum-v1", settings, seed=seed) for seed in (0, 1)]
    curve = LearningCurve(200)
    checkpoint = PeerCheckpoint(tmp_path, curve)
    first, second = models
    first.learn(60, callback=[curve, checkpoint], reset_num_timesteps=False)
    checkpoint.save()
    taken_up = LearningCurve(200)
    restore(second, taken_up, tmp_path, seed=0)
    assert (second.num_timesteps, taken_up.resumed_at) == (60, [60])
    one, other = first.replay_buffer, second.replay_buffer
    assert (other.pos, other.full) == (one.pos, one.full) == (60 % buffer_size, buffer_size == 32)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    assert one.observations[: one.size()].any()
    assert torch.equal(second.log_ent_coef, first.log_ent_coef)
    assert first.log_ent_coef.item() != 0.0
    for (name, ours), theirs in zip(
        first.policy.named_parameters(), second.policy.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    second.learn(40, callback=[taken_up], reset_num_timesteps=False)
    assert second.num_timesteps == 100
    assert second.log_ent_coef.item() != first.log_ent_coef.item()
    for model in models:
        model.env.close()


def test_observations_that_are_a_mapping_are_kept(tmp_path):
    def make():
        space = spaces.Dict({"a": gym.make("Pendulum-v1").observation_space})
        env = gym.wrappers.TransformObservation(gym.make("Pendulum-v1"), lambda x: {"a": x}, space)
        return SAC("MultiInputPolicy", env, buffer_size=100, seed=0, policy_kwargs={"net_arch": [8]})

    first, second, curve = make(), make(), LearningCurve(50)
    checkpoint = PeerCheckpoint(tmp_path, curve)
    first.learn(20, callback=[curve, checkpoint])
    checkpoint.save()
    restore(second, LearningCurve(50), tmp_path, seed=0)
    seen = [model.replay_buffer.observations["a"] for model in (first, second)]
    assert seen[0].any()
    np.testing.assert_array_equal(*seen)


def test_counted_actions_are_refused():
    for algo in OFF_POLICY:
        needed(algo)
        settings = peer_settings(algo, "CartPole-v1", 100, SMALL)
        with pytest.raises(ConfigurationError, match=rf"^{algo} cannot be built for CartPole-v1: .*Box"):
            build_model(algo, "CartPole-v1", settings, seed=0)
