"""One training run from its beginning, or from its newest checkpoint, to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.algorithm import ACKTR
from acktr.callbacks import EpisodeTable, Evaluations
from acktr.checkpoint.bundle import decoding
from acktr.checkpoint.learner import check_learner, restore_learner
from acktr.checkpoint.run_state import check_run
from acktr.checkpoint.store import Checkpoint, read_checkpoint
from acktr.errors import ConfigurationError, DivergenceError
from acktr.figures import plot_learning_curve
from acktr.presets import Configuration
from acktr.runs import Run, holds_run, versions
from acktr.saver import Follower, Saver, StopTraining, restore_logger

# Versions that rounding may depend on.
_NUMERICAL = ("python", "torch", "numpy", "gymnasium", "stable-baselines3", "mujoco", "envpool", "acktr")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What sums up a training run.

    :param steps: environment steps that were made
    :param seconds: wall time, evaluations and the parts before a resume included
    :param interrupted: whether training was stopped before its end
    :param episodes: finished training episodes
    :param last_100_return: mean training return of the last 100 episodes; ``None`` before the first
    :param evaluation: figures of the final evaluation; ``None`` if there was none
    """

    steps: int
    seconds: float
    interrupted: bool
    episodes: int
    last_100_return: float | None
    evaluation: dict[str, float] | None


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
    with run.lock():
        if not resume and holds_run(run.path):
            raise ConfigurationError(
                f"{run.path} already holds a run: give another directory with --out."
            )
        store = run.checkpoints(configuration.keep_last, configuration.keep_best)
        store.clean()
        checkpoint = _newest(run, model, tell) if resume else None
        run.write_configuration(configuration.model_dump(mode="json"))
        distributed.gather(str(checkpoint.path if checkpoint else "").encode())
        state = checkpoint.components["run"] if checkpoint else None
        seconds = state["seconds"] if state else 0.0
        resumed = None
        if checkpoint and state:
            resumed = (checkpoint.steps, checkpoint.info["updates"], state["progress_rows"])
        with contextlib.ExitStack() as opened:
            episodes = EpisodeTable(run, state and state["episodes"], seconds)
            opened.callback(episodes.table.close)
            evaluations = Evaluations(
                evaluation_env, configuration, run, should_stop, state and state["evaluations"], seconds
            )
            opened.callback(evaluations.table.close)
            model.set_logger(run.logger(resumed))
            opened.callback(model.logger.close)
            saver = Saver(
                store,
                configuration,
                episodes,
                evaluations,
                evaluation_env,
                versions(),
                should_stop,
                checkpoint,
            )
            if checkpoint and state:
                restore_logger(model.logger, state["logger"])
                _restore(model, evaluation_env, checkpoint, tell)
                store.set_aside_after(checkpoint.steps)
            try:
                _learn(model, configuration, [saver, episodes, *callbacks, evaluations])
                if distributed.any_of(evaluations.was_left)[0]:
                    saver.save_held()
                else:
                    saver.save()
                run.save_model(model)
                evaluation = None if should_stop() else evaluations.final()
                if evaluation is not None:
                    evaluations.write(evaluation)
            except DivergenceError as error:
                # Raised before an update: the parameters are those of the last good one.
                path = run.save_model(model)
                raise DivergenceError(f"{error} The model before it is in {path}.") from error
        result = Result(
            steps=model.num_timesteps,
            seconds=saver.seconds,
            interrupted=should_stop(),
            episodes=episodes.count,
            last_100_return=episodes.mean_return(),
            evaluation=None if evaluation is None else evaluation.summary(),
        )
        run.write_result(asdict(result))
        plot_learning_curve(run)
        return result


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
        _restore(model, None, read_checkpoint(Path(path)), lambda sentence: None)
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


def _newest(run: Run, model: ACKTR, tell: Tell) -> Checkpoint | None:
    checkpoint, skipped = run.checkpoints().newest()
    for sentence in skipped:
        tell(f"Skipped: {sentence}")
    if checkpoint is None:
        tell(f"{run.path} has no checkpoint yet: training begins anew.")
        return None
    check_learner(model, checkpoint.components, str(checkpoint.path))
    check_run(checkpoint.components.get("run"), checkpoint.info, str(checkpoint.path))
    return checkpoint


def _restore(model: ACKTR, evaluation_env: VecEnv | None, checkpoint: Checkpoint, tell: Tell) -> None:
    where = str(checkpoint.path)
    with decoding(where, "the state of the learner"):
        problems = restore_learner(model, checkpoint.components, where, evaluation_env)
    reasons = [*checkpoint.info.get("reasons", []), *problems, *_other_versions(model, checkpoint)]
    if reasons:
        how = f"same learner state, but not bit for bit: {'; '.join(reasons)}"
    else:
        how = "exactly, environments included"
    tell(f"Resumed at step {checkpoint.steps:,} from {where}: {how}.")


def _other_versions(model: ACKTR, checkpoint: Checkpoint) -> list[str]:
    saved, own = checkpoint.info.get("versions", {}), versions()
    found = [
        f"{name} was {saved[name]} and is {own.get(name)}"
        for name in _NUMERICAL
        if name in saved and saved[name] != own.get(name)
    ]
    if checkpoint.info.get("device") != str(model.device):
        found.append(f"the device was {checkpoint.info.get('device')} and is {model.device}")
    return found
