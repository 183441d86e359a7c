"""``acktr.make``: what ``acktr train`` builds and learns, from Python, with settings as objects."""

import contextlib

import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic, make
from acktr.cli import main
from acktr.errors import ConfigurationError
from acktr.presets import resolve
from acktr.run import build
from acktr.schedules import Horizon, Late, Linear, TraceDecay
from tests.helpers.runs import TOY
from tests.helpers.small_envs import small_env
from tests.helpers.toy_envs import Toy

SMALL = {"n_envs": 2, "n_steps": 8, "policy_kwargs": {"net_arch": [4]}}


class Own(ActorCriticPolicy):
    """A policy of the user's own."""

    def __init__(self, *args, colour="red", **kwargs):
        super().__init__(*args, **kwargs)
        self.colour = colour


# Settings ---------------------------------------------------------------------------------------


@pytest.fixture
def settled(monkeypatch):
    """Make the configuration alone, and build nothing with it."""
    monkeypatch.setattr(build, "build_environment", lambda configuration: None)
    monkeypatch.setattr(build, "build_model", lambda configuration, env: configuration)
    return make


@pytest.mark.parametrize(
    ("policy", "given", "threads"),
    [
        ("auto", None, [1]),
        ("MlpPolicy", None, [1]),
        ("MlpGruPolicy", None, [1]),
        ("MultiInputLstmPolicy", None, [1]),
        ("MlpLstmPolicy", "2", []),
        ("CnnPolicy", None, []),
    ],
)
def test_small_networks_have_one_thread(settled, monkeypatch, policy, given, threads):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    settled(TOY, preset="defaults", policy=policy)
    assert chosen == threads


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({}, []),
        ({"n_steps": 16, "normalize": True}, ["n_steps=16", "normalize=true"]),
        ({"target_kl": "lin_0.02"}, ["target_kl=lin_0.02"]),
        (
            {"target_kl": Linear(0.02), "std_scale": Late(1, 0.5)},
            ["target_kl=lin_0.02_0", "std_scale=late_1_0.5"],
        ),
        ({"gamma": Horizon(0.9, 0.99)}, ["gamma=auto_0.9_0.99"]),
        ({"gamma": Horizon(0.9, 0.99, lasting="rise")}, ["gamma=rise_0.9_0.99"]),
        ({"gae_lambda": TraceDecay(0.95, 0.9)}, ["gae_lambda=auto_0.95_0.9"]),
        # A mapping changes what it names.
        ({"natural": {"damping": 0.3}}, ["natural.damping=0.3"]),
        ({"critic": {"n_updates": 2}}, ["critic.n_updates=2"]),
        ({"critic": {"kind": "adam"}}, ["critic.kind=adam"]),
        ({"normalize": {"norm_obs": True}}, ["normalize.norm_obs=true"]),
        ({"policy_kwargs": {"net_arch": [4]}}, ["policy_kwargs.net_arch=[4]"]),
        (
            {"natural": {"corrected_learning_rate": Linear(10), "kfac_kwargs": {"momentum": 0.9}}},
            ["natural.corrected_learning_rate=lin_10_0", "natural.kfac_kwargs.momentum=0.9"],
        ),
        # An object says all of its group.
        ({"natural": Natural(damping=0.3)}, ["natural.damping=0.3"]),
        ({"critic": NaturalCritic(std="adaptive")}, ["critic={std: adaptive}", "critic.n_updates=null"]),
        (
            {"critic": AdamCritic(learning_rate=Linear(0.01))},
            ["critic.kind=adam", "critic.learning_rate=lin_0.01_0", "critic.n_updates=null"],
        ),
    ],
)
def test_they_are_those_of_the_command(settled, settings, overrides):
    """CartPole's preset has ``critic: {n_updates: 4}``."""
    options = {"seed": 0, "device": "auto"}
    assert (
        settled("CartPole-v1", **settings)
        == resolve("CartPole-v1", overrides=overrides, options=options)[0]
    )


