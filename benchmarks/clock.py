"""Steps per second of ACKTR and PPO on a suite, in turns: ``python -m benchmarks.clock SUITE``.

Where the runs of a suite have shared their cores their seconds cannot be compared. So both are timed
apart: short runs one after the other on one core, two rounds of each, written to
``benchmarks/results/SUITE/clock.csv``. What is there is not run again. Times the steps of
:func:`benchmarks.suites.clock.table` come to the seconds until PPO's return.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acktr.compare.runner import run_trials
from acktr.compare.store import Store
from acktr.compare.trial import Trial
from benchmarks import suites
from benchmarks.faults.measure import existing
from benchmarks.suites.data import RESULTS

STEPS = 20480  # ten rollouts of 8 x 256, forty of 512
ROUNDS = 2
COLUMNS = ("env", "label", "round", "steps", "cpu_seconds", "settings")


def short_trials(suite: suites.Suite) -> list[Trial]:
    """Return the runs to be timed, those that are compared one after the other."""
    of_seed = [t for t in suite.trials() if t.label in (suite.ours, "ppo") and t.seed == suite.seeds[0]]
    return [
        replace(trial, seed=seed, n_timesteps=STEPS, eval_episodes=0)
        for env in suite.envs
        for seed in range(ROUNDS)
        for trial in of_seed
        if trial.env_id == env
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what has not been timed.

    :return: the exit code: 0 done, 1 a run failed
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clock", description=__doc__)
    parser.add_argument("suite", choices=suites.names())
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    path = options.out or RESULTS / options.suite / "clock.csv"
    done = {(row["env"], row["label"], int(row["round"])) for row in existing(path)}
    for trial in short_trials(suites.load(options.suite)):
        if (trial.env_id, trial.label, trial.seed) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            summary = run_trials([trial], store, [(options.core,)], command="python -m benchmarks.clock")
            row = store.find(trial)
        if row is None:
            print(f"{trial.env_id}, {trial.label}: {summary.failed[0].error}", file=sys.stderr)
            return 1
        line = {**{key: row[key] for key in COLUMNS if key in row}, "round": trial.seed}
        print(*line.values(), flush=True)
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
