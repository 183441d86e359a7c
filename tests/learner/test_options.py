"""Arguments of ACKTR: each wrong one gets one clear sentence, each schedule its meaning."""

import inspect
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import AcktrError, ConfigurationError
from acktr.learner.noise import auto_log_std
from acktr.learner.settings import check_arguments
from acktr.schedules import Horizon, Late, Linear, TraceDecay
from tests.helpers.models import make, setting
from tests.helpers.small_envs import IMAGE, VECTOR, Small, small_env

DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(ACKTR.__init__).parameters.items()
}

REFUSED = [
    ("n_steps", 0, "at least 1"),
    ("n_steps", -4, "at least 1"),
    ("critic.n_updates", 0, "at least 1"),
    ("critic.batch_size", 0, "at least 1"),
    ("natural.cg_iterations", -1, "0 or more"),
    ("natural.cg_iterations", 2.5, "0 or more"),
    ("critic.cg_iterations", -1, "0 or more"),
    ("natural.sub_sampling_factor", 0, "at least 1"),
    ("gamma", 1.5, r"\[0, 1\]"),
    ("gamma", -0.1, r"\[0, 1\]"),
    ("gamma", "high", r"\[0, 1\] or a callable, not 'high'"),
    ("gamma", None, r"\[0, 1\]"),
    ("gae_lambda", 2.0, r"\[0, 1\]"),
    ("gae_lambda", -0.1, r"\[0, 1\]"),
    ("gae_lambda", math.nan, r"\[0, 1\]"),
    ("gae_lambda", None, r"\[0, 1\]"),
    ("gae_lambda", "high", r"\[0, 1\] or a TraceDecay, not 'high'"),
    ("gae_lambda", Linear(0.9, 0.8), r"\[0, 1\] or a TraceDecay"),
    ("natural.damping", -0.01, "0 or more"),
    ("critic.damping", -1.0, "0 or more"),
    ("critic.vf_coef", -0.5, "0 or more"),
    ("ent_coef", -0.5, "0 or more"),
    ("target_kl", 0.0, "positive"),
    ("target_kl", -0.01, "positive"),
    ("target_kl", math.nan, "positive"),
    ("target_kl", "lin_", "a number or a callable, not 'lin_'"),
    ("learning_rate", "lin_fast", "a number or a callable"),
    ("learning_rate", "0.1", "a number or a callable"),
    ("learning_rate", -0.25, "negative"),
    ("learning_rate", math.nan, "negative"),
    ("critic.learning_rate", 0.0, "positive"),
    ("critic.learning_rate", None, "positive"),
    ("critic.learning_rate", "lin_", "a number or a callable"),
    ("natural.corrected_learning_rate", 0.0, "positive"),
    ("natural.corrected_learning_rate", "lin_", "a number or a callable"),
    ("std_scale", 0.0, "positive"),
    ("std_scale", Linear(1), "must stay positive and finite, but its schedule gave 0.0 at 0.000"),
    ("std_scale", Late(0, 1), "must stay positive and finite, but its schedule gave 0.0 at 1.000"),
    ("std_scale", "half", "a number or a callable"),
    ("critic.trust_region", 0.0, "positive"),
    ("critic.std", 0.0, "'adaptive'"),
    ("critic.std", "running", "'adaptive'"),
    ("critic.normalize_targets", "auto", "True, False or None"),
    ("critic.kfac_kwargs", None, "a mapping of KFAC's arguments"),
    ("natural.kfac_kwargs", 5, "a mapping of KFAC's arguments"),
    ("natural.precision", "fp16", "one of fp32, bf16"),
    ("natural.kl_feedback", 1, "True or False"),
    ("natural.damping", math.nan, "0 or more"),
    ("natural", {"damping": 0.1}, r"must be Natural\(...\)"),
    ("critic", "adam", r"NaturalCritic\(...\) or AdamCritic\(...\)"),
    ("critic", AdamCritic, r"NaturalCritic\(...\) or AdamCritic\(...\)"),
]


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_an_argument_out_of_range_is_refused_by_name(name, value, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(**setting(name, value))
    message = str(caught.value)
    assert message.startswith(f"{name} ")
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (f"critic.{part}", *rest)
        for part in AdamCritic.ranges
        for name, *rest in REFUSED
        if name == f"critic.{part}"
    ],
)
def test_a_first_order_critic_refuses_the_same(name, value, says):
    with pytest.raises(ConfigurationError, match=rf"^{name} .*{says}"):
        AdamCritic(**{name.removeprefix("critic."): value})


