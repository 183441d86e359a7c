"""Saved models: what comes back, what must be given again, and what hostile files do not achieve."""

import contextlib
import io
import pickle
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from acktr import ACKTR
from acktr.checkpoint import bundle
from acktr.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointVersionError,
    CheckpointWriteError,
    ConfigurationError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from tests.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env

NET = {"net_arch": [4]}


def build(action="Discrete", observation=VECTOR, policy="MlpPolicy", n_envs=2, **arguments):
    arguments.setdefault("policy_kwargs", NET)
    env = small_env(action, observation, n_envs=n_envs)
    return ACKTR(policy, env, n_steps=8, seed=0, device="cpu", **arguments)


@pytest.fixture(scope="module")
def trained():
    return build(momentum=0.5).learn(48)


@pytest.fixture(scope="module")
def content(trained):
    buffer = io.BytesIO()
    trained.save(buffer)
    return buffer.getvalue()


def states(model):
    structure, tensors, _ = bundle.encode(model.get_parameters())
    return structure, tensors


def assert_same_state(a, b):
    (one, first), (other, second) = states(a), states(b)
    assert one == other
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


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
    st.sampled_from(["gauss-newton", "euclidean"]),
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
        critic_norm=critic,
        kfac_kwargs={"inverse": inverse},
        target_kl="lin_0.01",
    ).learn(32)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = ACKTR.load(buffer, env=model.env)
    assert_same_state(model, loaded)
    assert loaded.target_kl_schedule(0.5) == 0.005
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
        damping=0.5,
        custom_objects={"learning_rate": 0.25},
    )
    assert (loaded.n_envs, loaded.damping, loaded.kfac.param_groups[0]["damping"]) == (3, 0.5, 0.01)
    assert loaded.lr_schedule(1.0) == 0.25
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out
    with pytest.raises(CheckpointMismatchError, match="policy_kwargs"):
        ACKTR.load(io.BytesIO(content), policy_kwargs={"net_arch": [9]})


def test_exclude_and_include(tmp_path, trained):
    trained.save(tmp_path / "a", exclude=["ep_info_buffer"], include=["device"])
    data = zipfile.ZipFile(tmp_path / "a.zip").read("data.json")
    assert b'"ep_info_buffer"' not in data
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
    assert loaded.target_kl_schedule(1.0) == 0.02


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
    other = build(kfac_kwargs={"inverse": "eigen"}).learn(16)
    before = {name: x.clone() for name, x in states(other)[1].items()}
    with pytest.raises(CheckpointMismatchError, match=r"as it was: The inverse of block .*'eigen'"):
        other.set_parameters(io.BytesIO(content))
    for name, tensor in states(other)[1].items():
        assert torch.equal(tensor, before[name])
    assert isinstance(CheckpointMismatchError("x"), ValueError)


def test_parameters_alone(trained, content):
    other = build(momentum=0.5)
    other.set_parameters(io.BytesIO(content))
    assert_same_state(trained, other)
    other = build(momentum=0.5)
    other.set_parameters(trained.get_parameters())
    assert_same_state(trained, other)
    other.set_parameters({"policy": trained.policy.state_dict()}, exact_match=False)


