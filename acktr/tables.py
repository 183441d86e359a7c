"""The csv files of a run: complete on disk after each row, and cut back to a checkpoint at a resume."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)

from acktr.checkpoint.durable import sync_file, write_file
from acktr.errors import CheckpointError


class Table:
    """A csv file that grows by a row at a time and is complete on disk after each.

    :param path: the file
    :param columns: the header
    :param keep: rows to keep of a file that is there; later ones, and half a one, are dropped
    """

    def __init__(self, path: Path, columns: Sequence[str], keep: int = 0) -> None:
        self.path = path
        self.columns = list(columns)
        self.rows = 0
        self._begin(_read_rows(path, columns, keep))

    def _begin(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *rows])
        # Whole or not at all: a process may be killed while it writes.
        write_file(self.path, text.getvalue().encode())
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self.rows = len(rows)

    def append(self, row: Sequence[Any]) -> None:
        """Write one row."""
        self._writer.writerow(row)
        self._file.flush()
        self.rows += 1

    def sync(self) -> None:
        """Bring all rows onto the disk."""
        sync_file(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProgressTable(Table, KVWriter):
    """The logger's values, one row a dump; a new key becomes a new column.

    :param path: the file
    :param keep: as for :class:`Table`
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        super().__init__(path, _read_header(path) if keep else [], keep)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the values of one dump."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        new = sorted(values.keys() - self.columns)
        if new:
            self.close()
            rows = _read_rows(self.path, self.columns, self.rows)
            self.columns += new
            self._begin([[*row, *[""] * len(new)] for row in rows])
        self.append([values.get(key, "") for key in self.columns])


class RunLogger(Logger):
    """A logger that goes on counting the iterations where a resumed run left off.

    :param folder: the run directory
    :param outputs: what it writes to
    :param iterations: so many were made before
    """

    def __init__(self, folder: str, outputs: list[KVWriter], iterations: int = 0) -> None:
        super().__init__(folder, outputs)
        self._iterations = iterations

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        """Log a value once for each iteration."""
        super().record(key, value + self._iterations if key == "time/iterations" else value, exclude)


class TensorBoard(TensorBoardOutputFormat):
    """Writes for TensorBoard; after a resume what was written beyond the checkpoint is hidden.

    :param folder: the directory
    :param steps: those of the checkpoint; ``None`` for a new run
    """

    def __init__(self, folder: str, steps: int | None = None) -> None:
        super().__init__(folder)
        if steps is not None:
            self.writer.close()
            self.writer = type(self.writer)(folder, purge_step=steps + 1)


def read_table(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read a csv file of numbers.

    :param path: the file; one that does not exist is an empty table
    :param columns: the header that it must have
    :raises CheckpointError: if it is damaged
    """
    if not path.exists():
        return {name: np.zeros(0) for name in columns}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [[float(row[name]) for name in columns] for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): restore it, or train again.") from error
    return dict(zip(columns, np.asarray(rows).reshape(-1, len(columns)).T, strict=True))


def _read_header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), [])


def _read_rows(path: Path, columns: Sequence[str], count: int) -> list[list[str]]:
    """Read the first rows of a table; fewer, if it has fewer whole ones with this header."""
    if count == 0 or not path.exists() or _read_header(path) != list(columns):
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))[1 : count + 1]
    return [row for row in rows if len(row) == len(columns)]
