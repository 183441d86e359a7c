"""SB3's ``DummyVecEnv`` with the copies that protect the learner, and without those that do not."""

import traceback
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from acktr.errors import AcktrError, WorkerError


class SerialVecEnv(DummyVecEnv):
    """Environments that step one after another in this process.

    Returns what ``DummyVecEnv`` returns. That one copies observations and infos with ``deepcopy``,
    which costs as much as a third of a cheap simulator's step. Here arrays are copied as arrays and
    infos one level deep; a last observation is kept through whole rollouts and is copied to the bottom.

    An environment that raises is named, with its traceback, as one in a process of its own is; so is one
    whose observations do not have the shape of its space: numpy would stretch them in silence.

    :param env_fns: each builds one environment
    """

    _stepping = 0  # the environment that is asked

    def reset(self) -> VecEnvObs:
        """Begin all episodes anew.

        :raises WorkerError: an environment raised
        """
        self._stepping = 0
        try:
            return super().reset()
        except AcktrError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and begin anew those whose episode ended.

        :raises WorkerError: an environment raised
        """
        infos: list[dict[str, Any]] = []
        try:
            for index, (env, action) in enumerate(zip(self.envs, self.actions, strict=True)):
                self._stepping = index
                observation, reward, terminated, truncated, info = env.step(action)
                info = dict(info)
                info["TimeLimit.truncated"] = truncated and not terminated
                done = terminated or truncated
                self.buf_rews[index] = reward
                self.buf_dones[index] = done
                if done:
                    # Before the reset: an environment may write the next one into the same memory.
                    info["terminal_observation"] = deepcopy(observation)
                    observation, self.reset_infos[index] = env.reset()
                self._save_obs(index, observation)
                infos.append(info)
        except AcktrError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        self.buf_infos = infos
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), infos.copy()

    def _save_obs(self, env_idx: int, obs: VecEnvObs) -> None:
        for key, buffer in self.buf_obs.items():
            part: Any = obs if key is None else obs[key]  # type: ignore[call-overload]
            shape = part.shape if isinstance(part, np.ndarray) else np.shape(part)
            if shape != buffer.shape[1:]:
                of = "" if key is None else f" under {key!r}"
                raise WorkerError(
                    f"Environment {env_idx} returned an observation of the shape {shape}{of}, where its "
                    f"space has {buffer.shape[1:]}: mend the environment or its observation_space."
                )
            buffer[env_idx] = part
        self._stepping = env_idx + 1

    def _failure(self, error: Exception) -> WorkerError:
        text = "".join(traceback.format_exception(error)).rstrip()
        return WorkerError(f"Environment {self._stepping} raised an error:\n{text}")

    def _obs_from_buf(self) -> VecEnvObs:
        copies = {key: buffer.copy() for key, buffer in self.buf_obs.items()}
        return dict_to_obs(self.observation_space, copies)
