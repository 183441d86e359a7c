"""Environments that raise where a forbidden action is taken; importing this module registers them."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from acktr.envs.masks import part_sizes
from tests.helpers.small_envs import ACTIONS, VECTOR, Small


def taken(action, space):
    """Where an action lies in a mask of its space."""
    sizes = part_sizes(space)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    first = np.reshape(getattr(space, "start", 0), -1)
    return starts + np.reshape(action, -1) - first


def with_masks(batch, space):
    """Give a batch masks that allow the actions in it."""
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(len(batch.actions), int(part_sizes(space).sum()), generator=generator) < 0.5
    chosen = np.reshape(batch.actions.numpy(), (len(masks), -1)).astype(int)
    places = torch.as_tensor(np.stack([taken(action, space) for action in chosen]))
    # Rollouts keep actions as numbers with fractions.
    return batch._replace(actions=batch.actions.double(), masks=masks.scatter(1, places, True))


class Strict(Small):
    """Draws a mask for each observation, which holds its beginning; pays for actions late in a part.

    :param never: forbidden at all times, places in the mask
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        observation_space=VECTOR,
        action_space=ACTIONS["Discrete"],
        *args,
        never=(),
        render_mode=None,
        **kwargs,
    ):
        super().__init__(observation_space, action_space, *args, **kwargs)
        self.never, self.render_mode = list(never), render_mode
        self.sizes = part_sizes(self.action_space)

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)

    def _draw(self):
        parts = []
        for size in self.sizes:
            part = self.np_random.random(size) < 0.5
            part[self.np_random.integers(size)] = True
            parts.append(part)
        self.allowed = np.concatenate(parts)
        for place in self.never:
            if self.allowed[place]:
                self.allowed[place] = False
                self.allowed[place - 1] = True

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self._draw()
        return observation, info

    def action_masks(self):
        return self.allowed

    def step(self, action):
        places = taken(action, self.action_space)
        if not self.allowed[places].all():
            raise RuntimeError(f"{action} is forbidden")
        observation, _, *rest = super().step(action)
        self._draw()
        return observation, float(np.mean(np.asarray(action) > 0)), *rest


for name, space in ACTIONS.items():
    if not isinstance(space, spaces.Box):
        gym.register(f"Strict{name}-v0", Strict, kwargs={"action_space": space, "length": 7})
