"""Environments that write each answer into the memory of the one before."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from acktr import ACKTR

VECTOR = spaces.Box(-9, 9, (3,), np.float32)
SPACES = {
    "vector": VECTOR,
    "dict": spaces.Dict({"a": VECTOR, "b": spaces.Box(-9, 9, (), np.float64)}),
    "image": spaces.Box(0, 255, (36, 40, 1), np.uint8),
    "counted": spaces.Discrete(4, start=3),
}


class Simulator(VecEnv):
    """Random observations; some episodes end, others are cut by time.

    :param reuses: whether all that a step returns lies in memory that the next one writes to
    """

    def __init__(self, space, reuses, n_envs=3, seed=0):
        self.random = np.random.default_rng(seed)
        self.reuses = reuses
        self.steps = 0
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.starts = {key: getattr(part, "start", 0) for key, part in parts.items()}
        self.now, self.last = (
            {key: np.zeros((n_envs, *part.shape), part.dtype) for key, part in parts.items()}
            for _ in range(2)
        )
        self.rewards, self.dones = np.zeros(n_envs, np.float32), np.zeros(n_envs, bool)
        super().__init__(n_envs, space, spaces.Discrete(2))

    def draw(self, memory):
        for key, part in memory.items():
            part[:] = self.random.integers(0, 4, part.shape) + self.starts[key]

    def answer(self, values):
        if isinstance(values, dict):
            found = {key: self.answer(part) for key, part in values.items()}
            return found.get("", found)
        return values if self.reuses else np.array(values)

    def reset(self):
        self.draw(self.now)
        return self.answer(self.now)

    def step_async(self, actions):
        self.actions = actions
        # Threads may begin to write at once.
        for part in (*self.now.values(), *self.last.values(), self.rewards, self.dones):
            part.view(np.uint8).fill(1)

    def step_wait(self):
        self.steps += 1
        self.rewards[:] = self.random.normal(size=self.num_envs) + self.actions
        self.dones[:] = (np.arange(self.num_envs) + self.steps) % 4 == 0
        self.draw(self.last)
        self.draw(self.now)
        infos = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(self.dones):
            ends = self.answer({key: part[index : index + 1] for key, part in self.last.items()})
            one = {key: end[0] for key, end in ends.items()} if isinstance(ends, dict) else ends[0]
            infos[index] = {"terminal_observation": one, "TimeLimit.truncated": bool(self.steps % 2)}
        return self.answer(self.now), self.answer(self.rewards), self.answer(self.dones), infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, *args, **kwargs):
        pass

    def env_method(self, *args, **kwargs):
        pass

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def learn(space, reuses, wrap):
    env = wrap(Simulator(space, reuses))
    policy = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}
    name = next(name for name, known in SPACES.items() if known == space)
    model = ACKTR(policy.get(name, "MlpPolicy"), env, n_steps=9, seed=0)
    rollouts = []

    class Copies(type(model.rollout_buffer)):
        def compute_advantages(self, *args):
            super().compute_advantages(*args)
            rollouts.append((self.advantages.clone(), self.episode_starts.copy()))

    model.rollout_buffer.__class__ = Copies
    model.learn(2 * 9 * env.num_envs)
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()), rollouts


@pytest.mark.parametrize("name", SPACES)
def test_memory_that_is_written_to_again_changes_nothing(name):
    wrap = VecTransposeImage if name == "image" else lambda env: env
    kept = learn(SPACES[name], False, wrap)
    reused = learn(SPACES[name], True, wrap)
    torch.testing.assert_close(kept, reused, rtol=0, atol=0)
    assert all(starts.any() for _, starts in kept[1])


def test_normalised_observations_too():
    def wrap(env):
        return VecNormalize(env, norm_obs=False)

    kept, reused = (learn(VECTOR, reuses, wrap) for reuses in (False, True))
    torch.testing.assert_close(kept, reused, rtol=0, atol=0)
