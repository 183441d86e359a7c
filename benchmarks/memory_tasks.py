"""Tasks that need memory, under ids of gymnasium's registry: the suite ``memory``.

``acktr train benchmarks.memory_tasks:novel-CartPole-v1 --set policy=MlpLstmPolicy`` learns one.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation

from benchmarks.tasks import minigrid

__all__ = ["TMaze", "minigrid", "without_velocities"]
MODULE = "benchmarks.memory_tasks"
# What is left of an observation without velocities: places among its numbers.
POSITIONS = {
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
    "LunarLander-v3": (0, 1, 4, 6, 7),
    "Hopper-v5": tuple(range(5)),
    "Walker2d-v5": tuple(range(8)),
    "HalfCheetah-v5": tuple(range(8)),
}
MAZES = (20, 50)


def without_velocities(task: str, **kwargs: Any) -> gym.Env:
    """Build a task that observes positions and angles alone.

    :param task: a key of :data:`POSITIONS`
    :param kwargs: for ``gymnasium.make``
    """
    env = gym.make(task, disable_env_checker=True, **kwargs)
    kept, whole = list(POSITIONS[task]), env.observation_space
    assert isinstance(whole, spaces.Box)
    space = spaces.Box(
        whole.low[kept].astype(np.float32), whole.high[kept].astype(np.float32), dtype=np.float32
    )
    return TransformObservation(env, lambda x: x[kept].astype(np.float32), space)


class TMaze(gym.Env):
    """A corridor that ends at a junction, where the sign at its beginning says which way to turn.

    Bakker 2002 (Reinforcement Learning with Long Short-Term Memory): 4 for the right turn, -0.1 for the
    wrong one and for each step that does not go ahead. Observations are the sign, -1 or 1 in the first
    step and 0 after it, whether this is the junction, and a random number between 0 and 1. Actions are
    ahead, left, right, back.

    :param length: of the corridor, in steps
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place, self._sign = 0, int(self.np_random.integers(2)) * 2 - 1
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action, over, reward = int(action), False, -0.1
        if self._place == self.length and action in (1, 2):
            over, reward = True, 4.0 if (action == 2) == (self._sign == 1) else -0.1
        elif action == 0 and self._place < self.length:
            self._place, reward = self._place + 1, 0.0
        elif action == 3:
            self._place = max(0, self._place - 1)
        return self._observe(), reward, over, False, {}

    def _observe(self) -> np.ndarray:
        sign = self._sign if self._place == 0 else 0
        junction = self._place == self.length
        return np.array([sign, junction, self.np_random.random()], np.float32)


for _task in POSITIONS:
    gym.register(
        f"novel-{_task}", f"{MODULE}:without_velocities",
        max_episode_steps=gym.spec(_task).max_episode_steps, kwargs={"task": _task},
    )  # fmt: skip
for _length in MAZES:
    gym.register(f"tmaze-{_length}-v0", f"{MODULE}:TMaze", max_episode_steps=4 * _length + 20,
                 kwargs={"length": _length})  # fmt: skip
gym.register("minigrid-MemoryS7-v0", f"{MODULE}:minigrid", kwargs={"task": "MemoryS7"})
