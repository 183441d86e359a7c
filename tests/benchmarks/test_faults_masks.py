"""Forbidden actions: what is counted as one."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR
from benchmarks.faults.masks import Watched, count, places


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(5), np.int64(3), [3]),
        (spaces.MultiDiscrete([3, 2, 4]), np.array([2, 0, 1]), [2, 3, 6]),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 2, 5]),
    ],
)
def test_a_mask_speaks_of_each_part_of_an_action(space, action, expected):
    assert places(space, action).tolist() == expected


def test_who_asks_for_no_masks_is_caught():
    env = Watched(gym.make("benchmarks.masked_tasks:invalid-Discrete-v0"))
    ACKTR("MlpPolicy", DummyVecEnv([lambda: env]), n_steps=32, use_masking=False, seed=0).learn(32)
    assert env.taken == 32
    assert env.forbidden > 10  # 60 of 80 are


def test_a_row_for_each_task_that_is_not_known(monkeypatch):
    monkeypatch.setattr("benchmarks.faults.masks.N_ENVS", 2)
    known = {("jobshop-6x4-v0", "MlpPolicy"), ("pettingzoo-connect_four-v0", "MlpPolicy")}
    rows = list(
        count(16, known | {(f"invalid-{k}-v0", "MlpPolicy") for k in ("Discrete", "MultiBinary")})
    )
    assert [row["environment"] for row in rows] == ["invalid-MultiDiscrete-v0", "jobshop-6x4-v0"]
    assert all(row["taken"] == row["steps"] > 0 and row["forbidden"] == 0 for row in rows)
