"""Arguments of ACKTR: each wrong one gets one clear sentence, each schedule its meaning."""

import inspect
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR
from acktr.errors import AcktrError, ConfigurationError
from acktr.learner.noise import auto_log_std
from acktr.learner.settings import as_discount, as_schedule, check_arguments
from tests.helpers.small_envs import IMAGE, VECTOR, Small, small_env

DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(ACKTR.__init__).parameters.items()
}

REFUSED = [
    ("n_steps", 0, "at least 1"),
    ("n_steps", -4, "at least 1"),
    ("n_critic_updates", 0, "at least 1"),
    ("critic_batch_size", 0, "at least 1"),
    ("cg_iterations", -1, "0 or more"),
    ("cg_iterations", 2.5, "0 or more"),
    ("sub_sampling_factor", 0, "at least 1"),
    ("gamma", 1.5, r"\[0, 1\]"),
    ("gamma", -0.1, r"\[0, 1\]"),
    ("gamma", "high", "rise_A_B"),
    ("gamma", "rise_0.99", "rise_A_B"),
    ("gamma", "lin_0.9_0.99", "rise_A_B"),
    ("gamma", "rise_0.99_0.9", "A <= B < 1"),
    ("gamma", "rise_0.9_1", "A <= B < 1"),
    ("gamma", "rise_-1_0.9", "0 <= A"),
    ("gamma", "auto_0.99", "auto_A_B"),
    ("gamma", "auto", "auto_A_B"),
    ("gamma", "rise_nan_0.9", "0 <= A"),
    ("gae_lambda", 2.0, r"\[0, 1\]"),
    ("gae_lambda", -0.1, r"\[0, 1\]"),
    ("gae_lambda", math.nan, r"\[0, 1\]"),
    ("gae_lambda", None, r"\[0, 1\]"),
    ("gae_lambda", "high", "auto_A_B"),
    ("gae_lambda", "auto_0.9", "auto_A_B"),
    ("gae_lambda", "auto_0.9_1.5", "two of them"),
    ("gae_lambda", "lin_0.9_0.8", "auto_A_B"),
    ("damping", -0.01, "0 or more"),
    ("critic_damping", -1.0, "0 or more"),
    ("vf_coef", -0.5, "0 or more"),
    ("target_kl", 0.0, "positive"),
    ("target_kl", -0.01, "positive"),
    ("target_kl", math.nan, "positive"),
    ("target_kl", "lin_", "lin_A_B"),
    ("target_kl", "lin_0.1_", "lin_A_B"),
    ("target_kl", "lin_0.1_-0.1", "lin_A_B"),
    ("target_kl", "lin_0.3_0.2_0.1", "lin_A_B"),
    ("target_kl", "cosine_0.1", "lin_A_B"),
    ("learning_rate", "lin_fast", "lin_A_B"),
    ("learning_rate", "lin_-0.1", "lin_A_B"),
    ("learning_rate", "0.1", "lin_A_B"),
    ("learning_rate", -0.25, "negative"),
    ("learning_rate", math.nan, "negative"),
    ("critic_learning_rate", 0.0, "positive"),
    ("critic_learning_rate", "lin_", "lin_A_B"),
    ("corrected_learning_rate", 0.0, "positive"),
    ("corrected_learning_rate", "lin_", "lin_A_B"),
    ("std_scale", 0.0, "positive"),
    ("std_scale", "lin_1", "A, B > 0, not 'lin_1'"),
    ("std_scale", "late_0_1", "A, B > 0"),
    ("target_kl", "late_", "late_A_B"),
    ("std_scale", "half", "lin_A_B"),
    ("critic_trust_region", 0.0, "positive"),
    ("critic_norm", "gauss_newton", "gauss-newton, euclidean"),
    ("critic_std", 0.0, "'adaptive'"),
    ("critic_std", "running", "'adaptive'"),
    ("normalize_value_targets", "auto", "True, False or None"),
    ("damping", math.nan, "0 or more"),
]


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_an_argument_out_of_range_is_refused_by_name(name, value, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        ACKTR("MlpPolicy", small_env(), **{name: value})
    message = str(caught.value)
    assert name in message or "schedule" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_the_defaults_pass():
    check_arguments(DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer_class", torch.optim.Adam), ("optimizer_kwargs", {"eps": 1e-5}), ("use_sde", True)],
)
def test_what_does_not_go_with_kfac_is_refused_by_name(key, value):
    says = "gSDE" if key == "use_sde" else key
    with pytest.raises(ConfigurationError, match=says):
        ACKTR("MlpPolicy", small_env("Box"), policy_kwargs={key: value})


def test_noise_adds_up_over_actuators():
    norms = {d: math.exp(auto_log_std(d)) * math.sqrt(d) for d in (1, 2, 3, 4, 6, 8, 17)}
    assert max(norms.values()) == pytest.approx(0.87)
    assert (norms[6], norms[17]) == pytest.approx((0.87, 0.87))
    assert [auto_log_std(d) for d in (1, 2, 3)] == [-0.7] * 3  # the bounds of the actions count there


@pytest.mark.parametrize("kwargs", [{}, {"log_std_init": "auto"}])
def test_log_std_init_is_auto_unless_given_and_a_number_then(kwargs, tmp_path):
    before = dict(kwargs)
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    env = DummyVecEnv([lambda: Small(VECTOR, space, 5)])
    model = ACKTR("MlpPolicy", env, n_steps=4, policy_kwargs=kwargs)
    assert model.policy.log_std.tolist() == pytest.approx([auto_log_std(6)] * 6)
    assert model.policy_kwargs["log_std_init"] == auto_log_std(6)
    assert kwargs == before
    model.save(tmp_path / "model")
    assert ACKTR.load(tmp_path / "model").policy_kwargs == model.policy_kwargs


@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 512), (3, 170), (8, 64), (64, 16)])
def test_without_n_steps_a_batch_has_512_samples_or_16_steps(n_envs, n_steps, tmp_path):
    model = ACKTR("MlpPolicy", small_env(n_envs=n_envs), device="cpu")
    assert model.n_steps == n_steps
    assert model.rollout_buffer.observations.shape[:2] == (n_steps, n_envs)
    model.save(tmp_path / "model")
    assert ACKTR.load(tmp_path / "model").n_steps == n_steps


