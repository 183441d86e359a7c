"""Tiny environments with one quirk each; importing this module registers them."""

import signal
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBSERVATION = spaces.Box(-1.0, 1.0, (3,), np.float32)
EPISODE_LENGTH = 10


class Toy(gym.Env):
    """Pays 1 for action 1, in episodes of 10 steps."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space: spaces.Space = OBSERVATION
    action_space: spaces.Space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        raise RuntimeError("no display")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        reward = float(np.asarray(action).flat[0] == 1)
        return self._observe(), reward, False, self.time >= EPISODE_LENGTH, {}

    def _observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class ToyDict(Toy):
    observation_space = spaces.Dict({"a": OBSERVATION, "b": spaces.Discrete(4)})

    def _observe(self):
        return {"a": super()._observe(), "b": 1}


class Endless(Toy):
    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


class ToyImage(Toy):
    def __init__(self, side=36, render_mode=None):
        super().__init__(render_mode)
        self.observation_space = spaces.Box(0, 255, (side, side, 1), np.uint8)

    def _observe(self):
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


class ToyBytes(Toy):
    observation_space = spaces.Box(0, 255, (3,), np.uint8)

    def _observe(self):
        return self.np_random.integers(0, 256, 3, dtype=np.uint8)


class Drawn(Toy):
    """Pays for the way to the right; its picture is dark but for a bright column where it stands."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.column = int(self.np_random.integers(20, 60))
        return observation, info

    def step(self, action):
        self.column = int(np.clip(self.column + round(3 * float(action[0])), 0, 79))
        observation, _, *rest = super().step(1)
        return observation, self.column / 80, *rest

    def render(self):
        picture = np.full((60, 80, 3), 10, np.uint8)
        picture[:, self.column] = 200
        return picture


class Opaque(Toy):
    """Keeps something whose state nobody knows."""

    def __init__(self, keeps=True, render_mode=None):
        super().__init__(render_mode)
        self.engine = object()


class Hoarder(Toy):
    """Keeps more than has room in a checkpoint."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.kept = list(range(4000))


class Broken(Toy):
    """Returns NaN in its third episode."""

    def __init__(self, where="reward", render_mode=None):
        super().__init__(render_mode)
        self.where = where
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.episode == 3 and (self.where != "terminal" or truncated):
            if self.where == "reward":
                reward = float("nan")
            else:
                observation = np.full(3, np.nan, np.float32)
        return observation, reward, terminated, truncated, info


class PressesCtrlC(Toy):
    """Sends this process a signal, SIGINT if it is not named, in its fifth episode.

    :param count: how often
    """

    def __init__(self, render_mode=None, name="SIGINT", count=1):
        super().__init__(render_mode)
        self.episode = 0
        self.name, self.count = name, count

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        if self.episode == 5:
            for _ in range(self.count):
                signal.raise_signal(getattr(signal, self.name))
        return super().reset(seed=seed)


for name, cls, kwargs in (
    ("Toy-v0", Toy, {}),
    ("ToyDict-v0", ToyDict, {}),
    ("ToyImage-v0", ToyImage, {}),
    ("ToyBytes-v0", ToyBytes, {}),
    ("Endless-v0", Endless, {}),
    ("Drawn-v0", Drawn, {}),
    ("Opaque-v0", Opaque, {}),
    ("Hoarder-v0", Hoarder, {}),
    # The checker would warn of the NaN that it is there to return.
    ("Broken-v0", Broken, {"disable_env_checker": True}),
    ("PressesCtrlC-v0", PressesCtrlC, {}),
):
    if name not in gym.registry:
        gym.register(name, cls, **kwargs)
