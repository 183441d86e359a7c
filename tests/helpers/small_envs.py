"""One environment for any pair of spaces, short enough for a rollout to hold several episodes."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)  # the smallest that the paper's network takes
MIXED = spaces.Dict({"image": IMAGE, "vector": VECTOR})

ACTIONS = {
    "Box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}


class Small(gym.Env):
    """Random observations; pays the mean of the action.

    :param ends: how episodes end: ``"truncated"``, ``"terminated"``, or ``"both"`` in turn
    :param bad: what is NaN at step ``bad_step`` since the start: ``"reward"``, ``"observation"``
    """

    def __init__(
        self, observation_space, action_space, length=5, ends="truncated", bad=None, bad_step=None
    ):
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space)
        self.length, self.ends, self.bad, self.bad_step = length, ends, bad, bad_step
        self.steps = self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        self.episodes += 1
        return self.observation_space.sample(), {}

    def step(self, action):
        self.time += 1
        self.steps += 1
        observation, reward = self.observation_space.sample(), float(np.mean(action))
        if self.steps == self.bad_step and self.bad == "reward":
            reward = float("nan")
        if self.steps == self.bad_step and self.bad == "observation":
            observation = np.full_like(observation, np.nan)
        over = self.time >= self.length
        cut = over and (self.ends == "truncated" or (self.ends == "both" and self.episodes % 2 == 0))
        return observation, reward, over and not cut, cut, {}


def small_env(action="Discrete", observation=VECTOR, n_envs=2, seed=0, cls=Small, **kwargs):
    """Build ``n_envs`` of :class:`Small`, of episodes that end at different times.

    :param action: a name in ``ACTIONS``, or a space
    """
    space = ACTIONS[action] if isinstance(action, str) else action
    lengths = [kwargs.pop("length", 5)] * n_envs
    env = DummyVecEnv(
        [
            lambda length=length + i: cls(observation, space, length, **kwargs)
            for i, length in enumerate(lengths)
        ]
    )
    env.seed(seed)
    return env
