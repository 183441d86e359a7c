"""Stops a run at the first value that is not finite, before it can reach any statistics."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from acktr.envs.resets import TellsResets
from acktr.errors import DivergenceError, WorkerError


def is_finite(values: np.ndarray) -> bool:
    """Whether all numbers of an array are finite; integers, such as images, always are."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def not_finite(values: np.ndarray) -> np.ndarray:
    """Return the numbers of the environments, ``(n_envs, ...)``, that gave one that is not finite."""
    return np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))


class VecCheckFinite(TellsResets, VecEnvWrapper):
    """Raise :class:`~acktr.errors.DivergenceError` when an environment returns NaN or infinity.

    And :class:`~acktr.errors.WorkerError` when what it returns has another shape than its space says:
    numpy would stretch it in silence.

    It sits below ``VecNormalize``: one NaN in its running averages would turn the observations of
    *all* environments into NaN, and the culprit could no longer be named.

    :param venv: the environments to watch
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._n_calls = 0

    def reset(self) -> VecEnvObs:
        """Reset all environments; ``(n_envs, ...)`` observations."""
        observations = self.venv.reset()
        self._check_observations(observations)
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Collect one step of all environments."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._n_calls += 1
        if not rewards.shape == dones.shape == (self.num_envs,):
            raise WorkerError(
                f"The environments returned rewards of the shape {rewards.shape} and dones of the shape "
                f"{dones.shape} for {self.num_envs} environments: a reward must be a number."
            )
        if not is_finite(rewards):
            self._refuse("reward", rewards)
        self._check_observations(observations)
        if dones.any():
            for index in np.flatnonzero(dones):
                self._check_terminal(int(index), infos[index].get("terminal_observation"))
        return observations, rewards, dones, infos

    def _check_observations(self, observations: Any) -> None:
        parts = observations if isinstance(observations, dict) else {"": observations}
        for key, part in parts.items():
            whole = self.observation_space
            space = whole[key] if isinstance(whole, spaces.Dict) else whole
            if part.shape[1:] != space.shape:
                raise WorkerError(
                    f"The environments returned observations {key} of the shape {part.shape[1:]}, where "
                    f"their space has {space.shape}: mend them or their observation_space."
                )
            if not is_finite(part):
                self._refuse(f"observation {key}".rstrip(), part)

    def _check_terminal(self, index: int, observation: Any) -> None:
        parts = observation.values() if isinstance(observation, dict) else (observation,)
        for part in parts:
            if part is not None and not is_finite(np.asarray(part)):
                self._raise("last observation", index, np.asarray(part))

    def _refuse(self, what: str, values: np.ndarray) -> None:
        index = int(not_finite(values)[0])
        self._raise(what, index, np.asarray(values[index]))

    def _raise(self, what: str, index: int, values: np.ndarray) -> None:
        value = values[~np.isfinite(values)].flat[0]
        raise DivergenceError(
            f"Environment {index} returned {value} in its {what} at its step {self._n_calls} "
            f"(step {self._n_calls * self.num_envs} of all): the parameters are those of the last "
            "update; mend the environment, or clip what it returns."
        )
