"""Saved models: what comes back, and what must be given again."""

import io
import pickle
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import CheckpointMismatchError
from acktr.schedules import Horizon, Late, Linear, TraceDecay
from tests.helpers.saved_models import assert_same_state, build, states
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env

policies = st.sampled_from(
    [
        ("MlpPolicy", VECTOR),
        ("MlpPolicy", spaces.Discrete(5)),
        ("MlpPolicy", spaces.MultiDiscrete([2, 3])),
        ("CnnPolicy", IMAGE),
        ("MultiInputPolicy", MIXED),
    ]
)


@settings(max_examples=6, deadline=None)
@given(
    policies,
    st.sampled_from(sorted(ACTIONS)),
    st.lists(st.integers(1, 5), max_size=2),
    st.sampled_from([nn.Tanh, nn.ELU]),
    st.booleans(),
    st.sampled_from(["cholesky", "eigen"]),
    st.sampled_from([NaturalCritic, AdamCritic]),
)
def test_any_architecture_comes_back(policy, action, sizes, activation, shared, inverse, critic):
    name, observation = policy
    kwargs = {"net_arch": sizes, "activation_fn": activation, "share_features_extractor": shared}
    if name == "CnnPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim": 4}
    model = build(
        action,
        observation,
        name,
        policy_kwargs=kwargs,
        critic=critic(learning_rate=Linear(0.1)),
        natural=Natural(
            kfac_kwargs={"curvature": {"inverse": inverse}}, corrected_learning_rate=Late(9)
        ),
        target_kl=Linear(0.01),
        gamma=Horizon(0.9, 0.99, lasting="rise"),
        gae_lambda=TraceDecay(0.95, 0.9),
        std_scale=Late(1, 0.5),
    ).learn(32)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = ACKTR.load(buffer, env=model.env)
    assert_same_state(model, loaded)
    for setting in ("target_kl", "gamma", "gae_lambda", "std_scale", "natural", "critic"):
        assert getattr(loaded, setting) == getattr(model, setting)
    loaded.learn(16, reset_num_timesteps=False)


def test_what_a_file_is_made_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        assert {"manifest.json", "data.json", "policy.safetensors", "system_info.txt"} <= set(names)
        for name in names:
            with pytest.raises(Exception):  # noqa: B017, PT011  # whatever unpickling raises
                pickle.loads(archive.read(name))


@pytest.mark.parametrize("saved", ["model", "model.zip", "new/folder/model", "v1.2"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_with_and_without_suffix(tmp_path, trained, saved, kind):
    trained.save(kind(tmp_path / saved))
    place = tmp_path / saved
    assert place.is_file() or place.with_name(f"{place.name}.zip").is_file()
    assert_same_state(trained, ACKTR.load(kind(tmp_path / saved)))
    assert not list(tmp_path.rglob(".*"))


def test_prediction_needs_no_environment(trained, content):
    loaded = ACKTR.load(io.BytesIO(content))
    observation = np.linspace(-1, 1, 3, dtype=np.float32)
    expected = trained.predict(observation, deterministic=True)[0]
    assert loaded.predict(observation, deterministic=True)[0] == expected
    assert loaded.num_timesteps == trained.num_timesteps
    assert loaded.ep_info_buffer == trained.ep_info_buffer


def test_arguments_change_at_load(content, capsys):
    loaded = ACKTR.load(
        io.BytesIO(content),
        env=small_env(n_envs=3),
        print_system_info=True,
        natural=Natural(damping=0.5),
        custom_objects={"learning_rate": 0.25, "of_another_algorithm": 1.0},
    )
    assert not hasattr(loaded, "of_another_algorithm")
    damping = loaded.natural.damping, loaded.kfac.param_groups[0]["damping"]
    assert (loaded.n_envs, *damping) == (3, 0.5, 0.1)
    assert loaded.lr_schedule(1.0) == 0.25
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    with pytest.raises(CheckpointMismatchError, match="policy_kwargs"):
        ACKTR.load(io.BytesIO(content), policy_kwargs={"net_arch": [9]})


@pytest.mark.parametrize("caught", [ValueError, RuntimeError, CheckpointMismatchError])
def test_parameters_that_are_missing_are_caught_as_those_of_a2c_are(trained, caught):
    before = trained.get_parameters()
    fewer = {**before, "policy": dict(list(before["policy"].items())[:-1])}
    with pytest.raises(caught, match=r"nothing was changed: value_net\.linear\.bias is absent"):
        trained.set_parameters(fewer)


@pytest.mark.parametrize("given", [{"net_arch": [8]}, {"net_arch": [8], "log_std_init": "auto"}])
def test_policy_kwargs_that_were_given_may_be_given_again(given, tmp_path):
    model = ACKTR("MlpPolicy", small_env("Box"), n_steps=8, device="cpu", policy_kwargs=given)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", policy_kwargs=given)
    assert loaded.policy_kwargs == model.policy_kwargs
    with pytest.raises(CheckpointMismatchError, match="policy_kwargs"):
        ACKTR.load(tmp_path / "model", policy_kwargs={**given, "log_std_init": 0.0})


def test_exclude_and_include(tmp_path, trained):
    trained.save(tmp_path / "a", exclude=["ep_info_buffer"], include=["device"])
    data = zipfile.ZipFile(tmp_path / "a.zip").read("data.json")
    assert b'"ep_info_buffer"' not in data
    made_anew = ["policy", "lr_schedule", "seed"]
    trained.save(tmp_path / "a", exclude=["seed"], include=made_anew)  # as SB3 has it: include wins
    assert ACKTR.load(tmp_path / "a").seed == trained.seed is not None
    trained.note = threading.Event()
    with pytest.warns(UserWarning, match=r"Saved without note \(threading\.Event"):
        trained.save(tmp_path / "b")
    del trained.note


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 2)
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)


