"""Rollouts of policies that remember: states, values and probabilities are those of single steps."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from acktr import ACKTR, NaturalCritic
from acktr.networks.recurrent import Memory, Sequences
from tests.helpers.small_envs import IMAGE, MIXED, VECTOR, small_env

SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}
APART, SHARED = {}, {"shared_lstm": True, "enable_critic_lstm": False}
FORWARD = {"enable_critic_lstm": False}
POLICIES = {
    "lstm": ("MlpLstmPolicy", VECTOR, APART),
    "gru": ("MlpGruPolicy", VECTOR, APART),
    "two layers": ("MlpLstmPolicy", VECTOR, {"n_lstm_layers": 2}),
    "shared": ("MlpLstmPolicy", VECTOR, SHARED),
    "critic without": ("MlpGruPolicy", VECTOR, FORWARD),
    "pixels": ("CnnLstmPolicy", IMAGE, {"features_extractor_kwargs": {"features_dim": 8}}),
    "dict": ("MultiInputGruPolicy", MIXED, {"features_extractor_kwargs": {"cnn_output_dim": 8}}),
}
N_STEPS, N_ENVS = 12, 3


def make(name, action="Discrete", **kwargs):
    policy, observation, own = POLICIES[name]
    env = small_env(action, observation, n_envs=N_ENVS, ends="both", seed=5)
    kwargs = {"policy_kwargs": {**SMALL, **own}, "n_steps": N_STEPS, "seed": 3, "gamma": 0.9, **kwargs}
    kwargs.setdefault("critic", NaturalCritic(normalize_targets=False))  # whose first values are not 0
    return ACKTR(policy, env, device="cpu", **kwargs)


class Watch(BaseCallback):
    """Keeps what SB3's loop knows at each step; reads some of it."""

    def __init__(self, reads=True, stop_at=None):
        super().__init__()
        self.steps, self.reads, self.stop_at = [], reads, stop_at

    def _on_rollout_start(self):
        self.first = self.model._last_obs

    def _on_step(self):
        names = self.locals
        kept = {name: names[name] for name in ("new_obs", "dones", "infos", "actions", "rewards")}
        if self.reads:
            kept |= {name: names[name].clone().flatten() for name in ("values", "log_probs")}
            assert self.model.rollout_buffer.values.shape == (N_STEPS, N_ENVS)
            assert self.model.rollout_buffer.log_probs.shape == (N_STEPS, N_ENVS)
        self.steps.append({**kept, "rewards": kept["rewards"].copy()})
        return len(self.steps) != self.stop_at


