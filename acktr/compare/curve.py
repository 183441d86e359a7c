"""What is noted of a training, of whichever algorithm: its learning curve and its scores."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

# The score at a step is the mean return of this many last episodes.
SCORE_WINDOW = 100
N_POINTS = 100
COLUMNS = ("steps", "seconds", "cpu_seconds", "return")
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
    there: the episodes from its run directory, points and times from ``notes``.

    :param n_timesteps: how long training is to be, steps
    :param notes: a csv file that gets each point, and the time spent before each rollout
    :param episodes: ``episodes.csv`` of the run directory
    """

    def __init__(
        self, n_timesteps: int, notes: Path | None = None, episodes: Path | None = None
    ) -> None:
        super().__init__()
        self._notes, self._episodes = notes, episodes
        self.points: list[Point] = []
        self._marks = [n_timesteps * i // N_POINTS for i in range(1, N_POINTS + 1)]
        self._ends: list[int] = []
        self._returns: list[float] = []
        self._start = self._cpu_start = 0.0
        self.seconds = self.cpu_seconds = 0.0

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
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        if self._notes is not None:
            rows = self._take_up(self._notes) if self.model.num_timesteps else []
            # What was noted after the checkpoint is noted anew.
            with self._notes.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *rows])

    def _take_up(self, notes: Path) -> list[list[str]]:
        """Go on from what was noted until the step of the checkpoint; return it."""
        with notes.open(newline="", encoding="utf-8") as file:
            rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(COLUMNS)]
        rows = [row for row in rows if int(row[0]) <= self.model.num_timesteps]
        if rows:
            self._start -= float(rows[-1][1])
            self._cpu_start -= float(rows[-1][2])
        marks = {str(mark) for mark in self._marks}
        for steps, seconds, cpu_seconds, mean_return in rows:
            if steps in marks:
                score = None if mean_return == "" else float(mean_return)
                self.points.append(Point(int(steps), float(seconds), float(cpu_seconds), score))
        if self._episodes is not None:
            with self._episodes.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    self._ends.append(int(row["steps"]))
                    self._returns.append(float(row["return"]))
        return rows

    def _note(self, steps: int, mean_return: float | None = None) -> None:
        self.stop()
        if self._notes is not None:
            with self._notes.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow((steps, self.seconds, self.cpu_seconds, mean_return))

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps not in self._marks:
            self._note(self.model.num_timesteps)

    def _on_step(self) -> bool:
        for index in np.flatnonzero(self.locals["dones"]):
            # Absent where only a life was lost.
            episode = self.locals["infos"][index].get("episode")
            if episode is not None:
                self._ends.append(self.num_timesteps)
                self._returns.append(float(episode["r"]))
        while (n := len(self.points)) < N_POINTS and self.num_timesteps >= self._marks[n]:
            mean_return = self._mean(len(self._returns))
            self._note(self._marks[n], mean_return)
            self.points.append(Point(self._marks[n], self.seconds, self.cpu_seconds, mean_return))
        return True

    def _on_training_end(self) -> None:
        self.stop()