@pytest.mark.parametrize(
    ("name", "text", "now"),
    [
        ("learning_rate", "lin_0.5", Linear(0.5)),
        ("target_kl", "lin_0.02_0.01", Linear(0.02, 0.01)),
        ("std_scale", "late_1_0.5", Late(1.0, 0.5)),
        ("gamma", "auto_0.9_0.99", Horizon(0.9, 0.99)),
        ("gamma", "rise_0.9_0.99", Horizon(0.9, 0.99, lasting="rise")),
        ("gae_lambda", "auto_0.95_0.9", TraceDecay(0.95, 0.9)),
        ("natural.corrected_learning_rate", "late_4", Late(4.0)),
        ("critic.learning_rate", "lin_0.1", Linear(0.1)),
    ],
)
def test_how_yaml_writes_a_schedule_is_told_what_it_is_in_python(name, text, now):
    with pytest.raises(ConfigurationError, match=r"acktr\.schedules") as caught:
        make(**setting(name, text))
    assert str(caught.value).startswith(f"{name}={text!r} ")
    assert f"in Python give {now}" in str(caught.value)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, np.int64(2)) for name in ("n_steps", "critic.n_updates", "critic.batch_size")),
        *((f"natural.{name}", np.int32(2)) for name in ("cg_iterations", "sub_sampling_factor")),
        ("critic.cg_iterations", np.int64(1)),
        ("natural.damping", np.float32(0.5)),
        ("critic.damping", np.int64(1)),
    ],
)
def test_settings_may_be_numbers_of_numpy(name, value, tmp_path):
    outer, _, _ = name.partition(".")
    model = ACKTR("MlpPolicy", small_env(), **{"n_steps": 4, **setting(name, value)})
    model.learn(8)
    model.save(tmp_path / "model")
    assert getattr(ACKTR.load(tmp_path / "model"), outer) == getattr(model, outer)


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
        Natural(corrected_learning_rate=10.0, kl_feedback=False)


def test_gsde_is_refused_as_an_argument_too():
    with pytest.raises(ConfigurationError, match="gSDE"):
        ACKTR("MlpPolicy", small_env("Box"), use_sde=True)


@pytest.mark.parametrize("kwargs", [{"n_updates": 2}, {"batch_size": 4}])
def test_a_shared_trunk_has_one_update_and_one_trust_region(kwargs):
    natural, adam = NaturalCritic(**kwargs), AdamCritic(**kwargs)
    with pytest.raises(ConfigurationError, match="share_features_extractor=False"):
        ACKTR("CnnPolicy", small_env(observation=IMAGE), critic=natural)
    separate = {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 8}}
    ACKTR("CnnPolicy", small_env(observation=IMAGE), policy_kwargs=separate, critic=natural)
    ACKTR("CnnPolicy", small_env(observation=IMAGE), critic=adam)


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
        ACKTR(
            "MlpPolicy", small_env(), natural=Natural(kfac_kwargs={"curvature": {"fisher": "empirical"}})
        )


def test_a_critic_may_differ_from_the_actor():
    model = ACKTR(
        "MlpPolicy",
        small_env(),
        natural=Natural(kfac_kwargs={"curvature": {"stat_decay": 0.9}}),
        critic=NaturalCritic(cg_iterations=1, kfac_kwargs={"periods": {"factor": 2}}),
        n_steps=8,
        seed=0,
    )
    assert (model.kfac.periods.factor, model.critic_optimizer.periods.factor) == (1, 2)
    assert model.critic_optimizer.curvature.stat_decay == model.kfac.curvature.stat_decay == 0.9
    model.learn(32)
    assert model.kfac.last_step[0].cg_residual is None
    assert model.critic_optimizer.last_step[0].cg_residual is not None
    with pytest.raises(ConfigurationError, match=r"critic.kfac_kwargs must not hold damping"):
        NaturalCritic(kfac_kwargs={"damping": 1.0})


def test_a_single_environment_and_a_single_step():
    model = ACKTR("MlpPolicy", Small(VECTOR, spaces.Discrete(2)), n_steps=1, seed=0)
    model.learn(3)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_errors_are_value_errors_with_exit_codes():
    assert issubclass(ConfigurationError, AcktrError)
    assert issubclass(ConfigurationError, ValueError)
