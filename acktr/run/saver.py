"""Checkpoints while training runs: when one is due, what belongs into it, and the stop after one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.files.checkpoints import Checkpoint, CheckpointStore, pack_checkpoint
from acktr.files.durable import WriteErrors
from acktr.presets import Configuration
from acktr.run.callbacks import EpisodeTable, Evaluations
from acktr.run.state import capture_learner
from acktr.run.tables import ProgressTable

_LOGGED = ("name_to_value", "name_to_count", "name_to_excluded")


class StopTraining(Exception):
    """Raised between two updates, once everything is saved, to leave ``learn``."""


class Saver(BaseCallback):
    """Saves between two updates, where going on is exact; first among the callbacks.

    :param store: where checkpoints go
    :param configuration: how often
    :param episodes: its table and state belong to a checkpoint
    :param evaluations: and so do its own
    :param evaluation_env: the environments it plays in
    :param origin: what a result may depend on beside settings, for the manifest
    :param should_stop: asked between two updates; when true, the state is saved and training left
    :param errors: what is done about a checkpoint that cannot be written
    :param checkpoint: the one that the run goes on from
    """

    def __init__(
        self,
        store: CheckpointStore,
        configuration: Configuration,
        episodes: EpisodeTable,
        evaluations: Evaluations,
        evaluation_env: VecEnv,
        origin: Mapping[str, Any],
        should_stop: Callable[[], bool],
        errors: WriteErrors,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        self._store = store
        self._configuration = configuration
        self._episodes = episodes
        self._evaluations = evaluations
        self._evaluation_env = evaluation_env
        self._origin = origin
        self._errors = errors
        self._should_stop = should_stop
        self._seconds_before = checkpoint.components["run"]["seconds"] if checkpoint else 0.0
        self._saved_steps = checkpoint.steps if checkpoint else 0
        self._saved_at = self._start = time.perf_counter()
        self._held: tuple[int, dict[str, bytes]] | None = None

    @property
    def seconds(self) -> float:
        """Wall time of training, that of the parts before a resume included."""
        return self._seconds_before + time.perf_counter() - self._start

    def save(self) -> None:
        """Save the state of now, which must be one between two updates; all ranks take part.

        :raises CheckpointWriteError: it could not be written, and training is not to go on without
        """
        newer = self.model.num_timesteps > self._saved_steps
        if distributed.any_of(newer)[0]:
            files = self._pack()
            if newer:
                self._write(self.model.num_timesteps, files)

    def save_held(self) -> None:
        """Save the state before the rollout in which an evaluation was left."""
        if self._held is not None and self._held[0] > self._saved_steps:
            self._write(*self._held)

    def _on_training_start(self) -> None:
        # Steps per second and seconds are those of the whole run.
        self.model.start_time -= int(self._seconds_before * 1e9)
        self.model._num_timesteps_at_start = 0
        self._saved_at = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self._held = None
        evaluates = self._evaluations.is_due_within(self.model.n_steps)  # type: ignore[attr-defined]
        stops, saves, holds = distributed.any_of(self._should_stop(), self._is_due(), evaluates)
        if stops:
            self.save()
            raise StopTraining
        if saves:
            self.save()
        if holds:
            # Parameters stay as they are in a rollout, but environments do not: who leaves the
            # evaluation goes on from here.
            self._held = self.model.num_timesteps, self._pack()

    def _on_step(self) -> bool:
        return True

    def _is_due(self) -> bool:
        interval, steps = self._configuration.checkpoint_interval, self._configuration.checkpoint_steps
        in_time = 0 < interval <= time.perf_counter() - self._saved_at
        return in_time or (steps is not None and self.num_timesteps - self._saved_steps >= steps)

    def _pack(self) -> dict[str, bytes]:
        components, reasons = capture_learner(self.model, self._evaluation_env)  # type: ignore[arg-type]
        progress = progress_table(self.logger)
        components["run"] = {
            "configuration": self._configuration.model_dump(mode="json"),
            "seconds": self.seconds,
            "episodes": self._episodes.state_dict(),
            "evaluations": self._evaluations.state_dict(),
            "logger": {name: dict(getattr(self.logger, name)) for name in _LOGGED},
            "progress_rows": progress.rows,
            "progress_columns": progress.columns,
        }
        info = {
            "exact": not reasons,
            "reasons": reasons,
            "score": self._episodes.mean_return(),
            "updates": self.model._n_updates,
            "world_size": distributed.size(),
            **self._origin,
        }
        return pack_checkpoint(self.model.num_timesteps, components, info)

    def _write(self, steps: int, files: dict[str, bytes]) -> None:
        for table in (self._episodes.table, self._evaluations.table, progress_table(self.logger)):
            table.sync()
        with self._errors.about(self._store.path_of(steps)):
            self._store.save(steps, files)
            self._saved_steps = steps
        self._saved_at = time.perf_counter()


class Follower(BaseCallback):
    """The part of a :class:`Saver` on every rank but the first: gives away its state when asked.

    :param should_stop: asked between two updates; true on one rank stops all
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        super().__init__()
        self._should_stop = should_stop

    def take_part(self) -> None:
        """Answer :meth:`Saver.save` of the first rank."""
        if distributed.any_of(False)[0]:
            capture_learner(self.model)  # type: ignore[arg-type]

    def _on_rollout_start(self) -> None:
        stops, saves, holds = distributed.any_of(self._should_stop(), False, False)
        if stops:
            self.take_part()
            raise StopTraining
        if saves:
            self.take_part()
        if holds:
            capture_learner(self.model)  # type: ignore[arg-type]

    def _on_step(self) -> bool:
        return True


def progress_table(logger: Logger) -> ProgressTable:
    """Return the logger's table of progress."""
    return next(output for output in logger.output_formats if isinstance(output, ProgressTable))


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    """Put back what was recorded and not yet written: the figures of the last update."""
    for name in _LOGGED:
        getattr(logger, name).update(state[name])