def test_its_own_arguments_are_those_of_the_command(settled):
    configuration = settled("CartPole-v1", seed=3, n_envs=5, device="cpu", preset="mujoco")
    options = {"seed": 3, "n_envs": 5, "device": "cpu"}
    assert configuration == resolve("CartPole-v1", preset="mujoco", options=options).configuration


def test_an_object_leaves_nothing_of_the_preset(settled):
    natural = settled("CartPole-v1", preset="paper", natural=Natural(damping=0.5)).algorithm_arguments()[
        "natural"
    ]
    assert natural == Natural(damping=0.5)
    natural = settled("CartPole-v1", preset="paper", natural={"damping": 0.5}).algorithm_arguments()[
        "natural"
    ]
    assert (natural.damping, natural.kl_feedback, natural.kfac_kwargs["momentum"]) == (0.5, False, 0.9)


@pytest.mark.parametrize(
    ("env_id", "settings", "section", "expected"),
    [
        ("HalfCheetah-v5", {}, "default", {"n_envs": 10, "n_steps": 250, "gae_lambda": 0.97}),
        (
            "HalfCheetah-v5",
            {"pixels": True},
            "pixels",
            {"n_steps": 800, "frame_stack": 2, "policy": "CnnPolicy"},
        ),
        ("ALE/Pong-v5", {}, "atari", {"n_envs": 32, "n_steps": 20, "ent_coef": 0.01, "gae_lambda": 1.0}),
        ("CartPole-v1", {}, "default", {"n_envs": 10}),
        (TOY, {}, "default", {"n_envs": 10}),
    ],
)
def test_the_published_algorithm(settled, env_id, settings, section, expected):
    if env_id.startswith("ALE"):
        pytest.importorskip("ale_py")
    configuration = settled(env_id, preset="paper", **settings)
    assert configuration.preset == f"paper: {section}"
    assert {name: getattr(configuration, name) for name in expected} == expected
    assert configuration.learning_rate == "lin_0.25"
    assert (configuration.natural.kl_feedback, configuration.critic.normalize_targets) == (False, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_step": 3}, "Unknown setting 'n_step' in the arguments: did you mean 'n_steps'?"),
        ({"damping": 0.1}, "Unknown setting 'damping' in the arguments: it is now natural.damping."),
        ({"critic_norm": "euclidean"}, "in the arguments: it is now critic.kind, natural or adam."),
        ({"n_actor_updates": 1}, "in the arguments: n_actor_updates is gone, no task learned more"),
        ({"max_grad_norm": 0.5}, "in the arguments: target_kl and learning_rate bound each step"),
        ({"tensorboard_log": "x"}, "Unknown setting 'tensorboard_log' in the arguments: choose from"),
        ({"natural": {"dampin": 0.3}}, "Unknown setting 'dampin' in natural: did you mean 'damping'?"),
        ({"natural": 3}, "The setting natural = 3 is not valid: it must be a mapping of settings."),
        (
            {"critic": "adam"},
            "The setting critic = 'adam' is not valid: it must be a mapping of settings.",
        ),
        ({"target_kl": "fast"}, "target_kl must be a number, a callable, 'lin_A_B'"),
        ({"policy": 3}, "The setting policy = 3 is not valid"),
        (
            {"policy": nn.Linear},
            "The setting policy = <class 'torch.nn.modules.linear.Linear'> is not valid",
        ),
        ({"policy_kwargs": {"activation_fn": "Tahn"}}, "did you mean 'Tanh'?"),
        ({"seed": -1}, "The setting seed = -1 is not valid"),
        ({"n_envs": 0}, "The setting n_envs = 0 is not valid"),
        ({"preset": "papr"}, "There is no preset 'papr': use paper"),
    ],
)
def test_what_is_wrong_gets_one_sentence(settings, message):
    with pytest.raises(ConfigurationError) as said:
        make("CartPole-v1", **settings)
    assert message in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("env", [None, small_env()])
def test_an_environment_of_ones_own_is_told_where_to_go(env):
    with pytest.raises(ConfigurationError, match=f"not {type(env).__name__}: give .* to ACKTR"):
        make(env)


# Models -----------------------------------------------------------------------------------------


