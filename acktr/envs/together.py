"""Environments that are made several at a time only: ids with gymnasium's ``vector_entry_point`` alone.

The agents of a game that share one policy are such environments, and so is a simulator of batches.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from acktr.envs.native import End, NativeVecEnv, Step
from acktr.errors import ConfigurationError


class TogetherVecEnv(NativeVecEnv):
    """What ``gymnasium.make_vec`` makes, as SB3's ``VecEnv``.

    :param spec: the environment's specification
    :param n_envs: how many environments are asked for; the maker may round up
    :param env_kwargs: arguments for ``gymnasium.make_vec``
    :param monitor_dir: a directory for SB3's monitor files; ``None`` for none
    :raises ConfigurationError: if new episodes do not begin within the step that ends one, or an
        observation is not one array
    """

    backend = "gymnasium"

    def __init__(
        self,
        spec: EnvSpec,
        n_envs: int,
        env_kwargs: dict[str, Any] | None = None,
        monitor_dir: str | None = None,
    ) -> None:
        self._made = gym.make_vec(spec, n_envs, **(env_kwargs or {}))
        space = self._made.single_observation_space
        mode = self._made.metadata.get("autoreset_mode")
        problem = ""
        if mode != AutoresetMode.SAME_STEP:
            name = getattr(mode, "name", mode)
            problem = f"begins new episodes with the autoreset mode {name}: acktr needs SAME_STEP"
        elif isinstance(space, spaces.Dict | spaces.Tuple):
            problem = f"observes a {type(space).__name__}: make each observation one array"
        if problem:
            self._made.close()
            raise ConfigurationError(f"{spec.id}, whose environments are made together, {problem}.")
        super().__init__(spec, self._made.num_envs, space, self._made.single_action_space, monitor_dir)
        self._actions = np.empty(0)

    def _restart(self, seeds: list[int] | None) -> np.ndarray:
        # Of an integer gymnasium makes what SB3 does: environment i starts from ``seed + i``.
        observations, _ = self._made.reset(seed=None if seeds is None else seeds[0])
        return np.array(observations)

    def _send(self, actions: np.ndarray) -> None:
        self._actions = np.array(actions)

    def _receive(self) -> Step:
        observations, rewards, terminated, truncated, infos = self._made.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        ends = {
            index: End(
                np.array(infos["final_obs"][index]),
                bool(truncated[index] and not terminated[index]),
                self._finish(index),
            )
            for index in np.flatnonzero(terminated | truncated).tolist()
        }
        return Step(np.array(observations), np.array(rewards, np.float32), ends)

    def close(self) -> None:
        """Close the monitor files and the environments."""
        super().close()
        self._made.close()


def is_together(spec: EnvSpec) -> bool:
    """Tell whether an id makes no environment alone."""
    return spec.entry_point is None
