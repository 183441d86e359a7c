"""The csv files of a run: rows that are kept, rows that are dropped, columns that come later."""

import csv

import pytest

from acktr.errors import ConfigurationError
from acktr.files.lock import Lock
from acktr.run.tables import ProgressTable, RunLogger, Table


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("tail", ["", "5,6\n", "5,6\n7", "5"])
def test_rows_after_a_checkpoint_are_dropped(tmp_path, tail):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,4\n" + tail)
    table = Table(path, ("a", "b"), keep=2)
    table.append((8, 9))
    table.close()
    assert (table.rows, read(path)) == (3, [["a", "b"], ["1", "2"], ["3", "4"], ["8", "9"]])
    Table(path, ("a", "b")).close()
    assert read(path) == [["a", "b"]]


def test_new_keys_become_columns(tmp_path):
    path = tmp_path / "progress.csv"
    logger = RunLogger(str(tmp_path), [ProgressTable(path)])
    logger.record("b", 1)
    logger.dump(1)
    logger.record("b", 2)
    logger.record("a", "x,y")
    logger.record("hidden", 3, exclude="csv")
    logger.dump(2)
    logger.close()
    assert read(path) == [["b", "a"], ["1", ""], ["2", "x,y"]]
    logger = RunLogger(str(tmp_path), [ProgressTable(path, keep=1)], iterations=4)
    logger.record("time/iterations", 1)
    logger.dump(3)
    logger.close()
    assert read(path) == [["b", "a", "time/iterations"], ["1", "", ""], ["", "", "5"]]


def test_a_lock_is_free_after_its_holder(tmp_path):
    path = tmp_path / "run.lock"
    with Lock(path), pytest.raises(ConfigurationError, match="in use"), Lock(path):
        pass
    with Lock(path):
        pass
