"""A full disk, or a place that cannot be written, at any file of a run: a sentence, or on without it."""

import errno
import os
import subprocess
import sys
import threading
import warnings

import pytest

from acktr.cli import main
from acktr.errors import CheckpointWriteError, ConfigurationError, DivergenceError
from acktr.files import durable
from acktr.files.durable import WriteErrors
from acktr.files.lock import Lock
from acktr.run.directory import Run
from acktr.run.tables import Table
from acktr.run.tensorboard import TensorBoard
from tests.helpers.runs import QUICK, TOY, new, rows, train

WRITERS = (
    "episodes.csv", "evaluations.csv", "progress.csv", "tensorboard", "evaluations.npz",
    "best_model.zip", "step-000000000064", "model.zip", "result.json", "learning_curve.png",
)  # fmt: skip


@pytest.fixture
def full(monkeypatch):
    """Makes the disk full for files of one name: what is made in one go, and what is appended to."""

    def fill(*names):
        create, write = durable._write_and_sync, os.write

        def no_room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def checked(path, data):
            parts = (part.strip(".").rsplit(f".{os.getpid()}")[0] for part in path.parts)
            if not set(names).isdisjoint(parts):
                no_room()
            create(path, data)

        def appended(descriptor, data):
            if os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) in names:
                write(descriptor, data[:3])
                no_room()
            return write(descriptor, data)

        monkeypatch.setattr(durable, "_write_and_sync", checked)
        monkeypatch.setattr("acktr.run.tables.os.write", appended)
        if "tensorboard" in names:
            writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
            monkeypatch.setattr(writer.RecordWriter, "flush", lambda self: no_room())

    return fill


pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of descriptors")


