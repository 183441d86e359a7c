"""What lies in a run directory from somebody else: nothing outside of it is written to or deleted."""

import os
import shutil
from pathlib import Path

import pytest

from acktr.compare.runner import run_trials
from acktr.compare.store import Store
from acktr.compare.trial import Trial
from acktr.errors import UnsafeCheckpointError
from acktr.files.checkpoints import CheckpointStore
from acktr.files.durable import create_file, open_plain, write_directory, write_file
from acktr.files.lock import Lock
from acktr.run.directory import Run
from acktr.run.figures import plot_learning_curve, plot_runs
from acktr.run.play import record
from tests.helpers.runs import QUICK, TOY, train

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no links and pipes"),
    pytest.mark.usefixtures("no_pictures"),
]

SECRET = b"not to be touched"
KINDS = ("link", "nothing", "hard link", "pipe")


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "victim"
    path.write_bytes(SECRET)
    return path


def plant(path, kind, victim):
    """Put something in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        path.symlink_to(victim if kind == "link" else victim.with_name("absent"))


def untouched(victim):
    return victim.read_bytes() == SECRET and [p.name for p in victim.parent.iterdir()] == ["victim"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_put_in_the_place_of_whatever_is_there(tmp_path, victim, kind):
    for name in ("file", f".file.{os.getpid()}"):
        plant(tmp_path / name, kind, victim)
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    plant(tmp_path / "log", kind, victim)
    with create_file(tmp_path / "log") as file:
        file.write(b"new")
    assert untouched(victim)
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "file", "log"}


@pytest.mark.parametrize(
    "name",
    ["new", f".new.{os.getpid()}", f".new.removed.{os.getpid()}"],
    ids=["itself", "temporary", "removed"],  # the same in each process of a test run
)
def test_a_directory_too(tmp_path, victim, name):
    (tmp_path / "new").mkdir()
    if name == "new":
        (tmp_path / "new").rmdir()
    (tmp_path / name).symlink_to(victim.parent)
    if "removed" in name:
        with pytest.raises(OSError, match="Not a directory"):
            write_directory(tmp_path / "new", {"a": b"1"})
    else:
        write_directory(tmp_path / "new", {"a": b"1"})
        assert (tmp_path / "new" / "a").read_bytes() == b"1"
    assert untouched(victim)


def test_only_files_are_read(tmp_path, victim):
    plant(tmp_path / "pipe", "pipe", victim)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(OSError, match=r"no plain file|directory"):
            open_plain(path)
    with open_plain(victim) as file:
        assert file.read() == SECRET


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock(tmp_path, victim, kind):
    plant(tmp_path / "run.lock", kind, victim)
    if kind == "hard link":
        with Lock(tmp_path / "run.lock"):
            pass
    else:
        with pytest.raises(UnsafeCheckpointError, match=r"run\.lock is a link or no plain file"):
            Lock(tmp_path / "run.lock").__enter__()
    assert untouched(victim)


WRITTEN = (
    "learning_curve.png", "evaluations.npz", "evaluations.csv", "episodes.csv", "progress.csv",
    "model.zip", "best_model.zip", "result.json", "versions.json", "vecnormalize.json",
    ".vecnormalize.json", ".model.zip", "episode.mp4", ".config.yaml",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_writes_nothing_elsewhere(copy, victim, kind, monkeypatch):
    monkeypatch.setattr("acktr.run.training.plot_learning_curve", plot_learning_curve)
    for name in WRITTEN:
        plant(copy / name, kind, victim)
        plant(copy / f".{name}.{os.getpid()}", kind, victim)
    victim.write_bytes(SECRET)
    _, told = train(copy, TOY, *QUICK, "n_timesteps=192", resume=True)
    assert "cannot be read" in told[-1]
    assert untouched(victim)
    for name in ("model.zip", "learning_curve.png", "evaluations.npz", "progress.csv"):
        assert (copy / name).is_file()
        assert not (copy / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
@pytest.mark.parametrize("resume", [False, True])
def test_linked_directories_are_refused(copy, victim, name, resume):
    other = victim.parent / "other"
    (copy / name).rename(other) if (copy / name).exists() else other.mkdir()
    (copy / name).symlink_to(other)
    if not resume:
        for path in list(copy.iterdir()):
            if path.name != name:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if name == "checkpoints":
            shutil.rmtree(other)
            other.mkdir()
    before = sorted(path.name for path in other.rglob("*"))
    with pytest.raises(UnsafeCheckpointError, match=f"{name} is a link") as caught:
        train(copy, TOY, *QUICK, "n_timesteps=192", resume=resume)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in other.rglob("*")) == before


def test_pruning_stays_in_the_run(tmp_path, victim):
    other = CheckpointStore(victim.parent / "checkpoints")
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1, keep_best=0)
    other.save(1, {"manifest.json": b"{}"})
    store.save(2, {"manifest.json": b"{}"})
    (store.path / "step-000000000001").symlink_to(other.path / "step-000000000001")
    (store.path / ".step-000000000001").symlink_to(other.path)
    store.clean()
    store.save(3, {"manifest.json": b"{}"})
    assert [path.name for path in store.path.iterdir()] == ["step-000000000003"]
    assert (other.path / "step-000000000001" / "manifest.json").exists()
    store.path.rename(tmp_path / "away")
    store.path.symlink_to(other.path)
    for touch in (
        store.clean,
        store.newest,
        lambda: store.save(4, {}),
        lambda: store.set_aside_after(0),
    ):
        with pytest.raises(UnsafeCheckpointError, match="checkpoints is a link"):
            touch()
    assert [path.name for path in other.path.iterdir()] == ["step-000000000001"]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_films(copy, victim, kind, monkeypatch):
    for name in ("a.png", "episode.mp4"):
        plant(copy / name, kind, victim)
    plot_runs([Run(copy)], copy / "a.png")
    for name in ("check_film_packages", "prepare_rendering"):
        monkeypatch.setattr(f"acktr.run.play.{name}", lambda: None)

    class Env:
        close = staticmethod(lambda: None)

    def load(*args, wrapper, **kwargs):
        (path,) = (c.cell_contents for c in wrapper.__closure__ if isinstance(c.cell_contents, Path))
        path.write_bytes(b"film")
        return None, Env()

    monkeypatch.setattr("acktr.run.play.load_player", load)
    monkeypatch.setattr("acktr.run.play.play", lambda *args: None)
    record(Run(copy))
    assert (copy / "episode.mp4").read_bytes() == b"film"
    assert untouched(victim)


# acktr compare -----------------------------------------------------------------------------------

TRIAL = Trial("CartPole-v1", "a2c", 0, 64, "a2c", eval_episodes=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store(tmp_path, victim, kind):
    store = Store(tmp_path / "out")
    store.prepare()
    trials = tmp_path / "out" / "trials"
    plant(trials / ".gitignore", kind, victim)
    store.prepare()
    assert (trials / ".gitignore").read_text() == "*\n"
    plant(trials / "store.lock", kind, victim)
    if kind == "hard link":
        with store.lock("store") as free:
            assert free
    else:
        with pytest.raises(UnsafeCheckpointError, match=r"store\.lock is a link"), store.lock("store"):
            pass
    assert untouched(victim)


@pytest.mark.parametrize("name", ["trials", "curves", "settings", f"trials/{TRIAL.key}"])
def test_linked_directories_of_a_store_are_refused(tmp_path, victim, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(victim.parent)
    with pytest.raises(UnsafeCheckpointError, match="is a link"):
        run_trials([TRIAL], Store(tmp_path / "out"), [None], command="")
    assert untouched(victim)


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_of_a_trial(tmp_path, victim, kind, monkeypatch):
    store = Store(tmp_path / "out")
    store.prepare()
    store.folder(TRIAL).mkdir()
    for name in ("log.txt", "trial.json"):
        plant(store.folder(TRIAL) / name, kind, victim)
    monkeypatch.setattr("acktr.compare.runner.can_go_on", lambda *args: True)
    monkeypatch.setattr("acktr.compare.runner._PROGRAM", ("echo",))
    assert len(run_trials([TRIAL], store, [None], command="").failed) == 1
    assert (store.folder(TRIAL) / "log.txt").read_text().endswith("trial.json\n")
    assert untouched(victim)
