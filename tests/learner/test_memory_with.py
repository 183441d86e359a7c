"""Memory together with masks, normalisation, Dict observations and SB3's own evaluation."""

import io
import itertools

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from acktr import ACKTR, Natural, NaturalCritic
from tests.helpers.masked_envs import Strict
from tests.helpers.small_envs import MIXED, VECTOR, small_env

T, N = 8, 3
SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}


def make(env, policy="MlpLstmPolicy", **kwargs):
    own = {**SMALL, **kwargs.pop("policy_kwargs", {})}
    return ACKTR(policy, env, n_steps=T, seed=0, device="cpu", policy_kwargs=own, **kwargs)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy"])
@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_no_forbidden_action_is_taken_and_training_sees_what_acted(action, policy):
    """The environment raises on a forbidden one."""
    model = make(VecMonitor(small_env(action, VECTOR, n_envs=N, cls=Strict)), policy)
    model.learn(10 * T * N)
    assert model.logger.name_to_value["train/forbidden"] > 0
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, T)
    batch = model.rollout_buffer.batch()
    assert batch.masks is not None
    with torch.no_grad():
        again = model.outputs.evaluate(*batch.inputs).log_prob.view(T, N)
    np.testing.assert_allclose(again, model.rollout_buffer.log_probs, atol=1e-6)
    evaluate_masked(model, model.env, n_eval_episodes=4)


def test_nothing_is_learned_of_what_is_never_allowed():
    env = small_env("Discrete", VECTOR, n_envs=N, cls=Strict, never=(2,))
    model = make(env)
    before = model.policy.action_net.weight.detach().clone()
    model.learn(6 * T * N)
    assert torch.equal(model.policy.action_net.weight[2], before[2])
    assert not torch.equal(model.policy.action_net.weight[1], before[1])


@pytest.mark.parametrize(
    ("policy", "observation"), [("MlpLstmPolicy", VECTOR), ("MultiInputLstmPolicy", MIXED)]
)
def test_evaluation_of_sb3_takes_the_state_along(policy, observation, monkeypatch):
    def build():
        keys = ["vector"] if observation is MIXED else None
        env = VecMonitor(small_env("Discrete", observation, n_envs=N, ends="both"))
        return ACKTR._wrap_env(VecNormalize(env, norm_obs_keys=keys), monitor_wrapper=False)

    env = build()
    own = {"features_extractor_kwargs": {"cnn_output_dim": 8}} if observation is MIXED else {}
    model = make(env, policy, policy_kwargs=own)
    held_out = build()
    model.learn(6 * T * N, EvalCallback(held_out, n_eval_episodes=3, eval_freq=T, verbose=0))
    given = []
    predict = model.policy.predict

    def watched(obs, state=None, episode_start=None, deterministic=False):
        actions, after = predict(obs, state, episode_start, deterministic)
        given.append((state, episode_start, after))
        return actions, after

    monkeypatch.setattr(model.policy, "predict", watched)
    returns, lengths = evaluate_policy(model, held_out, 6, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 6
    assert given[0][0] is None
    assert all(here[0] is before[2] for before, here in itertools.pairwise(given))
    assert any(starts.any() for _, starts, _ in given[1:])
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = ACKTR.load(file, env=env, device="cpu")
    obs, starts = env.reset(), np.ones(N, bool)
    action, state = model.predict(obs, None, starts, deterministic=True)
    again, other = loaded.predict(obs, None, starts, deterministic=True)
    assert np.array_equal(action, again)
    assert all(map(np.array_equal, state, other))


def test_one_environment_and_no_settings_are_enough():
    env = Monitor(small_env("Discrete", VECTOR).envs[0])
    model = ACKTR("MlpLstmPolicy", env, seed=0, device="cpu").learn(600)
    assert model.n_steps == 512
    assert model.policy.lstm_actor.hidden_size == 64
    assert (model.natural.damping, model.critic.damping) == (0.01, 0.01)
    assert evaluate_policy(model, env, 2)[0] is not None


def test_damping_that_is_given_stays():
    env = small_env("Discrete", VECTOR, n_envs=N)
    model = make(env, natural=Natural(damping=0.2), critic=NaturalCritic(damping=0.3))
    assert model.kfac.param_groups[0]["damping"] == 0.2
    assert model.critic_optimizer.param_groups[0]["damping"] == 0.3
    plain = ACKTR("MlpPolicy", env, device="cpu")
    assert (plain.natural.damping, plain.critic.damping) == (0.1, 0.1)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy", "MlpPolicy"])
@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_bfloat16(masked, policy, monkeypatch):
    """Masked, the environment raises on a forbidden action."""
    monkeypatch.setattr("acktr.networks.bfloat16.has_bfloat16", lambda device: True)
    env = small_env("Discrete", VECTOR, n_envs=N, **({"cls": Strict} if masked else {}))
    own = SMALL if policy != "MlpPolicy" else {"net_arch": [5]}
    model = ACKTR(
        policy, env, n_steps=T, seed=0, device="cpu", policy_kwargs=own,
        natural=Natural(precision="bf16"),
    ).learn(4 * T * N)  # fmt: skip
    assert model.used_precision == "bf16"
    assert all(p.isfinite().all() for p in model.policy.parameters())
