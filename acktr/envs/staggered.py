"""Episodes of parallel environments that do not end together, so that a rollout sees all of their parts.

Environments that begin together and are cut by time alone stay together for good: each rollout, which is
shorter than their episodes, then sees one part of them, and the policy is led back and forth. Resets at
different times mend that (Bharthulwar, Tao & Su 2025, arXiv 2511.21011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from acktr import distributed
from acktr.envs.attributes import NotCapturable
from acktr.envs.kinds import difference
from acktr.errors import AcktrError, WorkerError

_NAME = "staggered_resets"  # under which environments know theirs
_COUNTED = ("lengths", "cuts", "first")


class StaggeredResets:
    """Cuts one episode of each environment short, each at another step.

    An environment whose first episode is cut by time has its second one cut after a share of as many
    steps: ``1/n`` of them in the first of n environments, ``2/n`` in the second, and all in the last.
    The cut is one by time as any other, but has no ``infos[i]["episode"]``, as its return is no whole
    one. Environments whose first episode ends of itself are left alone: they are not together.

    It stands in for two methods of the environments, and is no wrapper: SB3 wants evaluations to have
    the same wrappers as training.

    :param env: the environments themselves, below all wrappers
    """

    def __init__(self, env: VecEnv) -> None:
        self.cutting = False  # while a learner collects
        self._env, self._reset, self._step_wait = env, env.reset, env.step_wait
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._cuts = np.zeros(env.num_envs, np.int64)  # after so many steps of this episode; 0: none
        self._first = np.ones(env.num_envs, bool)  # whether this episode is the first
        vars(env).update({_NAME: self, "reset": self.reset, "step_wait": self.step_wait})

    def account(self) -> dict[str, np.ndarray]:
        """Return what is counted, ``(n_envs,)`` each."""
        return {name: getattr(self, f"_{name}").copy() for name in _COUNTED}

    def set_account(self, account: Mapping[str, np.ndarray] | None) -> None:
        """Undo :meth:`account`.

        :param account: what it returned; ``None`` where nothing was counted: nothing is cut
        :raises NotCapturable: it is of other environments
        """
        known = {name: getattr(self, f"_{name}") for name in _COUNTED}
        if account is None:
            account = {name: np.zeros_like(array) for name, array in known.items()}
        problem = difference(account, known, "what is counted of episodes")
        if problem:
            raise NotCapturable(problem)
        for name, array in known.items():
            array[:] = account[name]

    def reset(self) -> VecEnvObs:
        """Begin all episodes anew, together."""
        self._lengths[:], self._cuts[:], self._first[:] = 0, 0, True
        return self._reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Collect one step of all environments, and cut the episodes whose turn it is.

        :raises WorkerError: an environment that was to begin anew raised
        """
        observations, rewards, dones, infos = self._step_wait()
        if not (self._first.any() or self._cuts.any()):
            return observations, rewards, dones, infos
        self._lengths += 1
        for index in np.flatnonzero(dones).tolist():
            by_time = self._first[index] and infos[index].get("TimeLimit.truncated")
            self._cuts[index] = self._share(index) if by_time else 0
            self._lengths[index], self._first[index] = 0, False
        due = (self._cuts > 0) & (self._lengths >= self._cuts)
        if due.any() and self.cutting:
            dones, infos = dones | due, list(infos)
            for index in np.flatnonzero(due).tolist():
                observations, infos[index] = self._cut(index, observations, infos[index])
            self._cuts[due] = 0
        return observations, rewards, dones, infos

    def _share(self, index: int) -> int:
        """Return the steps of the next episode, of as many as that which ends has had."""
        n_before, n = distributed.rank() * self._env.num_envs, distributed.size() * self._env.num_envs
        length, place = int(self._lengths[index]), n_before + index + 1
        return math.ceil(length * place / n) if place < n else 0

    def _cut(self, index: int, observations: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        last = _map(lambda array: array[index].copy(), observations)
        try:
            ((first, told),) = self._env.env_method("reset", indices=[index])
        except AcktrError:
            raise
        except Exception as error:  # whatever an environment raises
            raise WorkerError(
                f"Environment {index} could not begin a new episode before the end of one "
                f"({type(error).__name__}: {error}): give ACKTR staggered_resets=False."
            ) from error
        self._env.reset_infos = list(self._env.reset_infos)  # of workers it is a tuple
        self._env.reset_infos[index] = told
        observations = _map(np.copy, observations)
        if isinstance(observations, dict):
            for key, array in observations.items():
                array[index] = first[key]
        else:
            observations[index] = first
        return observations, {**info, "terminal_observation": last, "TimeLimit.truncated": True}


def _map(function: Callable[[np.ndarray], np.ndarray], observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: function(array) for key, array in observations.items()}
    return function(observations)


def stagger(env: VecEnv) -> StaggeredResets | None:
    """Prepare environments for resets at different times, if they can begin anew one by one.

    :param env: wrappers and all
    :return: what cuts their episodes once it is ``cutting``, the same however often it is asked for;
        ``None`` for an environment alone, and where it is no ``DummyVecEnv`` or ``SubprocVecEnv``,
        whose environments are objects that know nothing of each other
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    alone = env.num_envs * distributed.size() == 1
    return staggering(env) or (None if alone or not _begins_anew(env) else StaggeredResets(env))


def staggering(env: VecEnv) -> StaggeredResets | None:
    """Return what :func:`stagger` made for environments; ``None`` if nobody asked."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return vars(env).get(_NAME)


def _begins_anew(env: VecEnv) -> bool:
    if not isinstance(env, DummyVecEnv | SubprocVecEnv):
        return False
    # A Monitor may refuse resets before the end of an episode.
    name = "allow_early_resets"
    return not env.has_attr(name) or all(env.get_attr(name))
