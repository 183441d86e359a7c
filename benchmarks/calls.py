"""Whether many short trainings end where one long one does: ``python -m benchmarks.calls``.

The same 100,000 steps by one call of ``learn``, and by five calls of 20,000, with
``reset_num_timesteps=True`` and ``False``. Rows that are there already are kept, so that a run that was
interrupted goes on. What they say stands on the page of ablations.
"""

import csv
import warnings
from collections import deque
from itertools import product
from statistics import mean
from typing import Any

from stable_baselines3.common.evaluation import evaluate_policy

import acktr
from acktr.envs import make_vec_env
from benchmarks.faults.measure import existing
from benchmarks.tuning.report import TUNING

TASKS = ("Pendulum-v1", "Hopper-v5")
STEPS, CALLS, SEEDS, EPISODES = 100_000, 5, range(5), 20
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one call": (1, {}),
    "five calls, reset_num_timesteps=True": (CALLS, {}),
    "five calls, reset_num_timesteps=False": (CALLS, {"reset_num_timesteps": False}),
}
_COLUMNS = ("env", "preset", "way", "seed", "last_20_return", "eval_mean", "std")


def train(env_id: str, preset: str | None, way: str, seed: int) -> dict[str, Any]:
    """Train one model, and evaluate it without noise.

    :param preset: by name; ``None`` for the one that ``acktr train`` takes
    :param way: one of ``WAYS``
    """
    calls, kwargs = WAYS[way]
    model = acktr.make(env_id, preset=preset, seed=seed, n_timesteps=STEPS, backend="gymnasium")
    returns: deque[float] = deque(maxlen=EPISODES)
    for _ in range(calls):
        model.learn(STEPS // calls, **kwargs)
        assert model.ep_info_buffer is not None
        returns.extend(episode["r"] for episode in list(model.ep_info_buffer)[-EPISODES:])
    env: Any = make_vec_env(env_id, 1, seed + 1000, backend="gymnasium")
    if (normalize := model.get_vec_normalize_env()) is not None:
        frozen = type(normalize)(env, training=False, norm_reward=False, norm_obs=normalize.norm_obs)
        frozen.obs_rms, env = normalize.obs_rms, frozen
    evaluated, _ = evaluate_policy(model, env, EPISODES)
    return {
        **{"env": env_id, "preset": preset or "(the task's)", "way": way, "seed": seed},
        **{"last_20_return": f"{mean(returns):.6g}", "eval_mean": f"{evaluated:.6g}"},
        "std": f"{model.policy.log_std.exp().mean().item():.4g}",
    }


def main() -> None:
    """Train what no row is there for, and add a row each."""
    path = TUNING / "calls.csv"
    done = {tuple(row[name] for name in _COLUMNS[:4]) for row in existing(path)}
    warnings.simplefilter("ignore")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for seed, env_id, preset, way in product(SEEDS, TASKS, ("defaults", None), WAYS):
            if (env_id, preset or "(the task's)", way, str(seed)) not in done:
                row = train(env_id, preset, way, seed)
                print(*row.values(), flush=True)
                writer.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
