"""SB3's ``DummyVecEnv`` with the copies that protect the learner, and without those that do not."""

from copy import deepcopy
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs


class SerialVecEnv(DummyVecEnv):
    """Environments that step one after another in this process.

    Returns what ``DummyVecEnv`` returns. That one copies observations and infos with ``deepcopy``,
    which costs as much as a third of a cheap simulator's step. Here arrays are copied as arrays and
    infos one level deep; a last observation is kept through whole rollouts and is copied to the bottom.

    :param env_fns: each builds one environment
    """

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and begin anew those whose episode ended."""
        infos: list[dict[str, Any]] = []
        for index, (env, action) in enumerate(zip(self.envs, self.actions, strict=True)):
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
        self.buf_infos = infos
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), infos.copy()

    def _obs_from_buf(self) -> VecEnvObs:
        copies = {key: buffer.copy() for key, buffer in self.buf_obs.items()}
        return dict_to_obs(self.observation_space, copies)
