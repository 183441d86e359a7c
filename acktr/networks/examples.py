"""Observations and actions made up from a policy's spaces, to see what its networks do with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

_SAMPLES = 4  # in a batch
_LARGEST = 10.0  # of the numbers, where the space allows more


def example_observations(policy: ActorCriticPolicy) -> Iterator[Any]:
    """Make up batches of observations: drawn from the space, and the least there are."""
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    drawn = [space.sample() for _ in range(_SAMPLES)]
    for make in (_moderate, lambda x, box: np.clip(np.zeros_like(x), box.low, box.high)):
        yield obs_as_tensor(_stack([_each_box(x, space, make) for x in drawn]), policy.device)


def _each_box(value: Any, space: spaces.Space, make: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _each_box(value[name], part, make) for name, part in space.spaces.items()}
    return make(value, space) if isinstance(space, spaces.Box) else value


def _moderate(value: np.ndarray, box: spaces.Box) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    return np.clip(np.clip(value, -_LARGEST, _LARGEST), box.low, box.high)


def _stack(samples: list[Any]) -> Any:
    if isinstance(samples[0], Mapping):
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    return np.stack(samples)


def example_actions(policy: ActorCriticPolicy) -> Tensor:
    """Make up a batch of actions, as :func:`as_stored` returns them."""
    space = copy.deepcopy(policy.action_space)
    space.seed(0)
    samples = np.stack([np.asarray(space.sample()) for _ in range(_SAMPLES)])
    return as_stored(torch.as_tensor(samples, device=policy.device), policy)


def as_stored(actions: Tensor, policy: ActorCriticPolicy) -> Tensor:
    """Bring actions into the shape and type in which rollouts keep them."""
    discrete = isinstance(policy.action_space, spaces.Discrete)
    return actions.reshape((len(actions),) if discrete else (len(actions), -1)).float()
