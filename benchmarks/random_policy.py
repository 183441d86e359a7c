"""Scores of the random policy, the zero of normalised scores: ``python -m benchmarks.random_policy``."""

import csv
import json

import numpy as np

from acktr.compare.store import session
from acktr.envs import make_vec_env
from acktr.envs.masks import draw_allowed
from benchmarks import suites
from benchmarks.suites.data import RANDOM_POLICY

SUITES = ("mujoco", "general", "masks", "memory")
EPISODES = 100
SEED = 0


def play(env_id: str) -> list[float]:
    """Return the returns of episodes with uniform actions, of those that are allowed.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    """
    env = make_vec_env(env_id, 1, SEED, backend="gymnasium")
    env.action_space.seed(SEED)
    rng = np.random.default_rng(SEED)
    env.reset()
    returns: list[float] = []
    while len(returns) < EPISODES:
        *_, infos = env.step(draw_allowed(env, rng))
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    env.close()
    return returns[:EPISODES]


def main() -> None:
    """Play every task of the suites and write the csv and its manifest."""
    tasks = dict.fromkeys(env_id for name in SUITES for env_id in suites.load(name).envs)
    with RANDOM_POLICY.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("env", "episodes", "mean_return", "std_return"))
        for env_id in tasks:
            returns = play(env_id)
            row = (env_id, EPISODES, f"{np.mean(returns):.6g}", f"{np.std(returns):.6g}")
            print(*row, flush=True)
            writer.writerow(row)
    manifest = {**session("python -m benchmarks.random_policy"), "seed": SEED}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    RANDOM_POLICY.with_suffix(".manifest.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
