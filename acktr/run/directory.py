"""The run directory: what a training run leaves behind, written and read here only.

::

    config.yaml            the complete, resolved configuration
    versions.json          of everything that the result may depend on, and the command
    progress.csv           every logged value, one row an update
    episodes.csv           one row a finished training episode
    evaluations.csv, .npz  one row an evaluation with the deterministic policy
    checkpoints/           what --resume goes on from
    model.zip              the last model, with the normalisation statistics that belong to it
    best_model.zip         the one with the best evaluation, with its own
    result.json            the figures that sum up the run
    learning_curve.png     return over steps
    tensorboard/           the same values as progress.csv, where TensorBoard is installed
    tracker.json           by which name Weights & Biases or MLflow knows the run, and wandb/ its files
    run.lock               held while a process trains here
"""

import glob
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from acktr.envs.lookup import is_installed
from acktr.envs.normalization import (
    load_normalization,
    normalization_content,
    put_normalization,
)
from acktr.errors import CheckpointError, ConfigurationError, DamagedCheckpointError
from acktr.files.checkpoints import CheckpointStore
from acktr.files.durable import WriteErrors, open_plain, refuse_links, remove_file, write_file
from acktr.files.lock import Lock
from acktr.files.model_file import NORMALIZATION, ModelPath, read_component
from acktr.files.reading import read_yaml
from acktr.learner.moved import current_settings
from acktr.learner.saving import SafeAlgorithm
from acktr.run.tables import Kept, ProgressTable, RunLogger, left_out, read_table
from acktr.run.versions import versions

EPISODE_COLUMNS = ("steps", "return", "length", "seconds", "env")
EVALUATION_COLUMNS = ("steps", "mean_return", "std_return", "episodes", "mean_length", "seconds")
_MARKER = "config.yaml"
# What only a run that has begun leaves, so that a directory without the marker is one that lost it.
_TRACES = (
    "checkpoints/*", "progress.csv", "episodes.csv", "evaluations.csv", "evaluations.npz", "model.zip",
    "best_model.zip", "result.json",
)  # fmt: skip


