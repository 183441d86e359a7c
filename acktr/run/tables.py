"""The csv files of a run: complete on disk after each row, and cut back to a checkpoint at a resume."""

import contextlib
import csv
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, filter_excluded_keys

from acktr.errors import CheckpointError
from acktr.files.durable import WriteErrors, open_plain, sync_file, write_file

_MAX_LINE = 2**20
_MARK = "\ufeff"  # what some editors put before the first line
_LOST = "Rows are missing from now on."


# The score of a training is the mean return of this many last episodes.
SCORE_WINDOW = 100


class Kept(NamedTuple):
    """The part of a table that belongs to the run as a checkpoint holds it.

    :param rows: so many of the first ones
    :param steps: of the checkpoint; rows of later steps are not the first ones
    :param columns: that they had; ``None`` for those of the file
    """

    rows: int = 0
    steps: float = math.inf
    columns: Sequence[str] | None = None


class Table:
    """A csv file that grows by a row at a time and is complete on disk after each.

    What a checkpoint has and the file has no more is told by :attr:`problem`; such a file is set aside.

    :param path: the file
    :param columns: the header
    :param keep: rows to keep of a file that is there; later ones, and half a one, are dropped
    :param errors: what is done if it cannot be written
    """

    steps_column = "steps"

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        keep: Kept | int = 0,
        errors: WriteErrors | None = None,
    ) -> None:
        keep = Kept(keep) if isinstance(keep, int) else keep
        self.path = path
        self.columns = list(columns)
        self.rows = 0
        self.problem: str | None = None
        self._errors = errors or WriteErrors()
        self._descriptor: int | None = None
        self._size = 0
        self._closed = False
        self._first = _read_rows(path, self.columns, keep, self.steps_column) if keep.rows else []
        if len(self._first) < keep.rows:
            gone = keep.rows - len(self._first)
            self.problem = f"{gone} of {keep.rows} rows of {path.name} cannot be read"
            self._set_aside()
        with self._errors.about(path, _LOST):
            self._begin(self.columns, self._first)

    def _set_aside(self) -> None:
        """Keep a file that lacks rows as it is, for whoever can mend it."""
        place, number = self.path.with_name(f"unusable-{self.path.name}"), 1
        while os.path.lexists(place):
            number += 1
            place = self.path.with_name(f"unusable-{number}-{self.path.name}")
        try:
            self.path.rename(place)
        except OSError:
            return  # there is none
        self.problem = f"{self.problem}, and the file as it was is {place.name}"

    def _begin(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = _to_csv([columns, *rows])
        if self._descriptor is not None:  # Windows replaces no open file
            os.close(self._descriptor)
            self._descriptor = None
        # Whole or not at all: a process may be killed while it writes.
        write_file(self.path, data)
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self.path, flags)
        self._size = len(data)
        self.columns, self.rows = list(columns), len(rows)
        self._first = []

    def append(self, row: Sequence[Any]) -> None:
        """Write one row.

        :raises CheckpointWriteError: it could not be written, and nothing is to go on without it
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        with self._errors.about(self.path, _LOST):
            if self._descriptor is None:  # it could not be made before
                self._begin(self.columns, self._first)
            self._append(_to_csv([row]))
            self.rows += 1

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)  # no half of a row stays
            raise
        self._size += len(data)

    def sync(self) -> None:
        """Bring all rows onto the disk.

        :raises CheckpointWriteError: as for :meth:`append`
        """
        try:
            sync_file(self.path)
        except OSError as error:
            with self._errors.about(self.path, "Rows may be missing."):
                raise error

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):
                os.close(descriptor)


class ProgressTable(Table, KVWriter):
    """The logger's values, one row a dump; a new key becomes a new column.

    :param path: the file
    :param keep: as for :class:`Table`, and so is ``errors``
    """

    steps_column = "time/total_timesteps"

    def __init__(self, path: Path, keep: Kept | int = 0, errors: WriteErrors | None = None) -> None:
        keep = Kept(keep) if isinstance(keep, int) else keep
        columns = keep.columns
        if columns is None:
            columns = _read_header(path) if keep.rows else []
        super().__init__(path, columns, keep, errors)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the values of one dump.

        :raises CheckpointWriteError: as for :meth:`Table.append`
        """
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        new = sorted(values.keys() - self.columns)
        if new:
            with self._errors.about(self.path, _LOST):
                if self._descriptor is not None:
                    kept = Kept(self.rows)
                    self._first = _read_rows(self.path, self.columns, kept, self.steps_column)
                more = [""] * len(new)
                self._begin([*self.columns, *new], [[*row, *more] for row in self._first])
        self.append([_in_one_line(values.get(key, "")) for key in self.columns])


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


