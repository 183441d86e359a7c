"""Saved models that were damaged, forged or made by others: nothing in them is ever executed."""

import contextlib
import io
import json
import pickle
import warnings
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm

from acktr import ACKTR, Natural
from acktr.errors import (
    CheckpointError,
    CheckpointVersionError,
    CheckpointWriteError,
    ConfigurationError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from tests.golden.make import HERE, answers
from tests.helpers.masked_envs import Strict
from tests.helpers.saved_models import NET, assert_same_state, build, forge, rebuilt
from tests.helpers.small_envs import small_env

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


@pytest.fixture(scope="module")
def content_of_others():
    """Files of a policy that remembers, and of one with masks."""
    small = {"policy_kwargs": {**NET, "lstm_hidden_size": 4}}
    strict = small_env("Discrete", n_envs=2, cls=Strict)
    masked = ACKTR("MlpPolicy", strict, n_steps=8, seed=0, device="cpu", policy_kwargs=NET)
    files = []
    for model in (build(policy="MlpLstmPolicy", **small), masked):
        files.append(io.BytesIO())
        model.learn(16).save(files[-1])
    return [file.getvalue() for file in files]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_who_forges_the_checksums_gets_no_further(content, content_of_others, data):
    """What the checksums let through is data alone: it is refused, or it is a model."""
    content = data.draw(st.sampled_from([content, *content_of_others]))

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


def test_a_member_larger_than_its_file_is_not_read(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
        # As members that lie over each other claim to: together more than there is.
        out.filelist[-1].file_size = out.filelist[-1].compress_size = 2**30
    buffer.seek(0)
    with pytest.raises(UnsafeCheckpointError, match="claims to hold more"):
        ACKTR.load(buffer)


def test_numbers_that_no_machine_has_room_for(content):
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
    other = build(natural=Natural(kfac_kwargs={"momentum": 0.5}))
    other.set_parameters(tmp_path / "old.zip", trust=True)
    assert_same_state(trained, other)
    A2C("MlpPolicy", small_env()).save(tmp_path / "a2c")
    with pytest.raises(UnsafeCheckpointError):
        ACKTR.load(tmp_path / "a2c")


def test_files_of_sb3_from_before_values_were_normalised(tmp_path):
    def forget(members):
        data = json.loads(members["data"])
        del data["normalize_value_targets"]
        members["data"] = json.dumps(data).encode()

    content = (HERE / "model-pickled.zip").read_bytes()
    (tmp_path / "old.zip").write_bytes(rebuilt(content, forget).read())
    loaded = ACKTR.load(tmp_path / "old", trust=True)
    assert loaded.critic.normalize_targets is False
    assert answers(loaded) == answers(ACKTR.load(HERE / "model-pickled.zip", trust=True))


class Somewhere:
    """A path that is none of pathlib's."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_files_of_sb3_may_lie_at_any_kind_of_path(tmp_path, trained):
    BaseAlgorithm.save(trained, tmp_path / "old.zip")
    path = Somewhere(tmp_path / "old.zip")
    assert_same_state(trained, ACKTR.load(path, env=trained.env, trust=True))
    other = build(natural=Natural(kfac_kwargs={"momentum": 0.5}))
    other.set_parameters(path, trust=True)
    assert_same_state(trained, other)


def test_a_newer_version_is_refused(content):
    def change(members):
        body = json.loads(members["manifest.json"])
        body["version"] = 99
        members["manifest.json"] = json.dumps(body).encode()

    with pytest.raises(CheckpointVersionError, match="install a newer acktr"):
        ACKTR.load(rebuilt(content, change))
