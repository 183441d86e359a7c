"""What is written is on the disk before it takes the place of what was there."""

import os

import pytest

from acktr.files import durable


@pytest.fixture
def calls(monkeypatch):
    """What is synchronised and what is put in its place, in this order, by name."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source, target):
        calls.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return calls


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of descriptors")


@linux
def test_a_file_is_on_the_disk_before_it_is_in_its_place_and_its_name_after(tmp_path, calls):
    durable.write_file(tmp_path / "model.zip", b"x")
    (what, name), *rest = calls
    assert what == "sync"
    assert name.startswith(".model.zip.")
    assert rest == [("replace", "model.zip"), ("sync", tmp_path.name)]


@linux
def test_a_directory_is_on_the_disk_with_all_its_files_before_it_is_in_its_place(tmp_path, calls):
    durable.write_directory(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert calls[:2] == [("sync", "a"), ("sync", "b")]
    assert calls[2][0] == "sync"
    assert calls[2][1].startswith(".new.")
    assert calls[3:] == [("replace", "new"), ("sync", tmp_path.name)]


@linux
def test_what_grew_is_brought_onto_the_disk(tmp_path, calls):
    path = tmp_path / "episodes.csv"
    durable.sync_file(path)
    assert calls == []
    path.write_bytes(b"x")
    durable.sync_file(path)
    assert calls == [("sync", "episodes.csv")]