class Run:
    """A run directory that exists; :meth:`create` makes a new one, :meth:`open` reads an old one.

    :param path: the directory
    :param leave_out: read tables without their rows that cannot be read, in place of an error
    """

    def __init__(self, path: Path, leave_out: bool = False) -> None:
        self.path = path
        self._leave_out = leave_out

    @classmethod
    def create(cls, env_id: str, out: str | os.PathLike[str] | None = None) -> "Run":
        """Make the directory of a new run.

        :param env_id: names the directory where ``out`` does not
        :param out: where; by default the first free one of ``runs/ENV-1``, ``runs/ENV-2``, ...
        :raises ConfigurationError: if ``out`` already holds a run, or cannot be written
        """
        try:
            if out is None:
                return cls(_first_free(Path("runs"), env_id))
            path = Path(out)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The run directory {error.filename} cannot be made ({error.strerror}): "
                "give another with --out."
            ) from error
        refuse_run(path)
        if not os.access(path, os.W_OK):
            raise ConfigurationError(f"{path} cannot be written: give another directory with --out.")
        return cls(path)

    @classmethod
    def find_last(cls, env_id: str) -> "Run | None":
        """Find the last of ``runs/ENV-1``, ``runs/ENV-2``, ... with a run, or what is left of one."""
        name = _directory_name(env_id)
        found = {
            int(number): path
            for path in Path("runs").glob(f"{glob.escape(name)}-*")
            if (number := path.name.removeprefix(f"{name}-")).isdigit()
            and (holds_run(path) or traces(path))
        }
        return cls(found[max(found)]) if found else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """Open the directory of an earlier run.

        :param path: the directory
        :raises CheckpointError: if it holds no run
        """
        path = Path(path)
        if not holds_run(path):
            problem = f"has no {_MARKER}" if path.is_dir() else "is not a directory"
            raise CheckpointError(
                f"{path} holds no run ({problem}): give a directory that `acktr train` made."
            )
        return cls(path)

    # Configuration and versions -------------------------------------------------------------

    def write_configuration(self, configuration: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` and ``versions.json``; from now on the directory holds a run.

        :param configuration: all settings, as plain values
        """
        text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
        self._write_json("versions.json", versions())
        write_file(self.path / _MARKER, text.encode())

    def read_configuration(self, tell: Callable[[str], None] = lambda sentence: None) -> dict[str, Any]:
        """Read ``config.yaml``; settings of an earlier version are brought to where they are now.

        :param tell: called with a sentence about each setting that is gone
        :raises CheckpointError: if it is damaged, or a setting that is gone made a difference
        """
        path = self.path / _MARKER
        try:
            configuration = read_yaml(path)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path} cannot be read ({problem}): restore it.") from error
        if not isinstance(configuration, dict) or "env_id" not in configuration:
            raise CheckpointError(f"{path} is not the configuration of a run: env_id is missing.")
        try:
            settings, notes = current_settings(configuration, str(path))
        except (AttributeError, ConfigurationError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from error
        for note in notes:
            tell(note)
        return settings

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``: the figures that sum up the run."""
        self._write_json("result.json", result)

    def refuse_links(self) -> None:
        """Refuse directories in the run that are links: what is written there would go elsewhere.

        :raises UnsafeCheckpointError: naming the first
        """
        refuse_links(*(self.path / name for name in ("checkpoints", "tensorboard", "wandb")))

    # Checkpoints ----------------------------------------------------------------------------

    def lock(self) -> Lock:
        """Make the lock that whoever trains here must hold."""
        return Lock(self.path / "run.lock")

    def checkpoints(self, keep_last: int = 3, keep_best: int = 1) -> CheckpointStore:
        """Make the store of the run's checkpoints."""
        return CheckpointStore(self.path / "checkpoints", keep_last, keep_best)

    # Models ---------------------------------------------------------------------------------

    def model_path(self, best: bool = False) -> Path:
        """Path of the last model, or of the one with the best evaluation."""
        return self.path / ("best_model.zip" if best else "model.zip")

    def normalization_path(self, best: bool = False) -> Path:
        """Path of a model's normalisation statistics, in runs from before its file held them."""
        return self.path / ("best_vecnormalize.json" if best else "vecnormalize.json")

    def save_model(self, model: SafeAlgorithm, best: bool = False) -> Path:
        """Save a model and its normalisation statistics in one file; an earlier one stays until then.

        :param model: of the run
        :param best: write the file of the best model instead of the last one
        :return: the path of the model
        :raises CheckpointWriteError: it could not be written
        """
        env = model.get_vec_normalize_env()
        path = self.model_path(best)
        model.save(path, normalization=None if env is None else normalization_content(env))
        remove_file(self.normalization_path(best))  # of an earlier model
        return path

    def load_model(self, model: SafeAlgorithm, best: bool = False) -> None:
        """Put saved parameters into a model, and into its environments the statistics of the same file.

        :param model: built as the configuration says
        :param best: those of the best model instead of the last one
        :raises CheckpointError: they are missing, damaged, or of other shapes
        """
        path = self.model_path(best)
        try:
            file = open_plain(path)  # once: while the run goes on, the next model takes its place
        except OSError as error:
            raise DamagedCheckpointError(
                f"{path} cannot be opened ({error.strerror or error}): restore it, or train again."
            ) from error
        with file:
            env = model.get_vec_normalize_env()
            if env is not None:
                self._put_normalization(env, file, best)
            model.set_parameters(file)

    def load_normalization(self, env: VecNormalize, best: bool = False) -> None:
        """Put the saved statistics into a wrapper.

        :param env: built as the configuration says
        :param best: those of the best model instead of the last one
        :raises CheckpointError: if they are missing or of other shapes
        """
        self._put_normalization(env, self.model_path(best), best)

    def _put_normalization(self, env: VecNormalize, file: ModelPath, best: bool) -> None:
        content = read_component(file, NORMALIZATION)
        if content is None:
            load_normalization(env, self.normalization_path(best))
        else:
            put_normalization(env, content, f"in {self.model_path(best)}")

    # Tables ---------------------------------------------------------------------------------

    def logger(
        self,
        resumed: tuple[int, int] | None = None,
        keep: Kept | int = 0,
        errors: WriteErrors | None = None,
        tracker: KVWriter | None = None,
    ) -> Logger:
        """Make the logger that writes ``progress.csv``, and TensorBoard where it is installed.

        :param resumed: the steps and iterations after which a run goes on
        :param keep: rows of ``progress.csv`` to keep
        :param errors: what is done if they cannot be written
        :param tracker: one more that gets the values
        """
        steps, iterations = resumed or (0, 0)
        outputs: list[KVWriter] = [ProgressTable(self.path / "progress.csv", keep, errors)]
        if is_installed("tensorboard"):
            from acktr.run.tensorboard import TensorBoard

            folder = self.path / "tensorboard"
            outputs.append(TensorBoard(folder, steps if resumed else None, errors))
        outputs += [] if tracker is None else [tracker]
        return RunLogger(str(self.path), outputs, iterations)

    def episodes(self) -> dict[str, np.ndarray]:
        """Read the finished training episodes.

        :return: a column of ``episodes.csv`` for each name; ``return`` is the undiscounted,
            unclipped and unnormalised sum of rewards, ``steps`` counts all environments together
        """
        return read_table(self.path / "episodes.csv", EPISODE_COLUMNS, leave_out=self._leave_out)

    def evaluations(self) -> dict[str, np.ndarray]:
        """Read the evaluations, as :meth:`episodes` does."""
        path = self.path / "evaluations.csv"
        return read_table(path, EVALUATION_COLUMNS, leave_out=self._leave_out)

    def left_out(self) -> list[str]:
        """Tell which rows of which table cannot be read, a sentence for each table that has such."""
        path = self.path
        sentences = (
            left_out(path / "episodes.csv", EPISODE_COLUMNS),
            left_out(path / "evaluations.csv", EVALUATION_COLUMNS),
            left_out(path / "progress.csv", ["time/total_timesteps"], may_be_empty=True),
        )
        return [sentence for sentence in sentences if sentence is not None]

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def holds_run(path: Path) -> bool:
    """Tell whether a directory holds a run."""
    return (path / _MARKER).is_file()


def traces(path: Path) -> list[str]:
    """Name what a run has left in a directory, whether or not that still holds one."""
    return [pattern.split("/")[0] for pattern in _TRACES if next(path.glob(pattern), None)]


def refuse_run(path: Path) -> None:
    """Refuse a directory for a new run that holds one, or what is left of one.

    :raises ConfigurationError: naming what is there
    """
    if holds_run(path):
        raise ConfigurationError(f"{path} already holds a run: give another directory with --out.")
    if left := traces(path):
        raise ConfigurationError(
            f"{path} holds what is left of a run ({', '.join(left)}) without its {_MARKER}: restore "
            "that, or give another directory with --out."
        )


def refuse_remains(path: Path) -> None:
    """Refuse to resume what has lost its configuration; nothing at all is fine: a run begins there.

    :raises CheckpointError: naming what is there
    """
    if not holds_run(path) and (left := traces(path)):
        raise CheckpointError(
            f"{path} holds what is left of a run ({', '.join(left)}) without its {_MARKER}, so that it "
            "cannot be resumed: restore that, or give another directory with --out."
        )


def find_runs(path: str | os.PathLike[str]) -> list[Run]:
    """Find the run at a path, or else all runs below it.

    :raises CheckpointError: if there are none
    """
    path = Path(path)
    if path.is_dir() and not holds_run(path):
        found = sorted(marker.parent for marker in path.rglob(_MARKER))
        if found:
            return [Run(directory) for directory in found]
    return [Run.open(path)]


def _directory_name(env_id: str) -> str:
    return env_id.replace("/", "-").replace(":", "-")


def _first_free(parent: Path, env_id: str) -> Path:
    """Make and return the first directory ``parent/ENV-i`` that does not exist."""
    parent.mkdir(parents=True, exist_ok=True)
    name = _directory_name(env_id)
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            # Made here and now: of two runs that start together each gets its own.
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
