"""Scores of the random policy, the zero of normalised scores: ``python -m benchmarks.random_policy``."""

import csv
import json

import gymnasium as gym
import numpy as np

from acktr.compare.store import session
from benchmarks import suites
from benchmarks.suites.data import RANDOM_POLICY

EPISODES = 100
SEED = 0


def play(env_id: str) -> list[float]:
    """Return the returns of episodes with uniform actions.

    :param env_id: an id of gymnasium's registry
    """
    env = gym.make(env_id)
    env.action_space.seed(SEED)
    returns = []
    for episode in range(EPISODES):
        env.reset(seed=SEED if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    """Play every task of the suite ``mujoco`` and write the csv and its manifest."""
    with RANDOM_POLICY.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("env", "episodes", "mean_return", "std_return"))
        for env_id in suites.load("mujoco").envs:
            returns = play(env_id)
            row = (env_id, EPISODES, f"{np.mean(returns):.6g}", f"{np.std(returns):.6g}")
            print(*row)
            writer.writerow(row)
    manifest = {**session("python -m benchmarks.random_policy"), "seed": SEED}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    RANDOM_POLICY.with_suffix(".manifest.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
