"""The results of trials: csv files that are whole at any moment and easy to merge.

::

    runs.csv            one row a trial: its scores, its time, its code
    curves/KEY.csv      the learning curve of one trial
    settings/HASH.json  every setting behind the hash in a row
    manifest.json       per session: command, commit, versions, machine, date
    trials/KEY/         files of a trial: trial.json, log.txt, ACKTR's run directory; not for git
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acktr.compare.curve import COLUMNS as CURVE_COLUMNS
from acktr.compare.curve import MILESTONES
from acktr.compare.trial import Outcome, Trial, file_name, settings_hash
from acktr.errors import CheckpointError, ConfigurationError
from acktr.files.durable import WriteErrors, refuse_links, write_file
from acktr.files.lock import Lock
from acktr.files.reading import parse_json, read_plain
from acktr.run.tables import read_table
from acktr.run.versions import versions

if TYPE_CHECKING:
    import numpy as np


COLUMNS = (
    "env", "label", "seed", "algo", "n_timesteps", "steps", "episodes", "last_100_return", "eval_mean",
    "eval_std", "eval_episodes", "best_100_return", *MILESTONES, "seconds", "cpu_seconds", "fps",
    "diverged", "backend", "settings", "commit", "session",
)  # fmt: skip
# Beside those that every run notes: of the peers, and of the tasks of other packages that suites have.
_PACKAGES = (
    "sb3-contrib", "box2d", "dm-control", "shimmy", "minatar", "minigrid", "gymnasium-robotics", "mpe2",
)  # fmt: skip
_MAX_FILE = 2**28  # bytes


class Store:
    """The results below one directory.

    :param path: the directory; it is made when the first result is added
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = path / "runs.csv"
        self._trials = path / "trials"

    def rows(self) -> list[dict[str, str]]:
        """Read the table, one mapping for each trial; no table is an empty one.

        :raises CheckpointError: if its header is not that of a table of trials
        """
        if not self.table.exists():
            return []
        reader = csv.DictReader(io.StringIO(_read(self.table)))
        try:
            rows = list(reader)
        except csv.Error as error:
            raise CheckpointError(f"{self.table} is damaged ({error}): restore it.") from error
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise CheckpointError(f"{self.table} is not a table of trials: restore it, or remove it.")
        return rows

    def find(self, trial: Trial) -> dict[str, str] | None:
        """Return the row of a trial, ``None`` if there is none, whatever settings it was made with."""
        name = _name(trial)
        return next((row for row in self.rows() if _key(row) == name), None)

    def curve(self, key: str) -> "dict[str, np.ndarray]":
        """Read a learning curve: a column for each name, NaN where no episode had ended yet.

        :param key: of the trial
        """
        return read_table(self.path / "curves" / f"{key}.csv", CURVE_COLUMNS)

    def prepare(self) -> None:
        """Make the directories; what lies in ``trials`` is nothing for git.

        :raises ConfigurationError: if they cannot be written
        :raises UnsafeCheckpointError: one is a link
        """
        refuse_links(self._trials, self.path / "curves", self.path / "settings")
        try:
            self._trials.mkdir(parents=True, exist_ok=True)
            write_file(self._trials / ".gitignore", b"*\n")
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be written ({error.strerror}): give another directory with --out."
            ) from error

    def folder(self, trial: Trial) -> Path:
        """Return the folder for the files of a trial.

        :raises UnsafeCheckpointError: it is a link
        """
        refuse_links(self._trials, self._trials / trial.key)
        return self._trials / trial.key

    def add(
        self,
        trial: Trial,
        outcome: Outcome,
        settings: Mapping[str, Any],
        session: Mapping[str, Any],
    ) -> None:
        """Add a trial, in place of an earlier one of the same name.

        The row comes last, and all at once: what has a row is complete.

        :param trial: what was trained
        :param outcome: what came out
        :param settings: all of them
        :param session: as :func:`session` returned it when training began
        """
        hashed, session_id = settings_hash(settings), _digest(session)
        curve = [
            (p.steps, f"{p.seconds:.2f}", f"{p.cpu_seconds:.2f}", _number(p.mean_return, "nan"))
            for p in outcome.curve.points
        ]
        values = {
            "env": trial.env_id,
            "label": trial.label,
            "seed": trial.seed,
            "algo": trial.algo,
            "n_timesteps": trial.n_timesteps,
            **outcome.scores,
            "settings": hashed,
            "commit": session["versions"]["git_commit"],
            "session": session_id,
        }
        row = {name: _number(values.get(name)) for name in COLUMNS}
        self.prepare()
        with self.lock("store"):
            _write(self.path / "curves" / f"{trial.key}.csv", _csv([CURVE_COLUMNS, *curve]))
            _write(self.path / "settings" / f"{hashed}.json", _json(settings))
            self._add([row], {session_id: session})

    def merge(self, other: "Store") -> int:
        """Take over the trials that have a row in another store; of those that both have, the other's.

        :param other: which stays as it is
        :return: the number of its rows
        :raises CheckpointError: if it holds no results, or a row lacks its files; nothing is taken then
        """
        rows = other.rows()
        if not rows:
            raise CheckpointError(f"{other.path} holds no results: there is no runs.csv with a row.")
        self.prepare()
        with self.lock("store"):
            names = {f"curves/{file_name(*_key(row))}.csv" for row in rows}
            names |= {f"settings/{row['settings']}.json" for row in rows}
            try:  # all are read before the first is written: a row and its curve belong together
                texts = {name: _read(other.path / name) for name in sorted(names)}
            except CheckpointError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                lost = error.__cause__.filename
                raise CheckpointError(
                    f"{lost} is missing, though a row names it: restore it, or remove the row."
                ) from error
            for name, text in texts.items():
                _write(self.path / name, text)
            named = {row["session"] for row in rows}  # others made no row here
            self._add(rows, {key: one for key, one in other.manifest().items() if key in named})
        return len(rows)

    def manifest(self) -> dict[str, Any]:
        """Read the manifest: a mapping for each session."""
        path = self.path / "manifest.json"
        try:
            content = parse_json(_read(path)) if path.exists() else {}
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}): restore it.") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is no manifest: restore it.")
        return content

    def _add(self, rows: Sequence[Mapping[str, str]], sessions: Mapping[str, Any]) -> None:
        """Write rows and their sessions; the rows last, for what has a row is complete."""
        _write(self.path / "manifest.json", _json({**self.manifest(), **sessions}))
        table = {_key(row): row for row in [*self.rows(), *rows]}
        ordered = sorted(table.values(), key=lambda r: (r["env"], r["label"], int(r["seed"])))
        _write(self.table, _csv([COLUMNS, *([row[name] for name in COLUMNS] for row in ordered)]))

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock, which the system releases when this process ends, however that happens.

        :param name: of the lock
        :param wait: until it is free; otherwise yields whether it was
        """
        lock = Lock(self._trials / f"{name}.lock", wait=wait)
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(lock)
            except ConfigurationError:
                held = False
            else:
                held = True
            yield held


def session(command: str, threads: int = 1) -> dict[str, Any]:
    """Describe the code, versions and machine of this process.

    :param command: what the user typed
    :param threads: that torch computes with
    """
    found = versions()
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    del found["command"]
    machine = {
        "cpu": _cpu(),
        "platform": found.pop("platform"),
        "processors": found.pop("processors"),
        "threads": threads,
    }
    return {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine,
        "versions": found,
    }


def _name(trial: Trial) -> tuple[str, str, str]:
    return trial.env_id, trial.label, str(trial.seed)


def _key(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["env"], row["label"], row["seed"]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()[:10]


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _number(value: Any, missing: str = "") -> str:
    """Write a value with six significant digits."""
    if value is None:
        return missing
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _read(path: Path) -> str:
    """Read a text file.

    :raises CheckpointError: it cannot be read, or is no file of text
    """
    try:
        return read_plain(path, _MAX_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): restore it.") from error


def _write(path: Path, text: str) -> None:
    """Write a file all at once: whoever reads it finds the old one or the new one.

    :raises CheckpointWriteError: it cannot be written
    """
    refuse_links(path.parent)
    with WriteErrors().about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
