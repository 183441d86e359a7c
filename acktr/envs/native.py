"""The common base of native engines: SB3's ``VecEnv`` around a simulator that steps in threads.

The rules, by which a learner cannot tell engines from environments stepped one by one:

- an episode that ends begins anew within the same step; what the learner gets is the first
  observation of the next one, and ``infos[i]["terminal_observation"]`` keeps the last;
- ``infos[i]["TimeLimit.truncated"]`` tells a cut by time from an end;
- ``infos[i]["episode"]`` has the unclipped score and the length, as SB3's ``Monitor`` gives them;
- ``step_async`` sends the actions and returns, so that a learner can compute while threads step;
- no array that is returned is written to again.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from acktr import distributed
from acktr.errors import ConfigurationError

# Both engines hold a seed in 32 bits with a sign, SB3 draws them from 32 bits without one.
_SEEDS = 2**31


class End(NamedTuple):
    """How an environment's episode ended, as the learner sees it.

    :param observation: the last one, ``(*obs)``, in memory of its own
    :param truncated: whether time cut it
    :param episode: what ``infos[i]["episode"]`` tells; ``None`` where only a life was lost
    """

    observation: np.ndarray
    truncated: bool
    episode: dict[str, float] | None


class Step(NamedTuple):
    """One step of all environments, in arrays that nothing else writes to.

    :param observations: ``(n_envs, *obs)``; the first of the next episode where one ended
    :param rewards: what the learner gets, ``(n_envs,)``, float32
    :param ends: the episodes that ended, by environment
    """

    observations: np.ndarray
    rewards: np.ndarray
    ends: dict[int, End]


class NativeVecEnv(VecEnv):
    """Environments that an engine steps in threads of its own.

    A subclass adds scores to ``_returns`` and lengths to ``_lengths``, ``(n_envs,)`` each, before
    anything is clipped, and calls ``_finish`` where an episode is over.

    :param spec: the environment's specification
    :param n_envs: how many environments
    :param observation_space: of one environment
    :param action_space: of one environment
    :param monitor_dir: a directory for SB3's monitor files; ``None`` for none
    """

    backend: str

    def __init__(
        self,
        spec: gym.envs.registration.EnvSpec,
        n_envs: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        monitor_dir: str | None = None,
    ) -> None:
        super().__init__(n_envs, observation_space, action_space)
        self.spec = spec
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, np.int64)
        self._started = False
        self._pending = False
        self._start = time.perf_counter()  # a clock that nobody sets
        self._writers: list[ResultsWriter] = []
        if monitor_dir is not None:
            header: dict[str, float | str] = {"t_start": time.time(), "env_id": spec.id}
            self._writers = [
                ResultsWriter(str(Path(monitor_dir, str(i))), header) for i in range(n_envs)
            ]

    @abstractmethod
    def _restart(self, seeds: list[int] | None) -> np.ndarray:
        """Begin all episodes anew, from seeds if given, and return ``(n_envs, *obs)``."""

    @abstractmethod
    def _send(self, actions: np.ndarray) -> None:
        """Let the threads begin a step."""

    @abstractmethod
    def _receive(self) -> Step:
        """Wait for the step, and begin anew what ended in it."""

    def reset(self) -> np.ndarray:
        """Begin all episodes anew; ``(n_envs, *obs)``.

        :raises ConfigurationError: if reset options were set, which no engine takes
        """
        if any(self._options):
            raise ConfigurationError(
                f"{self.spec.id} on the backend {self.backend!r} takes no reset options: "
                'use backend="gymnasium".'
            )
        if self._pending:
            self.step_wait()
        seeds = None
        if not self._started or any(seed is not None for seed in self._seeds):
            drawn = np.random.default_rng().integers(_SEEDS, size=self.num_envs)
            given = zip(self._seeds, drawn, strict=True)
            seeds = [int(new) if seed is None else seed % _SEEDS for seed, new in given]
        observations = self._restart(seeds)
        self._started = True
        self._returns[:] = 0
        self._lengths[:] = 0
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions, ``(n_envs, *action)``; the threads step from now on."""
        self._send(actions)
        self._pending = True

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step that was sent."""
        self._pending = False
        observations, rewards, ends = self._receive()
        dones = np.zeros(self.num_envs, bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index, end in ends.items():
            dones[index] = True
            info = infos[index]
            info["TimeLimit.truncated"] = end.truncated
            info["terminal_observation"] = end.observation
            if end.episode is not None:
                info["episode"] = end.episode
        return observations, rewards, dones, infos

    def _finish(self, index: int) -> dict[str, float]:
        """Close the account of an episode, as SB3's ``Monitor`` does."""
        episode = {
            "r": round(float(self._returns[index]), 6),
            "l": int(self._lengths[index]),
            "t": round(time.perf_counter() - self._start, 6),
        }
        self._returns[index] = 0
        self._lengths[index] = 0
        if self._writers:
            self._writers[index].write_row(episode)
        return episode

    def close(self) -> None:
        """Close the monitor files; the engine ends with its last reference."""
        for writer in self._writers:
            writer.close()

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell that episodes are accounted as by a ``Monitor``, and that there is no other wrapper."""
        return [wrapper_class is Monitor] * len(list(self._get_indices(indices)))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return what all environments share: ``spec`` and ``render_mode``.

        :raises AttributeError: for anything else, as an engine has no environment objects
        """
        shared = {"render_mode": None, "spec": getattr(self, "spec", None)}
        if attr_name not in shared:
            raise AttributeError(self._no_objects(f"no attribute {attr_name!r} to read"))
        return [shared[attr_name]] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse, as an engine has no environment objects.

        :raises AttributeError: always
        """
        raise AttributeError(self._no_objects(f"no attribute {attr_name!r} to set"))

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refuse, as an engine has no environment objects.

        :raises AttributeError: always
        """
        raise AttributeError(self._no_objects(f"no method {method_name!r}"))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return no pictures: films are made with the backend "gymnasium"."""
        return [None] * self.num_envs

    def _no_objects(self, problem: str) -> str:
        return (
            f"{self.spec.id} on the backend {self.backend!r} has {problem}: "
            'use backend="gymnasium", where each environment is an object.'
        )


def count_threads(n_envs: int) -> int:
    """Count the threads that pay: one for each core this process may use, one environment each.

    Ranks on one machine share its cores, unless each is bound to its own.
    """
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(max(cores // distributed.ranks_on_this_machine(), 1), n_envs)


def check_autoreset(engine: str, metadata: dict[str, Any], known: AutoresetMode) -> None:
    """Refuse an engine whose way to begin the next episode is not the one its adapter knows.

    :param engine: names the package
    :param metadata: of the engine's environment
    :param known: the mode that the adapter turns into SB3's
    :raises ConfigurationError: for any other
    """
    mode = metadata.get("autoreset_mode")
    if mode != known:
        name = getattr(mode, "name", mode)
        raise ConfigurationError(
            f"{engine} begins new episodes with the autoreset mode {name}, which acktr does not know "
            f'(it knows {known.name}): install the version that acktr pins, or use backend="gymnasium".'
        )
