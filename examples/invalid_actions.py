"""Noughts and crosses against a player who draws his moves: with masks and without.

    python examples/invalid_actions.py

An invalid move, onto a field that is taken, loses the game. With masks ACKTR makes none; without it has
to find the rules by losing. ``--quick`` is short.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from acktr import ACKTR

LINES = np.array([
    [0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6],
])  # fmt: skip


class NoughtsAndCrosses(gym.Env):
    """Pays 1 for a win, -1 for a defeat and for an invalid move, 0 for a draw."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (18,), np.float32)
        self.action_space = spaces.Discrete(9)

    def action_masks(self) -> np.ndarray:
        """The fields that are free: all that ACKTR needs to know of the rules."""
        return self.board == 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.board = np.zeros(9, int)
        if self.np_random.random() < 0.5:
            self._draw_move()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.board[action]:
            return self._observe(), -1.0, True, False, {"invalid": True}
        self.board[action] = 1
        if not self._winner() and not self.board.all():
            self._draw_move()
        winner = self._winner()
        return self._observe(), float(winner), bool(winner or self.board.all()), False, {}

    def _draw_move(self) -> None:
        self.board[self.np_random.choice(np.flatnonzero(self.board == 0))] = -1

    def _winner(self) -> int:
        sums = self.board[LINES].sum(1)
        return int((sums == 3).any()) - int((sums == -3).any())

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.board == 1, self.board == -1]).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> dict[bool, float]:
    """Train both, print how they score, and return the mean of the last 100 games of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    scores = {}
    for use_masking in (True, False):
        env = make_vec_env(NoughtsAndCrosses, n_envs=8, seed=options.seed)
        model = ACKTR("MlpPolicy", env, use_masking=use_masking, seed=options.seed)
        model.learn(6_000 if options.quick else 60_000)
        assert model.ep_info_buffer is not None
        scores[use_masking] = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        print(f"{'with' if use_masking else 'without'} masks: {scores[use_masking]:+.2f} a game")
        env.close()
    return scores


if __name__ == "__main__":
    main()
