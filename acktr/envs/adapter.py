"""Observations and actions between an environment's spaces and the plain ones that SB3's networks know.

SB3's one-hot encoding counts from 0, its distributions are flat, and an observation has at least one
dimension. Spaces that differ from this in form alone are translated where the learner meets the
environment: a model keeps the environment's own spaces, its policy and its storage have the plain ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

_Translate = Callable[[np.ndarray], np.ndarray]


class Adapter:
    """Translates observations and actions; what is plain already passes as it is.

    :param observation_space: the environment's
    :param action_space: the environment's
    :param images: a ``Box`` of so many dimensions is convolved: it gets channels, and they come first
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, images: Collection[int] = ()
    ) -> None:
        self._parts: dict[str, tuple[tuple[int, ...], _Translate]] = {}
        self._dropped: Collection[str] = ()  # keys of a Dict under which there is no number
        self.observation_space = self._plain_observations(observation_space, images)
        self.action_space = _plain_actions(action_space)
        self._actions = action_space
        self._shape = (-1, *(action_space.shape or ()))
        self._start = _start(action_space)
        self._bounds = None
        if isinstance(action_space, spaces.Box):
            self._bounds = action_space.low, action_space.high

    def _plain_observations(self, space: spaces.Space, images: Collection[int]) -> spaces.Space:
        if isinstance(space, spaces.Dict):
            full = {key: part for key, part in space.spaces.items() if 0 not in (part.shape or ())}
            parts = {key: self._plain_part(key, part, images) for key, part in full.items()}
            self._dropped = space.spaces.keys() - full.keys()
            return spaces.Dict(parts) if self._parts or self._dropped else space
        return self._plain_part("", space, images)

    def _plain_part(self, key: str, space: spaces.Space, images: Collection[int]) -> spaces.Space:
        plain, translate = _plain_observation(space, images)
        if plain is not space:
            self._parts[key] = (space.shape or (), translate)
        return plain

    def observations(self, obs: Any) -> Any:
        """Translate observations of the environment into those of the plain space.

        :param obs: ``(*obs)`` or ``(n_envs, *obs)``, or a dict of such arrays
        """
        if not (self._parts or self._dropped):
            return obs
        if isinstance(obs, dict):
            parts = ((key, part) for key, part in obs.items() if key not in self._dropped)
            return {key: self._observation(key, part) for key, part in parts}
        return self._observation("", obs)

    def _observation(self, key: str, obs: Any) -> Any:
        if key not in self._parts:
            return obs
        shape, translate = self._parts[key]
        array = np.asarray(obs)
        if array.shape[array.ndim - len(shape) :] != shape:
            return obs  # whoever gets it says what is wrong with it
        batch = array.shape[: array.ndim - len(shape)]
        plain = translate(array.reshape(-1, *shape))
        return plain.reshape((*batch, *plain.shape[1:]))

    def reshape(self, actions: np.ndarray) -> np.ndarray:
        """Give actions as the policy drew them, ``(n_envs, *plain)``, the environment's shape."""
        return actions.reshape(self._shape)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """Bring reshaped actions into the environment's space: its bounds, its first action, its dtype.

        :param actions: ``(n_envs, *action)`` or ``(*action)``
        """
        if self._bounds is not None:
            # Outside its bounds a Gaussian action means the bound itself, which has the space's dtype.
            low, high = self._bounds
            actions = np.minimum(np.maximum(actions, low), high)
        elif self._start is not None:
            actions = np.asarray(actions + self._start)
        dtype = self._actions.dtype
        return actions if actions.dtype == dtype else actions.astype(dtype)

    def predicted(self, actions: np.ndarray) -> np.ndarray:
        """Turn what a policy predicted in its plain space into actions of the environment's.

        :param actions: ``(n_envs, *plain)`` or ``(*plain)``
        """
        shape, plain = self._actions.shape or (), self.action_space.shape or ()
        batch = actions.shape[: actions.ndim - len(plain)]
        return self.actions(actions if shape == plain else actions.reshape((*batch, *shape)))


def _plain_observation(space: spaces.Space, images: Collection[int]) -> tuple[spaces.Space, _Translate]:
    """Return the plain space of one part, and what translates a batch; the same space if it is plain."""
    if isinstance(space, spaces.Discrete) and space.start != 0:
        start = int(space.start)
        return spaces.Discrete(int(space.n)), lambda obs: obs.astype(np.int64) - start
    if isinstance(space, spaces.MultiDiscrete):
        plain = _plain_counts(space)
        starts = space.start.astype(np.int64)
        return plain, lambda obs: (obs.astype(np.int64) - starts).reshape(len(obs), -1)
    if isinstance(space, spaces.Box):
        if space.shape == ():
            return _reshaped(space, lambda box: box.reshape(len(box), 1))
        if len(space.shape) in images and not is_image_space(space):
            if len(space.shape) == 2:
                return _reshaped(space, lambda box: box[:, None])
            # Where both ends are as long the channels come last, as gymnasium's wrappers have them.
            if space.shape[0] >= space.shape[2]:
                return _reshaped(space, lambda box: np.moveaxis(box, -1, 1))
    return space, lambda obs: obs


def _reshaped(space: spaces.Box, translate: _Translate) -> tuple[spaces.Box, _Translate]:
    low, high = (translate(bound[None])[0] for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type), translate


def _plain_counts(space: spaces.MultiDiscrete) -> spaces.MultiDiscrete:
    plain = space.nvec.ndim == 1 and space.nvec.dtype == np.int64 and not space.start.any()
    # Sums of small integers overflow.
    return space if plain else spaces.MultiDiscrete(space.nvec.astype(np.int64).ravel())


def _plain_actions(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return _plain_counts(space)
    if isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int):
        return spaces.MultiBinary(int(np.prod(space.n)))
    return space


def _start(space: spaces.Space) -> Any:
    """Return what is added to actions that count from 0; ``None`` for nothing."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) or None
    if isinstance(space, spaces.MultiDiscrete) and space.start.any():
        return space.start.astype(np.int64)
    return None