@pytest.mark.parametrize("name", WRITERS)
def test_one_sentence_where_it_stops(tmp_path, full, name, capfd):
    path = new(tmp_path)
    full(name)
    with pytest.raises(CheckpointWriteError, match="No space left on device") as caught:
        train(path, TOY, *QUICK, "n_final_eval_episodes=1")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "names", [WRITERS, WRITERS[:1], WRITERS[6:7]], ids=["all", "table", "checkpoint"]
)
def test_training_goes_on_where_it_may(tmp_path, full, names, capfd):
    path = new(tmp_path)
    full(*names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = train(path, TOY, *QUICK, "on_checkpoint_error=continue", "n_final_eval_episodes=1")
    messages = [str(warning.message) for warning in caught]
    assert all("No space left on device" in text and "Training goes on." in text for text in messages)
    for name in names:
        own = [text for text in messages if f"/{name} " in text]
        assert len(own) == 1, name
    assert model.num_timesteps == 160
    others = {"model.zip", "result.json", "learning_curve.png", "evaluations.npz", "best_model.zip"}
    assert others - set(names) <= {file.name for file in path.iterdir()}
    assert "Traceback" not in capfd.readouterr().err


def append_thrice(table):
    for _ in range(3):
        table.append((33333, 44444))


def test_no_half_of_a_row_stays_and_rows_come_back(tmp_path, full, monkeypatch):
    table = Table(tmp_path / "episodes.csv", ("a", "b"), errors=WriteErrors(goes_on=True))
    table.append((1, 2))
    full("episodes.csv")
    with pytest.warns(UserWarning, match=r"Training goes on\. Rows are missing from now on") as caught:
        append_thrice(table)
    assert len(caught) == 1
    monkeypatch.undo()
    table.append((5, 6))
    table.close()
    assert (tmp_path / "episodes.csv").read_text() == "a,b\n1,2\n5,6\n"
    assert table.rows == 2


def test_a_table_that_could_not_be_made_loses_no_earlier_rows(tmp_path, full, monkeypatch):
    path = tmp_path / "episodes.csv"
    path.write_text("a,b\n1,2\n")
    full("episodes.csv")
    with pytest.warns(UserWarning, match="No space left"):
        table = Table(path, ("a", "b"), 1, WriteErrors(goes_on=True))
    table.append((3, 4))
    assert path.read_text() == "a,b\n1,2\n"
    monkeypatch.undo()
    table.append((5, 6))
    table.close()
    assert path.read_text() == "a,b\n1,2\n5,6\n"


@pytest.mark.parametrize("name", ["config.yaml", "versions.json"])
@pytest.mark.parametrize("reaction", ["stop", "continue"])
def test_a_run_does_not_begin_without_its_configuration(tmp_path, full, name, reaction):
    path = new(tmp_path)
    full(name)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        train(path, TOY, *QUICK, f"on_checkpoint_error={reaction}")
    assert not (path / "config.yaml").exists()
    assert not (path / "episodes.csv").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_directory_without_a_lock(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("acktr.files.lock.os.open", refuse)
    with pytest.raises(CheckpointWriteError, match=r"run\.lock could not be written"):
        Lock(tmp_path / "run.lock").__enter__()


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("acktr.run.directory.os.access", lambda path, mode: False)
    with pytest.raises(ConfigurationError, match="cannot be written: give another directory"):
        Run.create("x", tmp_path)


def test_a_diverged_model_that_cannot_be_written(tmp_path, full):
    path = new(tmp_path)
    full("model.zip")
    with pytest.raises(DivergenceError, match=r"is lost: .*model\.zip could not be written"):
        train(path, "tests.helpers.toy_envs:Broken-v0", *QUICK, "eval_interval=0")


def test_the_thread_of_tensorboard_leaves_it_to_its_caller(tmp_path, monkeypatch):
    records = pytest.importorskip("tensorboard.summary.writer.record_writer")
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    writer = TensorBoard(tmp_path / "tensorboard")
    before = {*threading.enumerate()}

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.RecordWriter, "write", full)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        writer.write({"a": 1.0}, {"a": ()}, 1)
    assert len(before - {*threading.enumerate()}) == 1  # the thread has ended
    assert raised == []
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [ZeroDivisionError]


def test_tensorboard_is_told_once(tmp_path, full):
    pytest.importorskip("tensorboard")
    writer = TensorBoard(tmp_path / "first", errors=WriteErrors(goes_on=True))
    full("tensorboard")
    with pytest.warns(UserWarning, match="Nothing more is written there") as caught:
        writer.write({"a": 1.0}, {"a": ()}, 0)
    assert len(caught) == 1
    writer.write({"a": 1.0}, {"a": ()}, 1)
    writer.close()


@pytest.mark.parametrize("name", ["episodes.csv", "model.zip"])
@pytest.mark.parametrize("reaction", ["stop", "continue"])
def test_exit_codes(tmp_path, full, name, reaction, capsys):
    full(name)
    arguments = ["train", TOY, "--steps", "64", "--no-progress", "--out", str(tmp_path / "run"), "--set"]
    arguments += ["n_envs=2", "n_steps=8", "n_eval_episodes=1", f"on_checkpoint_error={reaction}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(arguments)
    captured = capsys.readouterr()
    if reaction == "stop":
        assert code == 4
        assert captured.err.splitlines()[-1].startswith(f"acktr: {tmp_path / 'run' / name} could not be")
    else:
        assert code == (4 if name == "model.zip" else 0)
        assert captured.out.startswith("Done after 64 steps")
        assert ("not written" in captured.out) == (name == "model.zip")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from acktr.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("reaction", ["stop", "continue"])
def test_a_limit_on_the_size_of_files(tmp_path, reaction):
    command = [sys.executable, "-c", LIMITED, "train", "CartPole-v1", "--steps", "4000", "--no-progress"]
    command += ["--out", str(tmp_path / "run"), "--set", "n_envs=2", f"on_checkpoint_error={reaction}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 4
    assert "Traceback" not in ended.stderr
    assert "File too large" in ended.stderr
    if reaction == "continue":
        assert ended.stdout.startswith("Done after 4,")
        assert len(rows(tmp_path / "run" / "episodes.csv")) > 3
