"""Run directories that have lost something: refused with nothing touched, or read as far as it goes."""

import shutil

import pytest

from acktr.cli import main
from acktr.errors import CheckpointError, ConfigurationError
from acktr.run.directory import EPISODE_COLUMNS, Run, refuse_remains, refuse_run
from acktr.run.tables import Kept, ProgressTable, Table, read_table
from tests.helpers.runs import QUICK, TOY, content, new, rows, train

pytestmark = pytest.mark.usefixtures("no_pictures")


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


# What is gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["result.json", "model.zip", "progress.csv"])
def test_a_run_without_its_checkpoints_is_not_begun_anew(copy, evidence):
    delete(copy / "checkpoints")
    for name in {"result.json", "model.zip"} - {evidence}:
        delete(copy / name)
    before = content(copy)
    message = rf"has lost its checkpoints, of which {evidence} tells.*--out"
    with pytest.raises(CheckpointError, match=message) as caught:
        train(copy, TOY, *QUICK, resume=True)
    assert content(copy) == before
    assert "\n" not in str(caught.value)


def test_a_run_killed_before_its_first_checkpoint_has_rows_and_begins_anew(tmp_path, monkeypatch):
    path = new(tmp_path)
    monkeypatch.setattr("acktr.run.saver.Saver._on_step", lambda saver: saver.n_calls < 70 or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(path, TOY, *QUICK, "checkpoint_steps=null")
    monkeypatch.undo()
    assert len(rows(path / "progress.csv")) > 2
    assert (path / "best_model.zip").exists()
    model, told = train(path, TOY, *QUICK, "checkpoint_steps=null", resume=True)
    assert told == [f"{path} has no checkpoint yet: training begins anew."]
    assert model.num_timesteps == 160


@pytest.mark.parametrize("left", ["all", "checkpoints", "model.zip", "episodes.csv", "result.json"])
def test_a_run_without_its_configuration_is_left_alone(copy, left):
    for file in copy.iterdir():
        if file.name == "config.yaml" or left not in ("all", file.name):
            delete(file)
    with pytest.raises(CheckpointError, match=r"what is left of a run .* without its config\.yaml"):
        refuse_remains(copy)
    for refuse in (refuse_run, lambda path: Run.create(TOY, path)):
        with pytest.raises(ConfigurationError, match=r"what is left of a run .*--out"):
            refuse(copy)


@pytest.mark.parametrize("resume", [False, True])
def test_it_is_refused_before_anything_is_touched(copy, resume):
    for name in ("config.yaml", "run.lock"):
        delete(copy / name)
    before = content(copy)
    with pytest.raises((CheckpointError, ConfigurationError), match="what is left of a run"):
        train(copy, TOY, *QUICK, resume=resume)
    assert content(copy) == before
    assert not (copy / "run.lock").exists()


def test_what_has_not_begun_is_no_run(tmp_path):
    for name in ("run.lock", "versions.json", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    refuse_run(tmp_path)
    refuse_remains(tmp_path)


def test_on_the_command_line_too(tmp_path, finished, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        shutil.copytree(finished, tmp_path / f"runs/tests.helpers.toy_envs-Toy-v0-{number}")
    second = tmp_path / "runs/tests.helpers.toy_envs-Toy-v0-2"
    (second / "config.yaml").unlink()
    before = content(tmp_path)
    out = ["--out", str(second)]
    for given, code in ((["--resume"], 4), ([*out, "--resume"], 4), (out, 2)):
        assert main(["train", TOY, "--steps", "16", *given]) == code
        assert "without its config.yaml" in capsys.readouterr().err.splitlines()[-1]
    assert content(tmp_path) == before


# Tables ------------------------------------------------------------------------------------------

HARMLESS = {
    "nothing": lambda data: data,
    "mark": lambda data: b"\xef\xbb\xbf" + data,
    "renamed": lambda data: data.replace(b"steps", b"step", 1),
    "zeros": lambda data: data + b"\0" * 5000,
    "lines of zeros": lambda data: data.replace(b"\n", b"\n\0\0\n"),
    "ends of lines": lambda data: data.replace(b"\n", b"\r\n"),
    "no last end": lambda data: data.rstrip(b"\n"),
    "empty lines": lambda data: data.replace(b"\n", b"\n\n"),
}


def damage_middle(data):
    lines = data.splitlines(keepends=True)
    lines[2] = b'x"\xff,\n'
    return b"".join(lines)


HARMFUL = {
    "a row": damage_middle,
    "a quote": lambda data: data.replace(b"\n", b'\n"', 1),
    "half": lambda data: data[: len(data) // 2],
    "no data": lambda data: b"",
    "zeros": lambda data: b"\0" * len(data),
    "zeros inside": lambda data: data[:60] + b"\0" * 60 + data[120:],
    "another": lambda data: b"a,b\n1,2\n",
    "one line": lambda data: b"x" * 2**21,
}
COLUMNS = {
    "episodes.csv": EPISODE_COLUMNS,
    "progress.csv": ("time/total_timesteps", "train/kl", "steps"),
}


def make(path, name, n_rows):
    table = Table(path / name, COLUMNS[name])
    for i in range(n_rows):
        table.append([10 * i, *[f"{i}.5"] * (len(COLUMNS[name]) - 1)])
    table.close()
    return path / name


def keep(path, count):
    kept = Kept(count, 10 * (count - 1), COLUMNS[path.name])
    if path.name == "progress.csv":
        table = ProgressTable(path, kept)
    else:
        table = Table(path, COLUMNS[path.name], kept)
    table.close()
    return table


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS)
def test_a_table_that_can_be_read_loses_nothing(tmp_path, name, damage):
    path = make(tmp_path, name, 100)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    table = keep(path, 100)
    assert (table.problem, table.rows) == (None, 100)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("damage", HARMFUL.values(), ids=HARMFUL)
def test_rows_that_are_gone_are_named_and_the_others_kept(tmp_path, name, damage):
    path = make(tmp_path, name, 120)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    table = keep(path, 100)
    gone = 100 - table.rows
    assert gone > 0
    assert table.problem.startswith(f"{gone} of 100 rows of {name} cannot be read")
    lines = path.read_bytes().splitlines()
    assert set(lines) <= set(whole.splitlines()[:101])
    assert (tmp_path / f"unusable-{name}").read_bytes() == damage(whole)
    # A second time does not overwrite the first.
    path.write_bytes(damage(whole))
    assert f"unusable-2-{name}" in keep(path, 100).problem


def test_a_table_that_is_gone_is_named(tmp_path):
    table = keep(tmp_path / "episodes.csv", 7)
    assert table.problem == "7 of 7 rows of episodes.csv cannot be read"


def test_columns_are_found_by_name(tmp_path):
    path = make(tmp_path, "episodes.csv", 3)
    path.write_text("env,steps,length,new,return,seconds\n0,10,3,x,2,1\n")
    assert keep(path, 1).problem is not None  # of a later step than the checkpoint
    path.write_text("env,steps,length,new,return,seconds\n0,0,3,x,2,1\n")
    assert keep(path, 1).rows == 1
    assert path.read_text() == "steps,return,length,seconds,env\n0,2,3,1,0\n"


def test_a_resumed_run_says_what_is_gone_once(copy, finished):
    for name in ("episodes.csv", "evaluations.csv", "progress.csv"):
        (copy / name).write_bytes(damage_middle((copy / name).read_bytes()))
    _, told = train(copy, TOY, *QUICK, "n_timesteps=192", resume=True)
    assert "exactly" not in told[-1]
    for name in ("episodes.csv", "evaluations.csv", "progress.csv"):
        assert f"rows of {name} cannot be read" in told[-1]
        assert [row for row in rows(finished / name) if row not in rows(copy / name)]
    *_, last = rows(finished / "episodes.csv")
    assert last in rows(copy / "episodes.csv")
    # The next checkpoint knows what there is.
    _, told = train(copy, TOY, *QUICK, "n_timesteps=192", resume=True)
    assert told[-1].endswith("exactly, environments included.")


@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS)
def test_a_table_is_read_as_it_was_written(tmp_path, damage):
    path = make(tmp_path, "episodes.csv", 20)
    path.write_bytes(damage(path.read_bytes()))
    if b"step," in path.read_bytes():
        with pytest.raises(CheckpointError, match=r"episodes\.csv is damaged \('steps'"):
            read_table(path, EPISODE_COLUMNS)
    else:
        assert read_table(path, EPISODE_COLUMNS)["steps"].tolist() == list(range(0, 200, 10))


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    path = make(tmp_path, "episodes.csv", 2)
    path.write_bytes(path.read_bytes() + b"20,3")
    assert read_table(path, EPISODE_COLUMNS)["steps"].tolist() == [0, 10]


@pytest.mark.parametrize("damage", HARMFUL.values(), ids=HARMFUL)
def test_plots_of_damaged_tables(copy, damage, capsys):
    (copy / "episodes.csv").write_bytes(damage((copy / "episodes.csv").read_bytes()))
    code = main(["plot", str(copy), "--out", str(copy / "a.png")])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) in ((0, 0), (4, 1), (2, 1))
    assert code == 0 or "episodes.csv is damaged" in error or "has finished an episode" in error
