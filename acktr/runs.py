"""The run directory: what a training run leaves behind, written and read here only.

::

    config.yaml            the complete, resolved configuration
    versions.json          of everything that the result may depend on, and the command
    progress.csv           every logged value, one row an update
    episodes.csv           one row a finished training episode
    evaluations.csv, .npz  one row an evaluation with the deterministic policy
    checkpoints/           what --resume goes on from
    model.zip, best_model.zip, and the vecnormalize.json that belongs to each
    result.json            the figures that sum up the run
    learning_curve.png     return over steps
    tensorboard/           the same values as progress.csv, where TensorBoard is installed
    run.lock               held while a process trains here
"""

import glob
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from acktr.checkpoint.durable import write_file
from acktr.checkpoint.store import CheckpointStore
from acktr.envs.lookup import is_installed
from acktr.envs.normalization import load_normalization, save_normalization
from acktr.errors import CheckpointError, ConfigurationError
from acktr.lock import Lock
from acktr.reading import read_yaml
from acktr.tables import ProgressTable, RunLogger, Table, TensorBoard, read_table

__all__ = [
    "EPISODE_COLUMNS",
    "EVALUATION_COLUMNS",
    "Run",
    "Table",
    "find_runs",
    "read_table",
    "versions",
]

EPISODE_COLUMNS = ("steps", "return", "length", "seconds", "env")
EVALUATION_COLUMNS = ("steps", "mean_return", "std_return", "episodes", "mean_length", "seconds")
_MARKER = "config.yaml"
_PACKAGES = (
    "acktr",
    "torch",
    "stable-baselines3",
    "gymnasium",
    "numpy",
    "mujoco",
    "envpool",
    "ale-py",
    "opencv-python-headless",
    "safetensors",
)


class Run:
    """A run directory that exists; :meth:`create` makes a new one, :meth:`open` reads an old one.

    :param path: the directory
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
        if holds_run(path):
            raise ConfigurationError(f"{path} already holds a run: give another directory with --out.")
        if not os.access(path, os.W_OK):
            raise ConfigurationError(f"{path} cannot be written: give another directory with --out.")
        return cls(path)

    @classmethod
    def find_last(cls, env_id: str) -> "Run | None":
        """Find the last of ``runs/ENV-1``, ``runs/ENV-2``, ... that holds a run."""
        name = _directory_name(env_id)
        found = {
            int(number): path
            for path in Path("runs").glob(f"{glob.escape(name)}-*")
            if (number := path.name.removeprefix(f"{name}-")).isdigit() and holds_run(path)
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

    def read_configuration(self) -> dict[str, Any]:
        """Read ``config.yaml``.

        :raises CheckpointError: if it is damaged
        """
        path = self.path / _MARKER
        try:
            configuration = read_yaml(path)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path} cannot be read ({problem}): restore it.") from error
        if not isinstance(configuration, dict) or "env_id" not in configuration:
            raise CheckpointError(f"{path} is not the configuration of a run: env_id is missing.")
        return configuration

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``: the figures that sum up the run."""
        self._write_json("result.json", result)

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
        """Path of the normalisation statistics that belong to a model."""
        return self.path / ("best_vecnormalize.json" if best else "vecnormalize.json")

    def save_model(self, model: BaseAlgorithm, best: bool = False) -> Path:
        """Save a model and its normalisation statistics; an earlier one stays whole until then.

        :param model: any SB3 algorithm
        :param best: write the files of the best model instead of the last one
        :return: the path of the model
        """
        normalization = model.get_vec_normalize_env()
        if normalization is not None:
            path = self.normalization_path(best)
            temporary = path.with_name(f".{path.name}")
            save_normalization(normalization, temporary)
            temporary.replace(path)
        path = self.model_path(best)
        temporary = path.with_name(f".{path.name}")
        model.save(temporary)
        temporary.replace(path)
        return path

    def load_normalization(self, env: VecNormalize, best: bool = False) -> None:
        """Put the saved statistics into a wrapper.

        :raises CheckpointError: if they are missing or of other shapes
        """
        load_normalization(env, self.normalization_path(best))

    # Tables ---------------------------------------------------------------------------------

    def logger(self, resumed: tuple[int, int, int] | None = None) -> Logger:
        """Make the logger that writes ``progress.csv``, and TensorBoard where it is installed.

        :param resumed: the steps, iterations and rows after which a run goes on; later rows are dropped
        """
        steps, iterations, rows = resumed or (0, 0, 0)
        outputs: list[KVWriter] = [ProgressTable(self.path / "progress.csv", rows)]
        if is_installed("tensorboard"):
            outputs.append(TensorBoard(str(self.path / "tensorboard"), steps if resumed else None))
        return RunLogger(str(self.path), outputs, iterations)

    def episodes(self) -> dict[str, np.ndarray]:
        """Read the finished training episodes.

        :return: a column of ``episodes.csv`` for each name; ``return`` is the undiscounted,
            unclipped and unnormalised sum of rewards, ``steps`` counts all environments together
        """
        return read_table(self.path / "episodes.csv", EPISODE_COLUMNS)

    def evaluations(self) -> dict[str, np.ndarray]:
        """Read the evaluations, as :meth:`episodes` does."""
        return read_table(self.path / "evaluations.csv", EVALUATION_COLUMNS)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def holds_run(path: Path) -> bool:
    """Tell whether a directory holds a run."""
    return (path / _MARKER).is_file()


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


def versions() -> dict[str, Any]:
    """Collect the versions, machine and command that a result may depend on."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **installed,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "git_commit": _git_commit(),
        "command": shlex.join(sys.argv),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "+" if changed."""
    if _git("ls-files", "--error-unmatch", "runs.py") is None:
        return None  # installed, perhaps inside a checkout of something else
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("+" if _git("status", "--porcelain", "--", ".") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


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
