"""A corridor whose first step shows where to turn at its end: with memory and without.

    python examples/memory.py

At the end all corridors look the same, so that without memory one can but guess. ``--length`` is how
long the sign has to be remembered; ``--quick`` is short.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from acktr import ACKTR


class Corridor(gym.Env):
    """Pays 1 for the right turn at its end, 0 for the wrong one; nothing counts on the way."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)  # sign, and place
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.turn = 0, int(self.np_random.integers(2))
        return np.array([2 * self.turn - 1, 0.0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        at_end = self.place == self.length
        reward = float(at_end and action == self.turn)
        self.place = min(self.place + 1, self.length)
        return np.array([0.0, self.place / self.length], np.float32), reward, at_end, False, {}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train both, print how often they turn right, and return that of the last 100 episodes of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    length = 5 if options.quick else options.length
    scores = {}
    for policy in ("MlpLstmPolicy", "MlpPolicy"):
        env = make_vec_env(Corridor, 8, seed=options.seed, env_kwargs={"length": length})
        model = ACKTR(policy, env, seed=options.seed)
        model.learn(12_000 if options.quick else 40_000)
        assert model.ep_info_buffer is not None
        scores[policy] = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        print(f"{policy}: {scores[policy]:.0%} of the turns are right")
        env.close()
    return scores


if __name__ == "__main__":
    main()
