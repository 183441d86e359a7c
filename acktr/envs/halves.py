"""One vector environment of two halves, which can step one while the policy decides for the other."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from acktr.envs.resets import TellsResets
from acktr.errors import ConfigurationError


def take(obs: Any, part: slice) -> Any:
    """Return the observations of some environments.

    :param obs: an array with one row for each environment, or a dict or tuple of such arrays
    :param part: which environments
    """
    if isinstance(obs, dict):
        return {key: value[part] for key, value in obs.items()}
    return tuple(value[part] for value in obs) if isinstance(obs, tuple) else obs[part]


def copied(obs: Any) -> Any:
    """Return observations, an array or a dict or tuple of arrays, in memory of their own."""
    if isinstance(obs, dict):
        return {key: np.array(value) for key, value in obs.items()}
    return tuple(map(np.array, obs)) if isinstance(obs, tuple) else np.array(obs)


def join(parts: Sequence[Any]) -> Any:
    """Put observations of consecutive environments together again: the inverse of :func:`take`."""
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(map(np.concatenate, zip(*parts, strict=True)))
    return np.concatenate(parts)


def join_results(results: Sequence[VecEnvStepReturn]) -> VecEnvStepReturn:
    """Put what ``step_wait`` returned for consecutive environments together."""
    obs, rewards, dones, infos = zip(*results, strict=True)
    return join(obs), np.concatenate(rewards), np.concatenate(dones), [i for part in infos for i in part]


class Half(TellsResets, VecEnvWrapper):
    """Environments that may be asked anything while they step: the step is then waited for first.

    The pipe to a subprocess answers in turn. A question in the middle of a step would take the step's
    result for its answer.

    :param venv: the environments
    """

    def __init__(self, venv: VecEnv) -> None:
        self._is_stepping = False  # first: the constructor asks the environments
        self._result: VecEnvStepReturn | None = None
        super().__init__(venv)

    @property
    def in_flight(self) -> bool:
        """Whether a step was begun whose result has not been fetched."""
        return self._is_stepping or self._result is not None

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step."""
        self.venv.step_async(actions)
        self._is_stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        """Fetch the result of the step.

        :raises RuntimeError: if none was begun, or a reset has cancelled it
        """
        self._settle()
        if self._result is None:
            raise RuntimeError(
                "There is no step to wait for: with overlap the next step is under way while callbacks "
                "run, do not reset or step the training environments in one."
            )
        result, self._result = self._result, None
        return result

    def _settle(self) -> None:
        if self._is_stepping:
            self._is_stepping = False  # what fails here is not under way any more either
            self._result = self.venv.step_wait()

    def reset(self) -> VecEnvObs:
        """Reset the environments; a step under way is lost."""
        self._settle()
        self._result = None
        return self.venv.reset()

    def close(self) -> None:
        """Close the environments, after their step if there is one."""
        try:
            self._settle()
        finally:
            self.venv.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Render each environment."""
        self._settle()
        return self.venv.get_images()

    def has_attr(self, attr_name: str) -> bool:
        """Whether each environment has an attribute."""
        self._settle()
        return self.venv.has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Read an attribute of environments."""
        self._settle()
        return self.venv.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of environments."""
        self._settle()
        self.venv.set_attr(attr_name, value, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of environments."""
        self._settle()
        return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether environments have a wrapper."""
        self._settle()
        return self.venv.env_is_wrapped(wrapper_class, indices)


class HalvedVecEnv(VecEnv):
    """Two vector environments side by side; to wrappers and algorithms, one.

    Both halves step at once. :class:`~acktr.ACKTR` also steps one while its policy decides for the
    other, see :mod:`acktr.rollout.steps`: that saves time if ``step_async`` of the halves starts the work
    elsewhere, in processes or threads.

    :param first: environments 0, 1, ...
    :param second: the others; of the same spaces
    :raises ConfigurationError: if the spaces differ
    """

    def __init__(self, first: VecEnv, second: VecEnv) -> None:
        for name in ("observation_space", "action_space"):
            spaces = getattr(first, name), getattr(second, name)
            if spaces[0] != spaces[1]:
                raise ConfigurationError(
                    f"The halves differ in their {name}, {spaces[0]} and {spaces[1]}: build both alike."
                )
        self.halves = (Half(first), Half(second))
        middle, n_envs = first.num_envs, first.num_envs + second.num_envs
        self.parts = (slice(0, middle), slice(middle, n_envs))
        super().__init__(n_envs, first.observation_space, first.action_space)
        self.metadata = first.metadata

    @property
    def reset_infos(self) -> list[dict[str, Any]]:
        """What the last reset of each environment told."""
        return [info for half in self.halves for info in half.reset_infos]

    @reset_infos.setter
    def reset_infos(self, infos: object) -> None:
        """Ignore what VecEnv's constructor sets: the halves know."""

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step of all environments."""
        for half, part in zip(self.halves, self.parts, strict=True):
            half.step_async(actions[part])

    def step_wait(self) -> VecEnvStepReturn:
        """Fetch the result of the step."""
        return join_results([half.step_wait() for half in self.halves])

    def reset(self) -> VecEnvObs:
        """Reset all environments; ``(n_envs, ...)`` observations."""
        return join([half.reset() for half in self.halves])

    def close(self) -> None:
        """Close both halves, the second even if the first cannot be closed."""
        with ExitStack() as stack:
            for half in self.halves:
                stack.callback(half.close)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed environment i with ``seed + i`` at its next reset."""
        seeds = super().seed(seed)
        return [
            given
            for half, part in zip(self.halves, self.parts, strict=True)
            for given in half.seed(seeds[part.start])
        ]

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Set what the next reset is given, for each environment or for all."""
        for half, part in zip(self.halves, self.parts, strict=True):
            half.set_options(options[part] if isinstance(options, list) else options)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Render each environment."""
        return [image for half in self.halves for image in half.get_images()]

    def has_attr(self, attr_name: str) -> bool:
        """Whether each environment has an attribute."""
        return all(half.has_attr(attr_name) for half in self.halves)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Read an attribute of environments."""
        return self._ask(indices, lambda half, own: half.get_attr(attr_name, own))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of environments."""

        def set_in(half: Half, own: list[int]) -> list[None]:
            half.set_attr(attr_name, value, own)
            return [None] * len(own)

        self._ask(indices, set_in)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of environments."""
        return self._ask(
            indices,
            lambda half, own: half.env_method(method_name, *method_args, indices=own, **method_kwargs),
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether environments have a wrapper."""
        return self._ask(indices, lambda half, own: half.env_is_wrapped(wrapper_class, own))

    def _ask(self, indices: VecEnvIndices, ask: Callable[[Half, list[int]], Iterable[Any]]) -> list[Any]:
        """Ask each half about its environments, and answer in the order of the indices."""
        wanted = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        answers: dict[int, list[Any]] = {}
        for half, part in zip(self.halves, self.parts, strict=True):
            own = [index for index in wanted if part.start <= index < part.stop]
            if own:
                given = ask(half, [index - part.start for index in own])
                for index, answer in zip(own, given, strict=True):
                    answers.setdefault(index, []).append(answer)
        return [answers[index].pop(0) for index in wanted]


def build_halves(build: Callable[[int, int], VecEnv], n_envs: int) -> HalvedVecEnv:
    """Build a vector environment of two halves; where ``n_envs`` is odd the second is larger.

    :param build: called with the index of a half's first environment and how many it has; seeds them
        as environments of the whole
    :param n_envs: how many in all
    :raises ConfigurationError: if there are fewer than 2
    """
    if n_envs < 2:
        raise ConfigurationError(
            f"overlap with n_envs={n_envs}: it takes at least 2 environments, one for each half."
        )
    middle = n_envs // 2
    with ExitStack() as opened:
        first = build(0, middle)
        opened.callback(first.close)
        env = HalvedVecEnv(first, build(middle, n_envs - middle))
        opened.pop_all()
    return env