def test_what_is_not_stored_is_given_again(tmp_path):
    own = {"features_extractor_class": OwnExtractor, "net_arch": [3]}
    model = build(policy_kwargs=own, target_kl=lambda progress: 0.01 * progress)
    with pytest.warns(UserWarning, match=r"target_kl.*load needs custom_objects|load needs"):
        model.save(tmp_path / "own")
    with pytest.raises(CheckpointMismatchError, match=r"without .* pass custom_objects"):
        ACKTR.load(tmp_path / "own")
    again = {"policy_kwargs.features_extractor_class": OwnExtractor, "target_kl": 0.02}
    assert_same_state(model, ACKTR.load(tmp_path / "own", custom_objects=again))
    loaded = ACKTR.load(tmp_path / "own", custom_objects={"policy_kwargs": own}, target_kl=0.02)
    assert loaded.target_kl == 0.02


class SetsAroundTheConstructor(ACKTR):
    def __init__(self, *args, early=0, **kwargs):
        self.early, self.counted = early, 0
        super().__init__(*args, **kwargs)
        self.late = 0


class BuildsAtItsEnd(ACKTR):  # as SB3's own algorithms do
    def __init__(self, *args, early=0, _init_setup_model=True, **kwargs):
        super().__init__(*args, **kwargs, _init_setup_model=False)
        self.early, self.counted = early, 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self):
        self.late = 0
        super()._setup_model()


@pytest.mark.parametrize("algorithm", [SetsAroundTheConstructor, BuildsAtItsEnd])
def test_attributes_of_a_subclass_come_back_wherever_it_sets_them(tmp_path, algorithm):
    model = algorithm("MlpPolicy", small_env(), n_steps=8, early=1)
    model.counted, model.late, model.later = 2, 3, 4
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert [getattr(loaded, x) for x in ("early", "counted", "late", "later")] == [1, 2, 3, 4]
    assert algorithm.load(tmp_path / "model", early=5, late=6).late == 6


@pytest.mark.parametrize("normalizes", [False, True])
def test_another_critic_goes_on_with_what_the_saved_one_predicts(tmp_path, normalizes):
    model = build(critic=NaturalCritic(normalize_targets=normalizes))
    model.learn(16).save(tmp_path / "model")
    more = {"critic": NaturalCritic(n_updates=2)}
    for changes in (more, {"custom_objects": more}):
        loaded = ACKTR.load(tmp_path / "model", **changes)
        expected = NaturalCritic(damping=0.1, n_updates=2, normalize_targets=normalizes)
        assert loaded.critic == expected
        assert_same_state(loaded, model)
        loaded.save(tmp_path / "again")
        assert_same_state(ACKTR.load(tmp_path / "again"), model)


def test_callbacks_of_sb3_work(tmp_path):
    model = build()
    evaluation = EvalCallback(
        small_env(n_envs=1), best_model_save_path=str(tmp_path), eval_freq=10, verbose=0, warn=False
    )
    model.learn(64, callback=[CheckpointCallback(16, str(tmp_path), "rl"), evaluation])
    for name in ("best_model", "rl_32_steps.zip"):
        assert ACKTR.load(tmp_path / name, env=model.env).n_steps == 8


# Fault 17 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (("Box", VECTOR), r"action_space Discrete\(3\), the environment has Box\(-1, 1, \(2,\)"),
        (("Discrete", MIXED), r"observation_space Box\(-1, 1, \(3,\), float32\), the environment has"),
    ],
)
def test_other_spaces_are_refused(content, env, message):
    with pytest.raises(CheckpointMismatchError, match=message):
        ACKTR.load(io.BytesIO(content), env=small_env(*env))


def test_another_architecture_is_refused_with_a_diff(content):
    other = build(policy_kwargs={"net_arch": [4, 5]})
    before = [p.clone() for p in other.policy.parameters()]
    with pytest.raises(CheckpointMismatchError, match=r"action_net\.weight is \(3, 4\) in the file and"):
        other.set_parameters(io.BytesIO(content))
    assert all(map(torch.equal, before, other.policy.parameters()))


def test_nothing_changes_if_the_optimiser_does_not_fit(content):
    # The critic's optimiser and the parameters fit, and come before the one that does not.
    fits = {"curvature": {"inverse": "cholesky"}}
    other = build(
        natural=Natural(kfac_kwargs={"curvature": {"inverse": "eigen"}}),
        critic=NaturalCritic(kfac_kwargs=fits),
    ).learn(16)
    before = {name: x.clone() for name, x in states(other)[1].items()}
    with pytest.raises(CheckpointMismatchError, match=r"as it was: The inverse of block .*'eigen'"):
        other.set_parameters(io.BytesIO(content))
    for name, tensor in states(other)[1].items():
        assert torch.equal(tensor, before[name])
    assert isinstance(CheckpointMismatchError("x"), ValueError)


def test_parameters_alone(trained, content):
    other = build(natural=Natural(kfac_kwargs={"momentum": 0.5}))
    other.set_parameters(io.BytesIO(content))
    assert_same_state(trained, other)
    other = build(natural=Natural(kfac_kwargs={"momentum": 0.5}))
    other.set_parameters(trained.get_parameters())
    assert_same_state(trained, other)
    other.set_parameters({"policy": trained.policy.state_dict()}, exact_match=False)
