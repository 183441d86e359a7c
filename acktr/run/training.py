"""One training run from its beginning, or from its newest checkpoint, to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.errors import CheckpointWriteError, DivergenceError
from acktr.files.bundle import decoding
from acktr.files.checkpoints import read_checkpoint
from acktr.files.durable import WriteErrors
from acktr.learner.algorithm import ACKTR
from acktr.presets import Configuration
from acktr.run.callbacks import EpisodeTable, Evaluations
from acktr.run.directory import Run, refuse_remains, refuse_run
from acktr.run.figures import plot_learning_curve
from acktr.run.resume import Tell, find_checkpoint, origin, restore
from acktr.run.saver import Follower, Saver, StopTraining, progress_table, restore_logger
from acktr.run.state import restore_learner
from acktr.run.tables import Kept
from acktr.run.trackers import hyperparameters, open_tracker, tell_trackers
from acktr.run.versions import versions


@dataclass(frozen=True)
class Result:
    """The figures of one run.

    :param steps: environment steps that were made
    :param seconds: wall time, evaluations and the parts before a resume included
    :param interrupted: whether training was stopped before its end
    :param episodes: finished training episodes
    :param last_100_return: mean training return of the last 100 episodes; ``None`` before the first
    :param evaluation: figures of the final evaluation; ``None`` if there was none
    :param unwritten: names of files that could not be written, where training went on without
    """

    steps: int
    seconds: float
    interrupted: bool
    episodes: int
    last_100_return: float | None
    evaluation: dict[str, float] | None
    unwritten: list[str]


def run_training(
    model: ACKTR,
    evaluation_env: VecEnv,
    configuration: Configuration,
    run: Run,
    *,
    callbacks: Sequence[BaseCallback],
    should_stop: Callable[[], bool],
    resume: bool,
    tell: Tell,
) -> Result:
    """Train to the end and leave everything in the run directory.

    :param model: built as the configuration says
    :param evaluation_env: for evaluations
    :param configuration: the settings
    :param run: the run directory
    :param callbacks: further SB3 callbacks
    :param should_stop: asked between two updates, and at each step of an evaluation
    :param resume: go on from the newest valid checkpoint, if there is one
    :param tell: called with a sentence about what is resumed and what is not exact
    :raises ConfigurationError: another process trains in the directory, or it holds a run already
    :raises CheckpointError: no checkpoint can be used, or one could not be written
    :raises DivergenceError: if a value is not finite; the model before it is saved
    """
    _refuse(run, resume)
    errors = WriteErrors(goes_on=configuration.on_checkpoint_error == "continue")
    with run.lock():
        _refuse(run, resume)  # what another process has done until now
        run.refuse_links()
        store = run.checkpoints(configuration.keep_last, configuration.keep_best)
        store.clean()
        checkpoint = find_checkpoint(run, model, configuration, tell) if resume else None
        # A run does not begin where its configuration cannot be written; one that goes on has it.
        beginning = errors if checkpoint else WriteErrors()
        with beginning.about(run.path / "config.yaml"):
            run.write_configuration(configuration.model_dump(mode="json"))
        distributed.gather(str(checkpoint.path if checkpoint else "").encode())
        state = checkpoint.components["run"] if checkpoint else None
        seconds = state["seconds"] if state else 0.0
        where_from = origin(model, configuration, versions())
        with contextlib.ExitStack() as opened:
            episodes = EpisodeTable(run, state and state["episodes"], seconds, errors)
            opened.callback(episodes.table.close)
            evaluations = Evaluations(
                evaluation_env,
                configuration,
                run,
                should_stop,
                state and state["evaluations"],
                seconds,
                errors,
            )
            opened.callback(evaluations.table.close)
            resumed, rows = None, Kept()
            if checkpoint and state:
                resumed = checkpoint.steps, checkpoint.info["updates"]
                columns = state.get("progress_columns")
                rows = Kept(state["progress_rows"], checkpoint.steps, columns)
            tracker = open_tracker(run, configuration, resumed is not None)
            model.set_logger(run.logger(resumed, rows, errors, tracker))
            opened.callback(model.logger.close)
            tables = (episodes.table, evaluations.table, progress_table(model.logger))
            saver = Saver(
                store,
                configuration,
                episodes,
                evaluations,
                evaluation_env,
                where_from,
                should_stop,
                errors,
                checkpoint,
            )
            if checkpoint and state:
                restore_logger(model.logger, state["logger"])
                lost = [table.problem for table in tables if table.problem]
                restore(model, evaluation_env, checkpoint, configuration, where_from, lost, tell)
                with errors.about(store.path):
                    store.set_aside_after(checkpoint.steps)
            if resumed is None:
                shown = {"settings": hyperparameters(configuration.model_dump(mode="json"))}
                tell_trackers(model.logger, shown, 0)
            try:
                _learn(model, configuration, [saver, episodes, *callbacks, evaluations])
                if distributed.any_of(evaluations.was_left)[0]:
                    saver.save_held()
                else:
                    saver.save()
                with errors.about(run.model_path()):
                    run.save_model(model)
                evaluation = None if should_stop() else evaluations.final()
                if evaluation is not None:
                    evaluations.write(evaluation)
                    final = {f"final/{key}": value for key, value in evaluation.summary().items()}
                    tell_trackers(model.logger, final, model.num_timesteps)
            except DivergenceError as error:
                raise _with_model(run, model, error) from error
        result = Result(
            steps=model.num_timesteps,
            seconds=saver.seconds,
            interrupted=should_stop(),
            episodes=episodes.count,
            last_100_return=episodes.mean_return(),
            evaluation=None if evaluation is None else evaluation.summary(),
            unwritten=errors.unwritten,
        )
        with errors.about(run.path / "result.json"):
            run.write_result(asdict(result))
        with errors.about(run.path / "learning_curve.png"):
            plot_learning_curve(run)
        return replace(result, unwritten=errors.unwritten)


def _refuse(run: Run, resume: bool) -> None:
    if resume:
        refuse_remains(run.path)
    else:
        refuse_run(run.path)


def _with_model(run: Run, model: ACKTR, error: DivergenceError) -> DivergenceError:
    """Save the model, and say where it is; raised before an update, it is that of the last good one."""
    try:
        return DivergenceError(f"{error} The model before it is in {run.save_model(model)}.")
    except CheckpointWriteError as other:
        return DivergenceError(f"{error} The model before it is lost: {other}")


def follow_training(model: ACKTR, configuration: Configuration, should_stop: Callable[[], bool]) -> None:
    """Train on a rank other than the first, which alone writes the run directory.

    :param model: built as the configuration says
    :param configuration: the settings
    :param should_stop: asked between two updates
    :raises CheckpointError: the checkpoint that the first rank goes on from cannot be read here
    :raises DivergenceError: if a value is not finite
    """
    path = distributed.gather(b"")[0].decode()
    if path:
        checkpoint = read_checkpoint(Path(path))
        with decoding(path, "the state of the learner"):
            restore_learner(model, checkpoint.components, path)
    follower = Follower(should_stop)
    _learn(model, configuration, [follower])
    if not distributed.any_of(False)[0]:
        follower.take_part()


def _learn(model: ACKTR, configuration: Configuration, callbacks: Sequence[BaseCallback]) -> None:
    # The steps to go, counted from where the model is; a model that has not begun resets.
    left = max(configuration.n_timesteps - model.num_timesteps, 0)
    with contextlib.suppress(StopTraining):
        model.learn(
            left,
            log_interval=1,
            # The evaluations last: what the others read of a step is from before them.
            callback=list(callbacks),
            reset_num_timesteps=model.num_timesteps == 0,
        )
