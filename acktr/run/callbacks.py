"""Callbacks of a training: episodes are noted, evaluations played, stops obeyed."""

import io
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from acktr.files.durable import WriteErrors, write_file
from acktr.presets import Configuration
from acktr.run.directory import EPISODE_COLUMNS, EVALUATION_COLUMNS, Run
from acktr.run.masks import player
from acktr.run.tables import SCORE_WINDOW, Kept, Table


@dataclass(frozen=True)
class Evaluation:
    """Returns (undiscounted, unclipped) and lengths of whole episodes."""

    returns: list[float]
    lengths: list[int]

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation and extremes, as plain numbers."""
        return {
            "mean_return": float(np.mean(self.returns)),
            "std_return": float(np.std(self.returns)),
            "min_return": float(np.min(self.returns)),
            "max_return": float(np.max(self.returns)),
            "mean_length": float(np.mean(self.lengths)),
            "episodes": len(self.returns),
        }


def play(
    model: BaseAlgorithm,
    env: VecEnv,
    episodes: int,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> Evaluation:
    """Play whole episodes with the deterministic policy, and with the masks that it has learned with.

    :param model: any SB3 algorithm
    :param env: environments that have a ``Monitor``: its returns count, not those of the wrappers
    :param episodes: how many, divided evenly over the environments
    :param callback: called after each step of an environment that still counts
    """
    returns, lengths = evaluate_policy(
        player(model, env), env, episodes, callback=callback, return_episode_rewards=True
    )
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return Evaluation([float(value) for value in returns], [int(value) for value in lengths])


class EpisodeTable(BaseCallback):
    """Writes ``episodes.csv`` and keeps the returns that the score averages.

    :param run: whose table it is
    :param state: to go on from, see :meth:`state_dict`
    :param seconds: of training so far
    :param errors: what is done if the table cannot be written
    """

    def __init__(
        self,
        run: Run,
        state: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
        errors: WriteErrors | None = None,
    ) -> None:
        super().__init__()
        self.count = state["count"] if state else 0
        self.table = Table(run.path / "episodes.csv", EPISODE_COLUMNS, _kept(state, self.count), errors)
        last_returns = state["last_returns"] if state else ()
        self._last_returns: deque[float] = deque(last_returns, maxlen=SCORE_WINDOW)
        self._start = time.perf_counter() - seconds

    def state_dict(self) -> dict[str, Any]:
        """Return how many episodes there were, and the returns of the last ones."""
        steps = self.model.num_timesteps
        return {
            "count": self.count,
            "rows": self.table.rows,
            "steps": steps,
            "last_returns": [float(x) for x in self._last_returns],
        }

    def mean_return(self) -> float | None:
        """Mean return of the last 100 episodes, ``None`` before the first."""
        return float(np.mean(self._last_returns)) if self._last_returns else None

    def _on_step(self) -> bool:
        for index in np.flatnonzero(self.locals["dones"]):
            # Absent where only a life was lost.
            episode = self.locals["infos"][index].get("episode")
            if episode is not None:
                self.count += 1
                self._last_returns.append(episode["r"])
                seconds = round(time.perf_counter() - self._start, 3)
                self.table.append((self.num_timesteps, episode["r"], episode["l"], seconds, int(index)))
        return True


def _kept(state: Mapping[str, Any] | None, rows: int = 0) -> Kept:
    """Return the rows that a checkpoint has of a table; ``rows`` for those that do not say."""
    return Kept(state.get("rows", rows), state.get("steps", math.inf)) if state else Kept()


# What SB3's EvalCallback remembers.
_EVALUATED = (
    "n_calls",
    "best_mean_reward",
    "last_mean_reward",
    "evaluations_timesteps",
    "evaluations_results",
    "evaluations_length",
)


class _StopEvaluation(Exception):
    """Raised inside an evaluation to leave it."""


class Evaluations(EvalCallback):
    """SB3's ``EvalCallback`` that also writes ``evaluations.csv`` and can be left at any step.

    :param env: the environments to play in
    :param configuration: how often, and how many episodes
    :param run: whose table and best model it writes
    :param should_stop: asked at each step of an evaluation; when true, training ends there
    :param state: to go on from, see :meth:`state_dict`
    :param seconds: of training so far
    :param errors: what is done about files that cannot be written
    """

    def __init__(
        self,
        env: VecEnv,
        configuration: Configuration,
        run: Run,
        should_stop: Callable[[], bool],
        state: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
        errors: WriteErrors | None = None,
    ) -> None:
        interval = configuration.evaluation_interval()
        super().__init__(
            env,
            n_eval_episodes=configuration.n_eval_episodes,
            # EvalCallback counts calls, of which each is a step of all environments; 0 is never.
            eval_freq=interval and max(interval // configuration.n_envs, 1),
            verbose=0,
        )
        self._errors = errors or WriteErrors()
        self.table = Table(run.path / "evaluations.csv", EVALUATION_COLUMNS, _kept(state), self._errors)
        self.was_left = False
        self._run = run
        self._should_stop = should_stop
        self._n_final_episodes = configuration.n_final_eval_episodes
        self._start = time.perf_counter() - seconds
        self.seconds = 0.0  # spent on evaluations while this process has trained
        if state:
            for name in _EVALUATED:
                setattr(self, name, state[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what was evaluated, and when the next evaluation is due."""
        state = {name: getattr(self, name) for name in _EVALUATED}
        return {"rows": self.table.rows, "steps": self.model.num_timesteps, **state}

    def is_due_within(self, n_steps: int) -> bool:
        """Whether an evaluation falls into the next steps of each environment."""
        period = self.eval_freq
        return period > 0 and (self.n_calls + n_steps) // period > self.n_calls // period

    def final(self) -> Evaluation | None:
        """Evaluate once more with more episodes; ``None`` if it was stopped or is not wanted."""
        if self._n_final_episodes == 0:
            return None
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        try:
            return play(self.model, self.eval_env, self._n_final_episodes, self._check_stop)
        except _StopEvaluation:
            return None

    def write(self, evaluation: Evaluation) -> None:
        """Append a row to ``evaluations.csv`` and keep the model if it is the best so far."""
        summary = evaluation.summary()
        seconds = round(time.perf_counter() - self._start, 3)
        row = {"steps": self.num_timesteps, "seconds": seconds, **summary}
        self.table.append([row[name] for name in EVALUATION_COLUMNS])
        # EvalCallback has already taken over a new best mean: equal means "this one".
        if summary["mean_return"] >= self.best_mean_reward:
            self.best_mean_reward = summary["mean_return"]
            with self._errors.about(self._run.model_path(best=True)):
                self._run.save_model(cast(Any, self.model), best=True)

    def _init_callback(self) -> None:
        super()._init_callback()
        self._player = player(self.model, self.eval_env)
        # np.savez takes open files: what lies at the path of the real one is not to be written through.
        self._arrays = io.BytesIO()
        self.log_path = cast(Any, self._arrays)

    def _write_arrays(self) -> None:
        path, data = self._run.path / "evaluations.npz", self._arrays.getvalue()
        self._arrays.seek(0)
        self._arrays.truncate()
        with self._errors.about(path):
            write_file(path, data)

    def _on_step(self) -> bool:
        n_evaluations = len(self.evaluations_results)
        start = time.perf_counter()
        model, self.model = self.model, self._player
        try:
            goes_on = super()._on_step()
        except _StopEvaluation:
            self.was_left = True
            return False
        finally:
            self.model = model
        if len(self.evaluations_results) > n_evaluations:
            self._write_arrays()
            self.write(Evaluation(self.evaluations_results[-1], self.evaluations_length[-1]))
            self.seconds += time.perf_counter() - start
        return goes_on

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self._check_stop(locals_, globals_)

    def _check_stop(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        if self._should_stop():
            raise _StopEvaluation