@pytest.fixture
def made():
    """Make models, and close their environments at the end."""
    with contextlib.ExitStack() as opened:

        def build(env_id="CartPole-v1", **settings):
            model = make(env_id, **{**SMALL, **settings})
            opened.callback(model.env.close)
            return model

        yield build


def test_settings_as_objects_reach_the_model(made):
    def rate(progress_remaining):
        return 0.5 + progress_remaining

    model = made(
        natural=Natural(damping=0.3, corrected_learning_rate=rate, kfac_kwargs={"momentum": 0.5}),
        critic=AdamCritic(learning_rate=Late(0.01), n_updates=2),
        gamma=Horizon(0.9, 0.99),
        learning_rate=rate,
        policy=Own,
        policy_kwargs={"net_arch": [4], "activation_fn": nn.ELU, "colour": "blue"},
        normalize={"norm_obs": True},
    )
    assert (model.natural.damping, model.natural.corrected_learning_rate) == (0.3, rate)
    assert model.critic == AdamCritic(learning_rate=Late(0.01), n_updates=2, normalize_targets=True)
    assert (model.gamma, model.learning_rate) == (Horizon(0.9, 0.99), rate)
    assert (type(model.policy), model.policy.colour, model.policy.activation_fn) == (Own, "blue", nn.ELU)
    assert model.get_vec_normalize_env().norm_obs
    model.learn(32)
    assert model.num_timesteps == 32


def test_the_published_algorithm_learns(made):
    model = made("Pendulum-v1", preset="paper").learn(32)
    assert isinstance(model.critic_optimizer, type(model.kfac))
    assert model.kfac.param_groups[0]["momentum"] == 0.9


def test_what_the_command_says_of_the_preset_is_a_warning(made):
    with pytest.warns(UserWarning, match=r"belongs to no preset family: using the preset 'defaults'"):
        made(TOY)


@pytest.mark.parametrize(
    "refused",
    [
        {"std_scale": 0},  # by the constructor
        {"natural": Natural(kfac_kwargs={"curvature": {"fisher": "x"}})},
        {"device": "abacus"},
        {"policy": "CnnPolicy"},
        {"normalize": {"norm_obs": True, "norm_obs_keys": ["a"]}},  # by what normalises
        {"policy_kwargs": {"features_extractor_class": "NatureCNN"}},
    ],
)
def test_environments_of_a_refused_model_are_closed(monkeypatch, refused):
    closed = []
    monkeypatch.setattr(Toy, "close", lambda env: closed.append(env))
    with pytest.raises(ConfigurationError) as said:
        make(TOY, preset="classic", **{**SMALL, **refused})
    assert "\n" not in str(said.value)
    assert len(closed) == 3  # the one that was tried, and the model's two


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("CartPole-v1", {"natural": Natural(kfac_kwargs={"momentum": 0.5})}),
        ("Pendulum-v1", {"normalize": True, "preset": "mujoco", "critic": {"kind": "adam"}}),
    ],
)
def test_it_learns_what_the_command_learns(made, tmp_path, no_pictures, env_id, settings):
    overrides = {
        "CartPole-v1": ["natural.kfac_kwargs.momentum=0.5"],
        "Pendulum-v1": ["normalize=true", "critic.kind=adam"],
    }[env_id]
    overrides += [
        "n_steps=8",
        "policy_kwargs.net_arch=[4]",
        "eval_interval=64",
        "n_final_eval_episodes=0",
    ]
    options = [
        "--steps",
        "128",
        "--seed",
        "3",
        "--n-envs",
        "2",
        "--no-progress",
        "--out",
        str(tmp_path / "run"),
    ]
    options += ["--preset", settings["preset"]] if "preset" in settings else []
    assert main(["train", env_id, *options, "--set", *overrides]) == 0
    trained = ACKTR.load(tmp_path / "run" / "model.zip")
    model = made(env_id, seed=3, **settings).learn(128)
    assert model.num_timesteps == trained.num_timesteps == 128
    parameters, others = model.policy.state_dict(), trained.policy.state_dict()
    assert parameters.keys() == others.keys()
    for name in parameters:
        assert torch.equal(parameters[name], others[name]), name