def read_table(path: Path, columns: Sequence[str], *, leave_out: bool = False) -> dict[str, np.ndarray]:
    """Read a csv file of numbers; a last row that is not yet, or no longer, a whole one is left out.

    :param path: the file; one that does not exist is an empty table
    :param columns: the header that it must have
    :param leave_out: leave out all rows that cannot be read, which :func:`left_out` tells
    :raises CheckpointError: if it is damaged
    """
    if not os.path.lexists(path):
        return {name: np.zeros(0) for name in columns}
    try:
        header, *lines = list(_read_lines(path)) or [",".join(columns).encode()]
        names = _split(header)
        places = [names.index(name) for name in columns]
        rows: list[list[float]] = []
        for number, line in enumerate(lines, start=2):
            fields = _split(line)
            if leave_out and not _is_whole(line, names, columns):
                continue
            try:
                rows.append([float(fields[place]) for place in places])
            except (IndexError, ValueError) as error:
                if line is lines[-1] and not line.endswith(b"\n"):
                    break
                raise ValueError(f"row {number}, {error}") from error
    except (OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it, or train again.") from error
    return dict(zip(columns, np.asarray(rows).reshape(-1, len(columns)).T, strict=True))


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[tuple[float | None, ...]]:
    """Yield columns of a table row by row, ``None`` where there is no number; nothing if there is none.

    Rows that are not whole are left out (:func:`left_out`): what is at a place may be of another column.

    :param path: the file
    :param columns: their names
    """
    with contextlib.suppress(OSError):
        lines = _read_lines(path)
        header = _split(next(lines, b""))
        for line in lines:
            if _is_whole(line, header):
                row = dict(zip(header, _split(line), strict=True))
                yield tuple(_to_number(row.get(name, "")) for name in columns)


def left_out(path: Path, columns: Sequence[str], *, may_be_empty: bool = False) -> str | None:
    """Tell in a sentence how many rows of a table cannot be read; ``None`` if all can.

    :param path: the file
    :param columns: that have to be numbers
    :param may_be_empty: whether a row may say nothing of them
    """
    try:
        lines = list(_read_lines(path))
    except OSError as error:
        lost = os.path.lexists(path)
        return f"{path.name} is left out: {error.strerror or error}." if lost else None
    header = _split(lines[0]) if lines else []
    if lines and (missing := [name for name in columns if name not in header]):
        return f"{path.name} is left out: its first row does not name {missing[0]}."
    rows = lines[1:]
    wrong = sum(not _is_whole(line, header, columns, may_be_empty) for line in rows)
    are = "row cannot be read and is" if wrong == 1 else "rows cannot be read and are"
    return f"{path.name}: {wrong} of {len(rows)} {are} left out." if wrong else None


def _is_whole(
    line: bytes, header: Sequence[str], numbers: Sequence[str] = (), may_be_empty: bool = False
) -> bool:
    """Whether a row has its end, is text, has a field for each column, and numbers where it must."""
    fields = _split(line)
    # Zeros before a row are what a power cut left; within one they are in the place of something.
    if not line.endswith(b"\n") or b"\0" in line.lstrip(b"\0") or len(fields) != len(header):
        return False
    if any("\ufffd" in field for field in fields):  # bytes that are no text
        return False
    found = [fields[header.index(name)] for name in numbers]
    return all(_to_number("0" if may_be_empty and not x else x) is not None for x in found)


def _to_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_header(path: Path) -> list[str]:
    try:
        return next((_split(line) for line in _read_lines(path)), [])
    except OSError:
        return []


def _read_rows(path: Path, columns: Sequence[str], keep: Kept, steps_column: str) -> list[list[str]]:
    """Read the first rows of a table, as many as can be: those with a value for each column.

    Columns are found by their names, or by their places if a name is gone and there are as many.
    """
    rows: list[list[str]] = []
    try:
        lines = _read_lines(path)
        header = _split(next(lines, b""))
        if set(columns) <= set(header):
            places = [header.index(name) for name in columns]
        elif len(header) == len(columns):
            places = list(range(len(columns)))
        else:
            return []
        for line in itertools.islice(lines, keep.rows):
            fields = _split(line)
            if len(fields) == len(header):
                row = [fields[place] for place in places]
                if _is_within(row, columns, steps_column, keep.steps):
                    rows.append(row)
    except OSError:
        pass  # what was read until here
    return rows


def _is_within(row: Sequence[str], columns: Sequence[str], name: str, steps: float) -> bool:
    """Whether a row is one of numbers, as far as can be told, and not of later steps."""
    if name not in columns:
        return True
    text = row[columns.index(name)]
    number = _to_number(text or "0")  # a row may say nothing of it
    return number is not None and number <= steps


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, without those that hold nothing.

    What a power cut leaves is zeros; a line that has no end within a mebibyte ends the table.
    """
    with open_plain(path) as file:
        while line := file.readline(_MAX_LINE):
            if line.strip(b"\0\r\n\t "):
                yield line
            if len(line) == _MAX_LINE:
                return


def _split(line: bytes) -> list[str]:
    text = line.decode(errors="replace").removeprefix(_MARK).replace("\0", "")
    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        return []


def _in_one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def _to_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
