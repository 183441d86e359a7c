"""Arguments and policies of other algorithms: taken where they mean the same, else explained."""

import functools
import inspect
import math
import re

import numpy as np
import pytest
import torch
from sb3_contrib import TRPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from acktr import ACKTR, Natural
from acktr.errors import CheckpointMismatchError, ConfigurationError
from acktr.learner.foreign import REPLACED
from acktr.presets.loader import resolve
from tests.helpers.models import make, parameters, same
from tests.helpers.small_envs import IMAGE, small_env

# What ACKTR refuses of the defaults of A2C, PPO and TRPO, because they say how another optimiser works.
REFUSED = {"max_grad_norm", "rms_prop_eps", "use_rms_prop", "n_epochs", "batch_size", "clip_range"}
REFUSED |= {"cg_max_steps", "cg_damping", "line_search_shrinking_factor", "line_search_max_iter"}

# What ACKTR has in another place.
MOVED = {
    "vf_coef": "critic=NaturalCritic(vf_coef=...)",
    "n_critic_updates": "critic=NaturalCritic(n_updates=...), or that of AdamCritic",
    "sub_sampling_factor": "natural=Natural(sub_sampling_factor=...)",
}


def defaults(algorithm):
    named = inspect.signature(algorithm.__init__).parameters
    own = {"self", "policy", "env", "_init_setup_model"}
    return {name: p.default for name, p in named.items() if name not in own}


@pytest.mark.parametrize("algorithm", [A2C, PPO, TRPO])
def test_every_argument_is_taken_or_explained(algorithm):
    for name, value in defaults(algorithm).items():
        if (algorithm, name) == (PPO, "target_kl"):  # None: no bound
            with pytest.raises(ConfigurationError, match="target_kl must be positive"):
                make(target_kl=value)
        elif name in REFUSED:
            says = re.escape(REPLACED[name][:20])
            with pytest.raises(ConfigurationError, match=f"^ACKTR has no {name}: .*{says}"):
                make(**{name: value})
        elif name in MOVED:
            says = re.escape(f"ACKTR has no {name}: {name} is now {MOVED[name]}.")
            with pytest.raises(ConfigurationError, match=f"^{says}$"):
                make(**{name: value})
        else:
            make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", None),
        ("max_grad_norm", math.inf),
        ("use_rms_prop", False),
        ("sde_sample_freq", -1),
        ("rollout_buffer_class", None),
        ("rollout_buffer_class", RolloutBuffer),
        ("rollout_buffer_kwargs", {}),
        ("n_epochs", 1),
        ("clip_range_vf", None),
        ("monitor_wrapper", True),
    ],
)
def test_what_means_the_same_is_taken(name, value):
    plain, given = (make(**kwargs).learn(16) for kwargs in ({}, {name: value}))
    assert same(parameters(plain), parameters(given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sde_sample_freq", 4),
        ("rollout_buffer_class", dict),
        ("rollout_buffer_kwargs", {"a": 1}),
        ("clip_range_vf", 0.2),
        ("clip_range", lambda left: 0.1),
        ("buffer_size", 1000),
        ("tau", 0.005),
        ("vf_fisher_coef", 1.0),
        ("kfac_clip", 0.001),
    ],
)
def test_what_takes_its_place_is_said_in_one_sentence(name, value):
    with pytest.raises(ConfigurationError, match=f"^ACKTR has no {name}: ") as caught:
        make(**{name: value})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigurationError) as caught:
        make(batch_size=64, n_epochs=10, learning_rat=1.0, xyz=1)
    says = str(caught.value)
    assert all(f"no {name}: " in says for name in ("batch_size", "n_epochs", "learning_rat", "xyz"))
    assert "did you mean 'learning_rate'?" in says


def test_the_replacements_are_arguments():
    own = inspect.signature(ACKTR.__init__).parameters
    assert not REPLACED.keys() & own.keys()
    assert "kwargs" not in own
    assert list(own)[:7] == list(inspect.signature(A2C.__init__).parameters)[:7]


