"""Environments that are made several at a time only: ids with gymnasium's ``vector_entry_point`` alone.

The agents of a game that share one policy are such environments, and so is a simulator of batches.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from acktr.envs.masks import METHOD
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

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return what all environments share, and that they have ``action_masks()``, if they have.

        :raises AttributeError: for anything else
        """
        if attr_name == METHOD and callable(getattr(self._made, METHOD, None)):
            return [getattr(self._made, METHOD)] * len(list(self._get_indices(indices)))
        return super().get_attr(attr_name, indices)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Return the rows of what ``action_masks()`` of all returns, one for each environment.

        :raises AttributeError: for anything else, as there are no environment objects
        """
        if method_name == METHOD and callable(getattr(self._made, METHOD, None)):
            rows = list(getattr(self._made, METHOD)(*method_args, **method_kwargs))
            return [rows[index] for index in self._get_indices(indices)]
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def close(self) -> None:
        """Close the monitor files and the environments."""
        super().close()
        self._made.close()


def is_together(spec: EnvSpec) -> bool:
    """Tell whether an id makes no environment alone."""
    return spec.entry_point is None