def test_log_std_init_may_be_a_number_of_numpy():
    model = ACKTR("MlpPolicy", small_env("Box"), policy_kwargs={"log_std_init": np.float32(-0.5)})
    assert set(model.policy.log_std.tolist()) == {-0.5}


def test_actions_without_a_standard_deviation_need_no_number():
    model = ACKTR("MlpPolicy", small_env("Discrete"), policy_kwargs={"log_std_init": "auto"})
    assert "log_std_init" not in model.policy_kwargs


@pytest.mark.parametrize("value", ["low", None, math.nan, -math.inf])
def test_another_log_std_init_is_refused(value):
    says = f"log_std_init in policy_kwargs must be a finite number or 'auto', got {value!r}"
    with pytest.raises(ConfigurationError, match=says):
        ACKTR("MlpPolicy", small_env("Box"), policy_kwargs={"log_std_init": value})


def test_what_corrects_steps_must_be_measured():
    with pytest.raises(ConfigurationError, match="corrected_learning_rate needs the measured KL"):
        ACKTR("MlpPolicy", small_env(), corrected_learning_rate=10.0, kl_feedback=False)


def test_gsde_is_refused_as_an_argument_too():
    with pytest.raises(ConfigurationError, match="gSDE"):
        ACKTR("MlpPolicy", small_env("Box"), use_sde=True)