def test_a_subclass_says_its_own_name():
    class Mine(ACKTR):
        def __init__(self, *args, bonus=0.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.bonus = bonus

    assert make(cls=Mine, bonus=1.0).bonus == 1.0
    with pytest.raises(ConfigurationError, match=r"^Mine has no n_epochs"):
        make(cls=Mine, n_epochs=3)


def test_a_preset_says_it_too():
    with pytest.raises(ConfigurationError, match=r"'n_epochs'.*the critic n_updates times"):
        resolve("CartPole-v1", overrides=["n_epochs=10"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_epochs": 10}, "ACKTR has no n_epochs"),
        ({"target_kl": -1.0}, "target_kl must be positive"),
        ({"target_kl": None}, "target_kl must be positive"),
        ({"learning_rate": lambda left: left - 0.5}, "learning_rate must not be negative"),
        ({"target_k": 0.2}, "did you mean 'target_kl'?"),
        ({"damping": 0.2}, r"damping is now natural=Natural\(damping=...\)"),
        ({"n_actor_updates": 2}, "n_actor_updates is gone"),
        ({"max_grad_norm": 0.5}, "ACKTR has no max_grad_norm"),
        ({"custom_objects": {"target_kl": -1.0}}, "target_kl must be positive"),
        ({"gamma": 2.0}, "gamma must lie"),
        ({"natural": {"damping": 1.0}}, r"natural must be Natural\(...\)"),
    ],
)
def test_changes_at_load_are_checked_as_the_constructors_arguments_are(changes, says, tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=says):
        ACKTR.load(tmp_path / "model", **changes)


def test_changes_at_load_that_are_none_of_the_constructors(tmp_path):
    make().learn(16).save(tmp_path / "model")
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = ACKTR.load(
        tmp_path / "model", num_timesteps=7, max_grad_norm=None, custom_objects=custom, verbose=0
    )
    assert loaded.num_timesteps == 7
    assert loaded.lr_schedule(1.0) == 0.0
    assert not hasattr(loaded, "clip_range")


def test_a_seed_of_numpy_is_a_seed():
    assert same(parameters(make(seed=np.int64(3))), parameters(make(seed=3)))


# ------------------------------------------------------------------ policies


class Masked(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions, action_masks=None):
        return super().evaluate_actions(obs, actions)


class Squashed(ActorCriticPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._squash_output = True


class Exploring(ActorCriticPolicy):
    def __init__(self, *args, use_sde=False, **kwargs):
        super().__init__(*args, use_sde=True, **kwargs)


class Needy(ActorCriticPolicy):
    def predict_values(self, obs, weather):
        return super().predict_values(obs)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("MlpLstmPolcy", "did you mean 'MlpLstmPolicy'"),
        ("MlpPolcy", "did you mean 'MlpPolicy'"),
        ("xyz", "choose from MlpPolicy, CnnPolicy, MultiInputPolicy"),
        (
            RecurrentActorCriticPolicy,
            "RecurrentActorCriticPolicy needs lstm_states.* give 'MlpLstmPolicy'",
        ),
        (MaskableActorCriticPolicy, "MaskableActorCriticPolicy takes action_masks"),
        (Masked, "Masked takes action_masks"),
        (Needy, "predict_values of the policy Needy needs weather"),
        (SAC.policy_aliases["MlpPolicy"], "subclass of SB3's ActorCriticPolicy.* not SACPolicy"),
        (DQN.policy_aliases["MlpPolicy"], "not DQNPolicy"),
        (nn.Linear, "not Linear"),
        (None, "not None"),
        (3, "not 3"),
        (functools.partial(ActorCriticPolicy, net_arch=[8]), "policy must be one of"),
        (Squashed, "Squashed squashes its actions"),
        (Exploring, "Exploring explores by gSDE"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_in_one_sentence(policy, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(small_env("Box"), policy)
    assert "\n" not in str(caught.value)


def test_a_policy_is_a_class_and_no_instance():
    with pytest.raises(ConfigurationError, match="not an instance: give ActorCriticPolicy"):
        make(policy=make().policy)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"squash_output": True}, "squash_output"),
        ({"use_sde": True}, "gSDE"),
        ({"net_arch": [64, {"pi": [8], "vf": [8]}]}, "shared layers"),
    ],
)
def test_arguments_of_a_policy_that_cannot_be_used(kwargs, says):
    with pytest.raises(ConfigurationError, match=says):
        make(small_env("Box"), policy_kwargs=kwargs)


