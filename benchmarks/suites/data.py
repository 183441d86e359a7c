"""What is known of a suite: the rows of its runs by task and label, their scores and curves."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from acktr.compare.store import Store
from acktr.compare.trial import Trial
from benchmarks.statistics import iqm
from benchmarks.suites import Suite

RESULTS = Path(__file__).resolve().parents[1] / "results"
RANDOM_POLICY = RESULTS / "random_policy.csv"
ACKTR, PEERS = "acktr", ("ppo", "trpo")
# A second PPO, for the Zoo's settings are not the best for it everywhere.
PPO_DEFAULTS = "ppo defaults"
# A run has collapsed if it ends this far, as a share of its size, below its own best.
_COLLAPSE = 0.5

Row = Mapping[str, str]


class SuiteData:
    """The results of a suite, complete or not.

    :param name: of the suite
    :param suite: what it asks for
    :param path: the directory of its store
    """

    def __init__(self, name: str, suite: Suite, path: Path | None = None) -> None:
        self.name, self.suite = name, suite
        self.path = RESULTS / name if path is None else path
        self._store = Store(self.path)

    @cached_property
    def wanted(self) -> list[Trial]:
        """Every run that the suite asks for."""
        return self.suite.trials()

    @cached_property
    def rows(self) -> dict[tuple[str, str], list[Row]]:
        """The rows by task and label, in the suite's order; those without a single episode left out."""
        known = {(row["env"], row["label"], row["seed"]): row for row in self._store.rows()}
        rows: dict[tuple[str, str], list[Row]] = {}
        for env in self.envs_wanted:
            for label in self.suite.algorithms:
                for trial in self.wanted:
                    if (trial.env_id, trial.label) != (env, label):
                        continue
                    row = known.get((env, label, str(trial.seed)))
                    if row is not None and row["last_100_return"]:
                        rows.setdefault((env, label), []).append(row)
        return rows

    @property
    def envs_wanted(self) -> list[str]:
        """The tasks of the suite."""
        return list(dict.fromkeys(trial.env_id for trial in self.wanted))

    @property
    def envs(self) -> list[str]:
        """The tasks that have a run."""
        return list(dict.fromkeys(env for env, _ in self.rows))

    @property
    def labels(self) -> list[str]:
        """The labels that have a run."""
        found = {label for _, label in self.rows}
        return [label for label in self.suite.algorithms if label in found]

    def n_wanted(self, env: str, label: str) -> int:
        """Count the seeds that the suite asks for."""
        return sum(trial.env_id == env and trial.label == label for trial in self.wanted)

    def scores(
        self,
        env: str,
        label: str,
        column: str = "last_100_return",
        seeds: Collection[str] | None = None,
    ) -> np.ndarray:
        """Return a column of the runs of a task and label, or of some seeds, empty values left out."""
        return np.array([float(row[column]) for row in self._rows(env, label, seeds) if row[column]])

    def score(self, env: str, label: str, column: str = "last_100_return") -> float | None:
        """Return the interquartile mean of a column; ``None`` where there is none."""
        scores = self.scores(env, label, column)
        return float(iqm(scores)) if len(scores) else None

    def curves(
        self, env: str, label: str, seeds: Collection[str] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Return the learning curve of each seed, or of some."""
        steps = {(t.env_id, t.label, str(t.seed)): t.key for t in self.wanted}
        return [
            self._store.curve(steps[row["env"], row["label"], row["seed"]])
            for row in self._rows(env, label, seeds)
        ]

    def first_reached(self, env: str, label: str, target: float) -> int | None:
        """Return the first point of the learning curves whose IQM over seeds is at least ``target``."""
        curves = self.curves(env, label)
        n_points = min(len(curve["return"]) for curve in curves)
        returns = np.stack([curve["return"][:n_points] for curve in curves])
        # Before each seed has had an episode there is no IQM; comparisons with NaN are false.
        reached = np.flatnonzero(np.isfinite(returns).all(axis=0) & (iqm(returns, axis=0) >= target))
        return int(reached[0]) if len(reached) else None

    def _rows(self, env: str, label: str, seeds: Collection[str] | None = None) -> list[Row]:
        rows = self.rows.get((env, label), [])
        return rows if seeds is None else [row for row in rows if row["seed"] in seeds]

    def common_seeds(self, env: str, *labels: str, column: str) -> set[str]:
        """Return the seeds for which all labels have a value in a column."""
        known = ({row["seed"] for row in self._rows(env, label) if row[column]} for label in labels)
        return set.intersection(*known)

    def in_turns(self, env: str, *labels: str) -> list[str]:
        """Return the seeds that all labels learned in the same session."""
        sessions = [
            {(row["seed"], row["session"]) for row in self._rows(env, label)} for label in labels
        ]
        return sorted((seed for seed, _ in set.intersection(*sessions)), key=int)

    @cached_property
    def processor(self) -> str:
        """The processor that most runs had: seconds of another cannot be compared with its own."""
        counts = Counter(self._processors[row["session"]] for rows in self.rows.values() for row in rows)
        return counts.most_common(1)[0][0]

    def timed(self, env: str, label: str, processor: str | None = None) -> list[str]:
        """Return the seeds whose seconds are those of a processor, by default of :attr:`processor`."""
        rows, wanted = self._rows(env, label), processor or self.processor
        return [row["seed"] for row in rows if self._processors[row["session"]] == wanted]

    def processor_of(self, env: str, *labels: str) -> str:
        """Return a processor that all labels have had on a task, else :attr:`processor`."""
        had = [{self._processors[row["session"]] for row in self._rows(env, x)} for x in labels]
        common = set.intersection(*had)
        return self.processor if self.processor in common or not common else min(common)

    @cached_property
    def _processors(self) -> dict[str, str]:
        return {session: about["machine"]["cpu"] for session, about in self.manifest().items()}

    @property
    def ours(self) -> str:
        """The label of ACKTR that the others are compared with."""
        return self.suite.ours

    def groups(self) -> dict[str, list[str]]:
        """Name sets of tasks that have a run: all, and where some are held out also both parts."""
        groups = {"all": self.envs}
        if held_out := set(self.suite.held_out):
            groups["tuning"] = [env for env in self.envs if env not in held_out]
            groups["held out"] = [env for env in self.envs if env in held_out]
        return {name: envs for name, envs in groups.items() if envs}

    def best(self, env: str) -> tuple[str, float] | None:
        """Return the label whose score is 1 when normalised, and that score; ``None`` if it is unknown.

        It is that of :meth:`target` or, in a suite whose ``reference`` is ``all``, the best of all
        labels, of which two at least must have learned the task.
        """
        if self.suite.reference == "peers":
            return self.target(env)
        scores = {label: self.score(env, label) for label in self.labels}
        known = {label: score for label, score in scores.items() if score is not None}
        return max(known.items(), key=lambda pair: pair[1]) if len(known) > 1 else None

    def target(self, env: str, *, tuned: bool = False) -> tuple[str, float] | None:
        """Return the best of the peers at the end, and its score.

        They are PPO, TRPO and, where it has learned the task, PPO with Stable-Baselines3's settings;
        ``None`` if one of the first two is missing.

        :param tuned: leave out the second PPO
        """
        labels = PEERS if tuned else (*PEERS, PPO_DEFAULTS)
        scores = {label: self.score(env, label) for label in labels}
        if any(scores[label] is None for label in PEERS):
            return None
        return max(((label, score) for label, score in scores.items() if score is not None),
                   key=lambda pair: pair[1])  # fmt: skip

    def normalized(self, label: str, column: str = "last_100_return") -> dict[str, np.ndarray]:
        """Return the scores of each task: 0 is the random policy, 1 the label of :meth:`best`.

        A task on which that one is no better than the random policy is left out.
        """
        random = random_policy()
        normalized = {}
        for env in self.envs:
            scores, best = self.scores(env, label, column), self.best(env)
            if len(scores) and best is not None and best[1] > random.get(env, np.inf):
                normalized[env] = (scores - random[env]) / (best[1] - random[env])
        return normalized

    def manifest(self) -> dict[str, Any]:
        """Read the manifest: a mapping for each session."""
        return self._store.manifest()


def task_name(env: str) -> str:
    """Return the id of a task without the module that registers it."""
    return env.rpartition(":")[2]


def collapsed(row: Row) -> bool:
    """Tell whether a run ended at less than half of its own best (below zero: half as far again)."""
    best, last = float(row["best_100_return"]), float(row["last_100_return"])
    return last < best - _COLLAPSE * abs(best)


def random_policy(path: Path = RANDOM_POLICY) -> dict[str, float]:
    """Return the mean return of the random policy on each task."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["env"]: float(row["mean_return"]) for row in csv.DictReader(file)}