def collect(model, watch=None, rollouts=1):
    _, callback = model._setup_learn(10_000, watch)
    for _ in range(rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    return model.rollout_buffer


def by_hand(model, steps, first):
    """Values and log-probabilities of a rollout, one environment and one step at a time."""
    policy, adapter = model.policy, model.adapter
    values, log_probs = np.zeros((2, N_STEPS, N_ENVS))
    bootstraps = np.zeros((N_STEPS, N_ENVS))
    last = np.zeros(N_ENVS)

    def one(obs, env):
        return policy.obs_to_tensor(
            {k: v[env] for k, v in obs.items()} if isinstance(obs, dict) else obs[env]
        )[0]

    def value(obs, memory):
        told = Sequences(obs, torch.zeros(1, 1, dtype=torch.bool), memory)
        return policy.predict_values(told).item()

    for env in range(N_ENVS):
        obs, memory = adapter.observations(first), policy.empty_memory(1)
        for t, step in enumerate(steps):
            told = Sequences(one(obs, env), torch.zeros(1, 1, dtype=torch.bool), memory)
            action = torch.as_tensor(np.atleast_1d(step["actions"][env]))
            action = action.unsqueeze(0) if action.is_floating_point() else action
            values[t, env] = policy.predict_values(told).item()
            log_probs[t, env] = policy.get_distribution(told).log_prob(action).item()
            actor, critic = policy.latent_actor(told)[1], policy.values_and_memory(told)[1]
            own = tuple(s[0] for s in critic) if memory.critic else ()
            memory = Memory(tuple(s[0] for s in actor), own)
            if step["dones"][env]:
                if step["infos"][env]["TimeLimit.truncated"]:
                    end = step["infos"][env]["terminal_observation"]
                    end = adapter.observations(end)
                    bootstraps[t, env] = value(policy.obs_to_tensor(end)[0], memory)
                memory = policy.empty_memory(1)
            obs = adapter.observations(step["new_obs"])
        last[env] = value(one(obs, env), memory)
    return values, log_probs, bootstraps, last


@pytest.mark.parametrize("name", POLICIES)
def test_a_rollout_is_that_of_one_step_at_a_time(name):
    model, watch = make(name), Watch()
    storage = collect(model, watch)
    with torch.no_grad():
        values, log_probs, bootstraps, last = by_hand(model, watch.steps, watch.first)
    assert bootstraps.any()
    np.testing.assert_allclose(storage.values, values, atol=1e-5)
    np.testing.assert_allclose(storage.log_probs, log_probs, atol=1e-6)
    for t, step in enumerate(watch.steps):
        np.testing.assert_allclose(step["values"], values[t], atol=1e-5)
        np.testing.assert_allclose(step["log_probs"], log_probs[t], atol=1e-6)
    rewards = np.array([step["rewards"] for step in watch.steps]) + 0.9 * bootstraps
    np.testing.assert_allclose(storage.rewards, rewards, atol=1e-5)
    following = np.concatenate([values[1:], last[None]])
    alive = 1.0 - np.array([step["dones"] for step in watch.steps])
    expected, after = np.zeros_like(values), 0.0
    for t in reversed(range(N_STEPS)):
        delta = rewards[t] + 0.9 * following[t] * alive[t] - values[t]
        expected[t] = after = delta + 0.9 * storage.gae_lambda * alive[t] * after
    np.testing.assert_allclose(storage.advantages, expected, atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("action", ["Box", "MultiDiscrete", "MultiBinary"])
def test_training_sees_the_distribution_that_acted(name, action):
    model, watch = make(name, action), Watch()
    storage = collect(model, watch, rollouts=2)
    batch = storage.batch()
    assert batch.observations.starts.shape == (N_STEPS, N_ENVS)
    assert len(batch.returns) == N_STEPS * N_ENVS
    with torch.no_grad():
        again = model.outputs.evaluate(*batch.inputs).log_prob.view(N_STEPS, N_ENVS)
        values = model.outputs.values(batch.observations).view(N_STEPS, N_ENVS)
    acted = np.array([step["log_probs"].numpy() for step in watch.steps[N_STEPS:]])
    np.testing.assert_allclose(again.numpy(), acted, atol=1e-6)
    np.testing.assert_allclose(values.numpy(), storage.values, atol=1e-6)


def test_memory_goes_on_from_rollout_to_rollout():
    """Two short rollouts of a policy that does not learn are one long one."""
    long, whole = make("lstm", n_steps=2 * N_STEPS), Watch(reads=False)
    _, callback = long._setup_learn(10_000, whole)
    long.collect_rollouts(long.env, callback, long.rollout_buffer, 2 * N_STEPS)
    parts = Watch(reads=False)
    storage = collect(make("lstm"), parts, rollouts=2)
    for a, b in zip(whole.steps, parts.steps, strict=True):
        assert np.array_equal(a["actions"], b["actions"])
    np.testing.assert_allclose(storage.values, long.rollout_buffer.values[N_STEPS:], atol=1e-6)


def test_who_reads_nothing_gets_the_same_rollout():
    first, second = collect(make("gru"), Watch()), collect(make("gru"), Watch(reads=False))
    assert np.array_equal(first.actions, second.actions)
    np.testing.assert_allclose(first.values, second.values, atol=1e-6)


def test_a_rollout_that_is_stopped_is_gone_on_with():
    """Where a callback stops, the memory is that of the last step."""
    stopped = make("lstm")
    collect(stopped, Watch(stop_at=5))
    states = stopped._last_lstm_states
    policy, storage = stopped.policy, stopped.rollout_buffer
    with torch.no_grad():
        actor = policy.latent_actor(storage.seen(slice(0, 5)))[1]
        critic = policy.values_and_memory(storage.seen(slice(0, 5)))[1]
    for kept, found in zip((*states[0], *states[1]), (*actor, *critic), strict=True):
        torch.testing.assert_close(kept, found[-1], rtol=0, atol=1e-6)


def test_normalised_observations_and_rewards():
    env = VecNormalize(small_env("Box", n_envs=N_ENVS, ends="both", seed=5))
    model = ACKTR("MlpLstmPolicy", env, n_steps=N_STEPS, seed=0, policy_kwargs=SMALL, device="cpu")
    model.learn(4 * N_STEPS * N_ENVS)
    assert np.isfinite(model.rollout_buffer.values).all()