def test_parameters_of_another_type_are_refused_by_name():
    model = make()
    model.policy.double()
    with pytest.raises(ConfigurationError, match=r"torch.float64.* model.policy.float\(\)"):
        model.learn(16)
    model.policy.float()
    model.learn(16)


# ------------------------------------------------------------------ files


def observations(n=5):
    return torch.linspace(-1, 1, 3 * n).view(n, 3)


def agree(ours, theirs, obs):
    with torch.no_grad():
        torch.testing.assert_close(ours.predict_values(obs), theirs.predict_values(obs))
        mine, other = (p.get_distribution(obs).distribution for p in (ours, theirs))
        assert torch.distributions.kl_divergence(mine, other).abs().max() < 1e-6


@pytest.mark.parametrize("action", ["Box", "Discrete"])
@pytest.mark.parametrize("algorithm", [A2C, PPO, TRPO])
def test_a_file_of_another_algorithm_gives_its_policy(algorithm, action, tmp_path):
    minibatch = {} if algorithm is A2C else {"batch_size": 8}
    env = small_env(action)
    theirs = algorithm("MlpPolicy", env, n_steps=8, gamma=0.9, seed=3, device="cpu", **minibatch)
    theirs.learn(32)
    theirs.save(tmp_path / "theirs")
    ours = ACKTR.load(
        tmp_path / "theirs", env=small_env(action, n_envs=3), trust=True, natural=Natural(damping=0.2)
    )
    agree(ours.policy, theirs.policy, observations())
    assert (ours.gamma, ours.num_timesteps, ours.n_envs, ours.natural.damping) == (0.9, 32, 3, 0.2)
    assert (ours.n_steps, ours.target_kl, ours.learning_rate) == (170, 0.01, 1.0)  # ACKTR's own
    ours.learn(600, reset_num_timesteps=False)
    ours.save(tmp_path / "ours")
    assert same(parameters(ours), parameters(ACKTR.load(tmp_path / "ours")))


def test_a_file_of_another_algorithm_needs_no_environment(tmp_path):
    arch = {"net_arch": {"pi": [4], "vf": [5]}, "optimizer_kwargs": {"eps": 1e-4}}
    theirs = PPO("MlpPolicy", small_env(), n_steps=8, batch_size=8, policy_kwargs=arch)
    theirs.save(tmp_path / "theirs")
    ours = ACKTR.load(tmp_path / "theirs", trust=True)
    agree(ours.policy, theirs.policy, observations())
    other = make(policy_kwargs={"net_arch": arch["net_arch"]}).learn(16)
    other.set_parameters(tmp_path / "theirs.zip", exact_match=False, trust=True)
    agree(other.policy, theirs.policy, observations())


def test_a_file_of_images(tmp_path):
    cnn = {"features_extractor_kwargs": {"features_dim": 8}}
    theirs = PPO("CnnPolicy", small_env(observation=IMAGE), n_steps=4, batch_size=8, policy_kwargs=cnn)
    theirs.save(tmp_path / "theirs")
    ours = ACKTR.load(tmp_path / "theirs", env=small_env(observation=IMAGE), trust=True)
    assert isinstance(ours.policy.features_extractor, NatureCNN)
    agree(ours.policy, theirs.policy, torch.randint(0, 255, (3, 1, 36, 36), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: DQN("MlpPolicy", small_env(n_envs=1), buffer_size=10), "not DQNPolicy"),
        (lambda: SAC("MlpPolicy", small_env("Box", n_envs=1), buffer_size=10), "not SACPolicy"),
        (lambda: A2C("MlpPolicy", small_env("Box"), use_sde=True), "gSDE"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(build, says, tmp_path):
    build().save(tmp_path / "theirs")
    with pytest.raises(CheckpointMismatchError, match=rf"theirs is of another algorithm: .*{says}"):
        ACKTR.load(tmp_path / "theirs", trust=True)


def test_other_spaces_than_the_files_are_refused(tmp_path):
    PPO("MlpPolicy", small_env(), n_steps=8, batch_size=8).save(tmp_path / "theirs")
    with pytest.raises(CheckpointMismatchError, match="action_space"):
        ACKTR.load(tmp_path / "theirs", env=small_env("Box"), trust=True)
