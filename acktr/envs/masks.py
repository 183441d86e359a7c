"""Masks of invalid actions, as environments give them: ``action_masks()``, which is sb3-contrib's name.

A mask is one boolean for each action of a ``Discrete`` space, True where it is allowed; for a
``MultiDiscrete`` space those of all parts, one after another; for a ``MultiBinary`` space two for each
part, whether it may be 0 and whether it may be 1.

They are asked for before each step and kept by nobody: what is allowed is part of the environment's
state, and whoever brings that back has the same masks again.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from acktr.errors import AcktrError, ConfigurationError, WorkerError

METHOD = "action_masks"


class ActionMasks:
    """Asks environments which actions they allow.

    :param env: the environments, all of which have ``action_masks()``
    :param action_space: of one of them
    :raises ConfigurationError: actions that no mask is for
    """

    def __init__(self, env: VecEnv, action_space: spaces.Space) -> None:
        self._env = env
        self._layout = Layout(action_space)

    def __call__(self, num_timesteps: int) -> np.ndarray:
        """Ask each environment for the mask of its present observation.

        :param num_timesteps: environment steps so far, for messages
        :return: ``(n_envs, width)``, boolean
        :raises WorkerError: a mask is none, or leaves no action; it names the environment
        """
        try:
            given = self._env.env_method(METHOD)
        except AcktrError:
            raise
        except Exception as error:
            raise WorkerError(
                f"{METHOD}() of {self._culprit()} raised {type(error).__name__} at step "
                f"{num_timesteps:,}: {' '.join(str(error).split())[:300]}"
            ) from error
        masks, problem = self._layout.read(given, self._env.num_envs)
        if problem is None:
            return masks
        index, what = problem
        raise WorkerError(
            f"Environment {index} returned from {METHOD}() at step {num_timesteps:,} {what}; nothing "
            "was learned from it: mend the environment, or give ACKTR use_masking=False."
        )

    def _culprit(self) -> str:
        for index in range(self._env.num_envs):
            try:
                self._env.env_method(METHOD, indices=[index])
            except Exception:
                return f"environment {index}"
        return "an environment"


class Layout:
    """The form of the masks of an action space.

    :param action_space: of the environment
    :raises ConfigurationError: actions that no mask is for
    """

    def __init__(self, action_space: spaces.Space) -> None:
        sizes = part_sizes(action_space)
        if sizes is None:
            raise ConfigurationError(
                f"The environment has {METHOD}(), and masks are for Discrete, MultiDiscrete and "
                f"MultiBinary actions, not for a {type(action_space).__name__}: make the actions one of "
                "these, or give ACKTR use_masking=False."
            )
        self.width = int(sizes.sum())
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._parts = len(sizes)
        self._meaning = _meaning(action_space)

    def read(self, given: Any, count: int) -> tuple[np.ndarray, tuple[int, str] | None]:
        """Turn masks as they were given into an array.

        :param given: one mask for each environment
        :param count: how many there must be
        :return: ``(count, width)``, boolean; and what is wrong with which of them, ``None`` for nothing
        """
        try:
            masks = np.array(given)
        except ValueError:  # of different lengths
            masks = np.empty(0)
        if masks.size == count * self.width:
            masks = masks.reshape(count, self.width)
            # What is counted in 0 and 1 means the same.
            if masks.dtype != bool and masks.dtype.kind in "iuf" and ((masks == 0) | (masks == 1)).all():
                masks = masks.astype(bool)
            if masks.dtype == bool:
                some = np.logical_or.reduceat(masks, self._starts, axis=1)
                return masks, None if some.all() else self._no_action(some)
        return masks, self._find_problem(list(given))

    def _no_action(self, some: np.ndarray) -> tuple[int, str]:
        index, part = (int(x[0]) for x in np.nonzero(~some))
        where = f" for part {part} of its actions" if self._parts > 1 else ""
        return index, f"a mask that leaves no action{where}"

    def _find_problem(self, given: list[Any]) -> tuple[int, str]:
        for index, one in enumerate(given):
            try:
                mask = np.asarray(one)
            except ValueError:
                return index, f"arrays of different lengths, where a mask has {self._meaning}"
            if mask.size != self.width:
                return index, f"a mask of the shape {mask.shape}, where {self.width} are {self._meaning}"
            if mask.dtype.kind not in "biuf" or not ((mask == 0) | (mask == 1)).all():
                return index, (
                    f"a mask of {mask.dtype} with other values than True and False (1 and 0), where "
                    "True is what may be done"
                )
        return 0, f"masks of {len(given)} environments that do not fit together"


def part_sizes(action_space: spaces.Space) -> np.ndarray | None:
    """Return how many booleans of a mask each part of an action has; ``None`` where no mask fits."""
    if isinstance(action_space, spaces.Discrete):
        return np.array([int(action_space.n)])
    if isinstance(action_space, spaces.MultiDiscrete):
        return action_space.nvec.astype(np.int64).ravel()
    if isinstance(action_space, spaces.MultiBinary):
        return np.full(int(np.prod(action_space.n)), 2)
    return None


def draw_allowed(env: VecEnv, rng: np.random.Generator) -> np.ndarray:
    """Draw an action of each environment, evenly among those that it allows.

    :param env: the environments, with or without masks
    :param rng: draws where there are masks; else the action space does
    :return: ``(n_envs, *action)``
    :raises WorkerError: a mask is none, or leaves no action
    """
    space: Any = env.action_space
    sizes = part_sizes(space)
    if sizes is None or not has_masks(env):
        return np.stack([space.sample() for _ in range(env.num_envs)])
    drawn = []
    for mask in ActionMasks(env, space)(0):
        parts = np.split(mask, np.cumsum(sizes)[:-1])
        chosen = np.array([rng.choice(np.flatnonzero(part)) for part in parts])
        drawn.append(chosen.reshape(space.shape) + getattr(space, "start", 0))
    return np.stack(drawn).astype(space.dtype)


def _meaning(action_space: spaces.Space) -> str:
    if isinstance(action_space, spaces.Discrete):
        return "needed, one for each action"
    if isinstance(action_space, spaces.MultiDiscrete):
        return "needed, one for each value of each part, one part after another"
    return "needed, two for each part: whether it may be 0, and whether it may be 1"


def has_masks(env: VecEnv | None) -> bool:
    """Whether environments say which actions are allowed."""
    if env is None:
        return False
    # Of somebody's own vector environment: not known, if it raises.
    with contextlib.suppress(Exception):
        # Who says yes to anything says nothing.
        return env.has_attr(METHOD) and not env.has_attr("_asked_by_acktr")
    return False


def check_given(masks: Any, action_space: spaces.Space) -> np.ndarray:
    """Return masks that somebody gives for a prediction.

    :param masks: of one observation, or of as many as there are
    :param action_space: of the environment
    :return: ``(n, width)``, boolean
    :raises ConfigurationError: says what is wrong with them
    """
    layout = Layout(action_space)
    try:
        array = np.array(masks)
    except ValueError:
        array = np.empty(0, object)
    count, rest = divmod(array.size, layout.width)
    whole = count and not rest
    read, problem = layout.read(array.reshape(count, -1) if whole else [array], count if whole else 1)
    if problem is not None:
        index, what = problem
        raise ConfigurationError(f"action_masks of predict holds, for observation {index}, {what}.")
    return read
