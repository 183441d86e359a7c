"""A suite with made-up results, some of them missing."""

import numpy as np

from acktr.compare.curve import N_POINTS, LearningCurve, Point
from acktr.compare.store import Store
from acktr.compare.trial import Outcome
from benchmarks.suites import Suite
from benchmarks.suites.data import SuiteData

TASKS = ("HalfCheetah-v5", "Reacher-v5")
# Final returns by task and label; seconds are steps / 10,000 for ACKTR, / 1,000 for the others.
FINALS = {
    ("HalfCheetah-v5", "acktr"): (6000.0, 5000.0, 5500.0, 2000.0),
    ("HalfCheetah-v5", "ppo"): (5000.0, 4000.0, 4500.0),
    ("HalfCheetah-v5", "trpo"): (1500.0, 2000.0, 2500.0),
    ("Reacher-v5", "acktr"): (-4.0, -5.0, -4.5, -6.0),
    ("Reacher-v5", "ppo"): (-5.0, -7.0, -6.0),
    ("Reacher-v5", "trpo"): (-10.0,),
}
SESSION = {
    "command": "python -m benchmarks.run small",
    "date": "2026-01-01",
    "machine": {"cpu": "a CPU", "platform": "Linux", "processors": 2, "threads": 1},
    "versions": {"torch": "2.13.0", "git_commit": "0123456789abcdef+"},
}


def small_suite(path, finals=FINALS, seeds=4, **fields):
    """Write the results below ``path``: straight lines from a random policy to the final return.

    :param fields: of the suite, in place of its own
    """
    own = {
        "title": "Small",
        "about": "Made up.",
        "steps": 1_000_000,
        "seeds": list(range(seeds)),
        "envs": list(TASKS),
        "algorithms": {"acktr": {}, "ppo": {}, "trpo": {}},
    }
    suite = Suite(**{**own, **fields})
    store = Store(path)
    for trial in suite.trials():
        values = finals.get((trial.env_id, trial.label), ())
        if trial.seed < len(values):
            settings = {"algo": trial.algo, "steps": trial.n_timesteps}
            store.add(trial, outcome(trial, values[trial.seed]), settings, SESSION)
    return SuiteData("small", suite, path)


def outcome(trial, final):
    start = {"HalfCheetah-v5": -285.0, "Reacher-v5": -43.0}[trial.env_id]
    rate = 10_000 if trial.algo == "acktr" else 1_000
    curve = LearningCurve(trial.n_timesteps)
    for i in range(1, N_POINTS + 1):
        steps = trial.n_timesteps * i // N_POINTS
        # The first point has seen no episode end.
        value = None if i == 1 else start + (final - start) * i / N_POINTS
        curve.points.append(Point(steps, 2.0 * steps / rate, steps / rate, value))
    best = 2.5 * final if final == 2000.0 and trial.label == "acktr" else final
    scores = {
        "steps": trial.n_timesteps, "episodes": 1000, "last_100_return": final, "eval_mean": final,
        "eval_std": 1.0, "eval_episodes": 20, "best_100_return": best,
        "return_300k": float(np.interp(0.3, (0, 1), (start, final))),
        "return_500k": float(np.interp(0.5, (0, 1), (start, final))),
        "seconds": 2.0 * trial.n_timesteps / rate, "cpu_seconds": trial.n_timesteps / rate,
        "fps": rate / 2.0, "diverged": "no", "backend": "gymnasium",
    }  # fmt: skip
    return Outcome(scores, curve)
