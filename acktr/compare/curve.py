"""The learning curve and the scores of a training, of whichever algorithm."""

import time
from array import array
from collections.abc import Mapping
from copy import copy
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from acktr.errors import CheckpointError
from acktr.run.directory import Run
from acktr.run.tables import SCORE_WINDOW, Table, read_table

N_POINTS = 100
COLUMNS = ("steps", "seconds", "cpu_seconds", "return")
_TIMES = COLUMNS[:3]
_STATE = ("seconds", "cpu_seconds", "resumed_at")
# Steps at which the score is a figure of its own, where a training is long enough.
MILESTONES = {"return_300k": 300_000, "return_500k": 500_000}


@dataclass(frozen=True)
class Point:
    """One point of a learning curve; ``mean_return`` is ``None`` before the first episode's end."""

    steps: int
    seconds: float
    cpu_seconds: float
    mean_return: float | None


class LearningCurve(BaseCallback):
    """Notes the returns of episodes, and points at fixed steps with the seconds spent so far.

    Returns are those of ``Monitor``: undiscounted, unclipped and not normalised. ``seconds`` is
    wall-clock time since learning began; ``cpu_seconds`` is what this process computed meanwhile, on a
    core of its own the same, and unlike it where other work interferes.

    A training of ACKTR that goes on from a checkpoint takes up what an earlier process had noted until
    there: episodes from its run directory, and the time spent from ``times.csv`` beside it. A peer's
    checkpoint holds the curve, and ``resumed_at`` has the steps at which the peer went on from one.

    :param n_timesteps: how long training is to be, steps
    :param folder: of ``times.csv`` and the run directory ``run``; ``None`` for what cannot go on
    """

    def __init__(self, n_timesteps: int, folder: Path | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._times: Table | None = None
        self.points: list[Point] = []
        self._marks = [n_timesteps * i // N_POINTS for i in range(1, N_POINTS + 1)]
        # Arrays: 16 bytes an episode, of which a training may have millions.
        self._ends, self._returns = array("q"), array("d")
        self._start = self._cpu_start = 0.0
        self.seconds = self.cpu_seconds = 0.0
        self.resumed_at: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        """Return all that was noted, with the time until now, as plain values."""
        self.stop()
        return {
            "points": [astuple(point) for point in self.points],
            "_ends": self._ends.tolist(),
            "_returns": self._returns.tolist(),
            **{name: copy(getattr(self, name)) for name in _STATE},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned, before learning begins."""
        self.points = [Point(*values) for values in state["points"]]
        self._ends, self._returns = array("q", state["_ends"]), array("d", state["_returns"])
        for name in _STATE:
            setattr(self, name, copy(state[name]))

    def stop(self) -> None:
        """Take the time that learning took; for a training that ended with an error."""
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu_start

    def scores(self) -> dict[str, Any]:
        """Return the figures that sum up the training; those that do not exist are ``None``."""
        ends, returns = self._ends, self._returns
        last = best = self._mean(len(returns))
        if len(returns) > SCORE_WINDOW:
            sums = np.cumsum(np.insert(returns, 0, 0.0))
            best = float((sums[SCORE_WINDOW:] - sums[:-SCORE_WINDOW]).max() / SCORE_WINDOW)
        reached: dict[str, float | None] = dict.fromkeys(MILESTONES)
        for name, steps in MILESTONES.items():
            if self.num_timesteps >= steps:
                reached[name] = self._mean(int(np.searchsorted(ends, steps, side="right")))
        return {
            "episodes": len(returns),
            "last_100_return": last,
            "best_100_return": best,
            **reached,
        }

    def _mean(self, n_episodes: int) -> float | None:
        """Mean of the last 100 of the first ``n_episodes``."""
        window = self._returns[max(n_episodes - SCORE_WINDOW, 0) : n_episodes]
        return float(np.mean(window)) if window else None

    def _on_training_start(self) -> None:
        if self._folder is not None:
            kept = self._take_up(self._folder) if self.model.num_timesteps else 0
            self._times = Table(self._folder / "times.csv", _TIMES, kept)
        self._start = time.perf_counter() - self.seconds
        self._cpu_start = time.process_time() - self.cpu_seconds

    def _take_up(self, folder: Path) -> int:
        """Go on from what was noted until the checkpoint; return how many times that is."""
        done = self.model.num_timesteps
        times = read_table(folder / "times.csv", _TIMES)
        kept = int(np.searchsorted(times["steps"], done, side="right"))
        if not kept:
            raise CheckpointError(
                f"{folder / 'times.csv'} has no time before step {done:,}: train again."
            )
        steps, seconds, cpu_seconds = (times[name][:kept] for name in _TIMES)
        self.seconds, self.cpu_seconds = float(seconds[-1]), float(cpu_seconds[-1])
        episodes = Run(folder / "run").episodes()
        self._ends = array("q", episodes["steps"].astype(np.int64).tobytes())
        self._returns = array("d", episodes["return"].astype(np.float64).tobytes())
        for mark in self._marks:
            if mark > done:
                break
            passed = -(-mark // self.model.n_envs) * self.model.n_envs
            score = self._mean(int(np.searchsorted(self._ends, passed, side="right")))
            wall, cpu = (float(np.interp(mark, steps, clock)) for clock in (seconds, cpu_seconds))
            self.points.append(Point(mark, wall, cpu, score))
        return kept

    def close(self) -> None:
        """Close ``times.csv``."""
        if self._times is not None:
            self._times.close()

    def _on_rollout_start(self) -> None:
        if self._times is not None:
            self.stop()
            self._times.append((self.model.num_timesteps, self.seconds, self.cpu_seconds))

    def _on_step(self) -> bool:
        for index in np.flatnonzero(self.locals["dones"]):
            # Absent where only a life was lost.
            episode = self.locals["infos"][index].get("episode")
            if episode is not None:
                self._ends.append(self.num_timesteps)
                self._returns.append(float(episode["r"]))
        while (n := len(self.points)) < N_POINTS and self.num_timesteps >= self._marks[n]:
            self.stop()
            mean_return = self._mean(len(self._returns))
            self.points.append(Point(self._marks[n], self.seconds, self.cpu_seconds, mean_return))
        return True

    def _on_training_end(self) -> None:
        self.stop()