# Faults 2 to 5 ------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_file(tmp_path, trained, monkeypatch):
    trained.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointWriteError, match=r"model\.zip could not be written \(No space left"):
        trained.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_passes_unseen(trained, content, data):
    mutated = bytearray(content)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "random"]))
    position = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        mutated[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del mutated[position:]
    elif kind == "insert":
        mutated[position:position] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        mutated = data.draw(st.binary(max_size=300))
    try:
        loaded = ACKTR.load(io.BytesIO(bytes(mutated)))
    except CheckpointError:
        return
    # A byte that means nothing, such as one of a time stamp.
    assert_same_state(trained, loaded)


EXECUTED = []


class Payload:
    def __reduce__(self):
        return (EXECUTED.append, (1,))


def rebuilt(content, change):
    """The members of a file, changed, as a zip file again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    "name",
    ["data", "policy.pth", "pytorch_variables.pth", "../../evil.json", "/etc/evil.json", "a.pkl"],
)
def test_another_member_is_not_read(content, name):
    file = rebuilt(content, lambda members: members.update({name: pickle.dumps(Payload())}))
    with pytest.raises(UnsafeCheckpointError, match="does not name"):
        ACKTR.load(file)
    assert not EXECUTED


@pytest.mark.parametrize("name", ["data.json", "policy.json", "policy.safetensors", "manifest.json"])
def test_pickles_in_the_place_of_members(content, name):
    payload = pickle.dumps(Payload())
    with pytest.raises(CheckpointError):
        ACKTR.load(rebuilt(content, lambda members: members.update({name: payload})))

    def consistent(members):
        members[name] = payload
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    if name != "manifest.json":
        with pytest.raises(DamagedCheckpointError, match=name.split(".")[0]):
            ACKTR.load(rebuilt(content, consistent))
    assert not EXECUTED


def forge(files, manifest):
    import json

    body = json.loads(manifest)
    files = {key: value for key, value in files.items() if key != "manifest.json"}
    body["files"] = {k: {"size": len(v), "sha256": bundle._digest(v)} for k, v in files.items()}
    body.pop("checksum")
    body["checksum"] = bundle._digest(bundle._dump(body, sort_keys=True))
    return json.dumps(body).encode()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_who_forges_the_checksums_gets_no_further(content, data):
    """What the checksums let through is data alone: it is refused, or it is a model."""

    def change(members):
        name = data.draw(st.sampled_from([n for n in members if n.endswith((".json", ".safetensors"))]))
        member = bytearray(members[name])
        for _ in range(data.draw(st.integers(1, 3))):
            position = data.draw(st.integers(0, len(member) - 1))
            member[position : position + 1] = data.draw(st.binary(max_size=2))
        if name != "manifest.json":
            members[name] = bytes(member)
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    with contextlib.suppress(CheckpointError, ConfigurationError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ACKTR.load(rebuilt(content, change), device="cpu")
    assert not EXECUTED


def test_a_zip_bomb_is_not_opened(content):
    def compress(bomb):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as out:
            for name in archive.namelist():
                out.writestr(name, archive.read(name))
            if bomb:
                out.writestr("policy.bin", b"\0" * 10**7, zipfile.ZIP_DEFLATED)
        buffer.seek(0)
        return buffer

    ACKTR.load(compress(False))
    with pytest.raises(UnsafeCheckpointError, match="is compressed"):
        ACKTR.load(compress(True))


def test_numbers_that_no_machine_has_room_for(content):
    import json

    def change(members):
        data = json.loads(members["data.json"])
        data["n_steps"] = 10**14
        members["data.json"] = json.dumps(data).encode()
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    with pytest.raises(CheckpointError, match="No model can be built"):
        ACKTR.load(rebuilt(content, change))


@pytest.mark.parametrize("name", ["absent", "."])
def test_no_such_file(tmp_path, name):
    with pytest.raises(DamagedCheckpointError, match="give the path of a saved model"):
        ACKTR.load(tmp_path / name)


# Fault 18, and files of SB3's own -----------------------------------------------------------


def test_files_of_sb3_need_trust(tmp_path, trained):
    BaseAlgorithm.save(trained, tmp_path / "old")
    for load in (ACKTR.load, build().set_parameters):
        with pytest.raises(UnsafeCheckpointError, match="trust=True"):
            load(tmp_path / "old")
    loaded = ACKTR.load(tmp_path / "old", env=trained.env, trust=True)
    assert_same_state(trained, loaded)
    other = build(momentum=0.5)
    other.set_parameters(tmp_path / "old.zip", trust=True)
    assert_same_state(trained, other)
    A2C("MlpPolicy", small_env()).save(tmp_path / "a2c")
    with pytest.raises(UnsafeCheckpointError):
        ACKTR.load(tmp_path / "a2c")


def test_a_newer_version_is_refused(content):
    import json

    def change(members):
        body = json.loads(members["manifest.json"])
        body["version"] = 99
        members["manifest.json"] = json.dumps(body).encode()

    with pytest.raises(CheckpointVersionError, match="install a newer acktr"):
        ACKTR.load(rebuilt(content, change))