@pytest.mark.parametrize("kwargs", [{"n_critic_updates": 2}, {"critic_batch_size": 4}])
def test_a_shared_trunk_has_one_update_and_one_trust_region(kwargs):
    with pytest.raises(ConfigurationError, match="share_features_extractor=False"):
        ACKTR("CnnPolicy", small_env(observation=IMAGE), **kwargs)
    separate = {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 8}}
    ACKTR("CnnPolicy", small_env(observation=IMAGE), policy_kwargs=separate, **kwargs)
    ACKTR("CnnPolicy", small_env(observation=IMAGE), critic_norm="euclidean", **kwargs)


@pytest.mark.parametrize(
    "space",
    [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Tuple([spaces.Discrete(2)] * 2)],
    ids=["Dict", "Tuple"],
)
def test_unsupported_action_spaces_are_refused(space):
    class Env(gym.Env):
        observation_space = VECTOR
        action_space = space

    with pytest.raises((ConfigurationError, AssertionError), match=type(space).__name__):
        ACKTR("MlpPolicy", Env())


def test_kfac_options_are_checked():
    with pytest.raises(ValueError, match="fisher"):
        ACKTR("MlpPolicy", small_env(), kfac_kwargs={"fisher": "empirical"})


def test_a_critic_may_differ_from_the_actor():
    own = {"cg_iterations": 1, "factor_period": 2}
    model = ACKTR(
        "MlpPolicy",
        small_env(),
        kfac_kwargs={"stat_decay": 0.9},
        critic_kfac_kwargs=own,
        n_steps=8,
        seed=0,
    )
    assert (model.kfac.factor_period, model.critic_optimizer.factor_period) == (1, 2)
    assert model.critic_optimizer.block_options.decay == model.kfac.block_options.decay == 0.9
    model.learn(32)
    assert model.kfac.last_step[0].cg_residual is None
    assert model.critic_optimizer.last_step[0].cg_residual is not None
    with pytest.raises(ConfigurationError, match=r"critic_kfac_kwargs must not hold damping"):
        ACKTR("MlpPolicy", small_env(), critic_kfac_kwargs={"damping": 1.0})


def test_schedules():
    assert as_schedule(0.3)(0.1) == 0.3
    linear = as_schedule("lin_0.2")
    np.testing.assert_allclose([linear(1.0), linear(0.5), linear(0.0)], [0.2, 0.1, 0.0])
    assert as_schedule(lambda left: left**2)(0.5) == 0.25
    assert as_schedule(0)(1.0) == 0.0
    assert as_schedule("lin_2e-3")(1.0) == 2e-3
    raised = as_schedule("lin_0.1_0.5")
    assert (raised(1.0), raised(0.5), raised(0.0)) == pytest.approx((0.1, 0.3, 0.5))
    late = [as_schedule("late_0.4_0.2")(left) for left in (1.0, 0.7, 0.5, 0.25, 0.0)]
    assert late == pytest.approx([0.4, 0.4, 0.4, 0.3, 0.2])
    assert as_schedule("late_0.02")(0.0) == 0.0


def test_a_discount_is_a_number_a_callable_or_a_rising_horizon():
    assert as_discount(1)(0.3) == 1.0
    assert as_discount(lambda left: 0.9 + 0.05 * left)(0.5) == pytest.approx(0.925)
    rising = as_discount("rise_0.99_0.998")
    horizons = [1 / (1 - rising(left)) for left in (1.0, 0.75, 0.5, 0.25, 0.0)]
    np.testing.assert_allclose(horizons, 100 * 5 ** np.array([0, 0.25, 0.5, 0.75, 1]))
    assert as_discount("rise_0_0.5")(1.0) == 0.0
    assert as_discount("auto_0.99_0.998")(0.4) == rising(0.4)


def test_a_single_environment_and_a_single_step():
    model = ACKTR("MlpPolicy", Small(VECTOR, spaces.Discrete(2)), n_steps=1, seed=0)
    model.learn(3)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_errors_are_value_errors_with_exit_codes():
    assert issubclass(ConfigurationError, AcktrError)
    assert issubclass(ConfigurationError, ValueError)
