"""Checkpoint directories: whole or not at all, the newest valid one found, every damage named."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acktr.errors import (
    CheckpointError,
    CheckpointVersionError,
    CheckpointWriteError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from acktr.files import bundle, durable
from acktr.files.bundle import MANIFEST, pack
from acktr.files.checkpoints import CheckpointStore, pack_checkpoint, read_checkpoint

COMPONENTS = {"policy": {"w": torch.arange(6.0)}, "learner": {"steps": 3, "name": "x"}}


def save(store, steps, score=None):
    return store.save(steps, pack_checkpoint(steps, COMPONENTS, {"score": score}))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def names(store):
    return [path.name for path in store.paths()]


def test_a_checkpoint_comes_back(store):
    path = save(store, 100)
    checkpoint, skipped = store.newest()
    assert (checkpoint.path, checkpoint.steps, skipped) == (path, 100, [])
    assert torch.equal(checkpoint.components["policy"]["w"], torch.arange(6.0))
    assert checkpoint.components["learner"] == COMPONENTS["learner"]
    assert CheckpointStore(store.path / "absent").newest() == (None, [])


def test_the_last_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    for steps, score in [(1, 0.0), (2, 9.0), (3, 1.0), (4, None), (5, 2.0)]:
        save(store, steps, score)
    assert [int(name[5:]) for name in names(store)] == [2, 4, 5]
    store.keep_best = 0
    save(store, 6, 3.0)
    assert [int(name[5:]) for name in names(store)] == [5, 6]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Fault 1 ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_moment_of_a_save(store):
    """A child saves, and is killed at its n-th change of the disk, for every n."""
    save(store, 1)
    outcomes = set()
    for moment in range(60):
        child = os.fork()
        if child == 0:
            _save_and_die(store, moment)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        checkpoint, skipped = store.newest()
        assert skipped == []  # what is half-written is never seen
        assert checkpoint.steps in (1, 2)
        outcomes.add(checkpoint.steps)
        store.clean()
        assert len(list(store.path.iterdir())) == len(store.paths())
        shutil.rmtree(store.path / "step-000000000002", ignore_errors=True)
        if not died:
            break
    assert outcomes == {1, 2}
    assert moment > 10


def _save_and_die(store, moment):
    try:
        left = moment

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        for name in ("fsync", "replace", "mkdir", "rename"):
            setattr(os, name, counted(getattr(os, name)))
        write = durable._write_and_sync
        durable._write_and_sync = counted(write)
        save(store, 2)
    finally:
        os._exit(0)


# Fault 2 ------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_checkpoint(store, monkeypatch):
    save(store, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointWriteError, match=r"step-000000000002.*No space left"):
        save(store, 2)
    assert names(store) == ["step-000000000001"]
    assert len(list(store.path.iterdir())) == 1, "nothing half-written stays"
    assert store.newest()[0].steps == 1


def test_a_limit_on_the_size_of_files(store):
    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = pack_checkpoint(2, {"policy": {"w": torch.zeros(100_000)}}, {})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(CheckpointWriteError, match="File too large"):
            store.save(2, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.newest()[0].steps == 1


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="could not be written"):
        save(CheckpointStore(tmp_path / "file" / "checkpoints"), 1)


# Faults 3 and 4 -----------------------------------------------------------------------------


def test_cut_off_at_any_length(store):
    save(store, 1)
    path = save(store, 2)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for length in sorted({*range(0, len(data), 1 + len(data) // 40), len(data) - 1}):
            file.write_bytes(data[:length])
            with pytest.raises(DamagedCheckpointError, match=str(path)):
                read_checkpoint(path)
            checkpoint, (reason,) = store.newest()
            assert checkpoint.steps == 1
            assert str(path) in reason
        file.write_bytes(data)
    assert read_checkpoint(path).steps == 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_is_named(store, data):
    path = save(store, 2)
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    if file.name == MANIFEST:
        with contextlib.suppress(CheckpointError):
            # White space between its values may change.
            checkpoint = read_checkpoint(path)
            assert torch.equal(checkpoint.components["policy"]["w"], torch.arange(6.0))
    else:
        with pytest.raises(DamagedCheckpointError, match=rf"{file.name} of {path}"):
            read_checkpoint(path)


def test_a_checksum_error_names_the_component(store):
    path = save(store, 1)
    file = path / "policy.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"policy\.safetensors of .* checksum"):
        read_checkpoint(path)
    with pytest.raises(DamagedCheckpointError, match=r"None of the 1 checkpoints .* can be used"):
        store.newest()


def test_a_file_of_another_size_is_not_even_read(store, monkeypatch):
    path = save(store, 1)
    with (path / "policy.safetensors").open("ab") as file:
        file.write(b"more")
    read, seen = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda self: (seen.append(self.name), read(self))[1])
    with pytest.raises(DamagedCheckpointError, match=r"policy\.safetensors of .* are expected"):
        read_checkpoint(path)
    assert "policy.safetensors" not in seen


def test_a_change_of_the_manifest_is_named(store):
    path = save(store, 7)
    manifest = (path / MANIFEST).read_text()
    assert manifest.count('"steps": 7') == 1
    (path / MANIFEST).write_text(manifest.replace('"steps": 7', '"steps": 6'))
    with pytest.raises(DamagedCheckpointError, match=r"manifest of .* does not have its checksum"):
        read_checkpoint(path)


def test_a_missing_file_or_manifest(store):
    path = save(store, 1)
    (path / "learner.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"learner\.json of .* is missing"):
        read_checkpoint(path)
    (path / MANIFEST).unlink()
    with pytest.raises(DamagedCheckpointError, match="not written to its end"):
        read_checkpoint(path)


# Fault 5 ------------------------------------------------------------------------------------


def rewrite_manifest(path, change):
    """Change a manifest as one would who knows how its checksum is made."""
    content = json.loads((path / MANIFEST).read_text())
    change(content)
    content.pop("checksum", None)
    content["checksum"] = bundle._digest(bundle._dump(content, sort_keys=True))
    (path / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd", "a/b.json", "x.pkl", "policy.pth", "", "..json", MANIFEST]
)
def test_a_manifest_names_no_other_file(store, name):
    path = save(store, 1)
    (store.path / "outside.json").write_text("{}")

    def change(content):
        content["files"][name] = content["files"].pop("learner.json")

    rewrite_manifest(path, change)
    with pytest.raises(UnsafeCheckpointError, match="none of a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["files"]["learner.json"].update(size=10**15),
        lambda content: content["files"]["learner.json"].update(size=-1),
        lambda content: content["files"]["learner.json"].update(size="many"),
        lambda content: content["files"]["learner.json"].update(sha256=None),
        lambda content: content.update(files=[]),
        lambda content: content.update(info=3),
        lambda content: content["info"].update(steps="x"),
        lambda content: content["files"].pop("learner.json") and None,
    ],
)
def test_a_lying_manifest(store, change):
    path = save(store, 1)
    rewrite_manifest(path, change)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError:
        return
    assert "learner" not in checkpoint.components  # what it does not name is not read


def test_links_lead_nowhere(store, tmp_path):
    path = save(store, 1)
    (path / "learner.json").rename(tmp_path / "elsewhere.json")
    (path / "learner.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DamagedCheckpointError, match="no plain file"):
        read_checkpoint(path)


def hostile(path, name, data):
    """Put other content into a file, with a manifest that agrees."""
    (path / name).write_bytes(data)

    def change(content):
        content["files"][name] = {"size": len(data), "sha256": bundle._digest(data)}

    rewrite_manifest(path, change)


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("policy.safetensors", (2**40).to_bytes(8, "little") + b"{}", DamagedCheckpointError),
        ("policy.safetensors", b"\x80\x04K\x01.", DamagedCheckpointError),
        ("policy.safetensors", b"", DamagedCheckpointError),
        ("learner.json", b"[" * 200_000, DamagedCheckpointError),
        ("learner.json", b"\xff\xfe", DamagedCheckpointError),
        ("learner.json", b"1" * 5000, DamagedCheckpointError),
        ("learner.json", b'{"$": "class", "name": "os.system"}', DamagedCheckpointError),
        ("learner.json", b'{"$": "missing", "type": "x"}', CheckpointError),
    ],
)
def test_hostile_content(store, name, data, error):
    path = save(store, 1)
    hostile(path, name, data)
    with pytest.raises(error):
        read_checkpoint(path)


def test_a_huge_header_is_not_read(store, monkeypatch):
    path = save(store, 1)
    monkeypatch.setattr(bundle, "MAX_TENSOR_HEADER", 10)
    with pytest.raises(UnsafeCheckpointError, match=r"policy\.safetensors .* header of \d+ bytes"):
        read_checkpoint(path)
    monkeypatch.setattr(bundle, "MAX_JSON", 2)
    with pytest.raises(UnsafeCheckpointError, match=r"\.json of .* is larger"):
        read_checkpoint(path)


# Fault 18 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "message"),
    [(bundle.VERSION + 1, "install a newer acktr"), (0, "no longer reads"), ("1", "newer")],
)
def test_other_versions_are_refused(store, version, message):
    save(store, 1)
    path = save(store, 2)
    rewrite_manifest(path, lambda content: content.update(version=version))
    # Not skipped: it is not damaged, and an older one would lose what it holds.
    with pytest.raises(CheckpointVersionError, match=message):
        store.newest()


def test_an_older_version_is_migrated(store, monkeypatch):
    path = save(store, 1)
    monkeypatch.setattr(bundle, "VERSION", bundle.VERSION + 1)
    older = bundle.VERSION - 1
    monkeypatch.setitem(bundle.MIGRATIONS, older, lambda components, where: {**components, "of": where})
    assert read_checkpoint(path).components["of"] == str(path)


def test_a_model_is_no_checkpoint(store):
    path = save(store, 1)
    (path / MANIFEST).write_bytes(pack("model", {}, {})[MANIFEST])
    with pytest.raises(CheckpointVersionError, match="acktr-model"):
        read_checkpoint(path)
