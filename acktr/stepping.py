"""The steps of a rollout: the policy's actions out, the environments' answers in."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from acktr.acting import Actor


class Step(NamedTuple):
    """One step of all environments.

    :param obs_tensor: what the actions answer, on the policy's device, ``(n_envs, *obs)`` or a dict
    :param action_tensor: as the policy drew them
    :param actions: the same on the host, ``(n_envs, *action)``
    :param clipped_actions: as the environments got them
    :param new_obs: what the environments returned, ``(n_envs, *obs)`` or a dict
    :param rewards: ``(n_envs,)``
    :param dones: whether an episode ended, ``(n_envs,)``
    :param infos: one for each environment
    """

    obs_tensor: Any
    action_tensor: Tensor
    actions: np.ndarray
    clipped_actions: np.ndarray
    new_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


class _Decisions:
    """Turns observations into actions for the environments, for one rollout of a model."""

    def __init__(self, model: OnPolicyAlgorithm) -> None:
        self.actor = Actor(model.policy)
        self._device = model.device
        space = model.action_space
        self._shape = (-1, *(space.shape or ()))
        self._bounds = (space.low, space.high) if isinstance(space, spaces.Box) else None

    def __call__(self, obs: Any, noise: Tensor | None) -> tuple[Any, Tensor, np.ndarray, np.ndarray]:
        """Decide for some of the environments: the first four parts of a :class:`Step`."""
        obs_tensor = obs_as_tensor(obs, self._device)
        action_tensor = self.actor(obs_tensor, noise)
        actions = action_tensor.cpu().numpy().reshape(self._shape)
        if self._bounds is None:
            return obs_tensor, action_tensor, actions, actions
        # Outside its bounds a Gaussian action means the bound itself.
        low, high = self._bounds
        return obs_tensor, action_tensor, actions, np.minimum(np.maximum(actions, low), high)


def take_turns(model: OnPolicyAlgorithm, env: VecEnv, n_steps: int) -> Generator[Step]:
    """Let policy and environments take turns, from the model's last observations on.

    :param model: its policy acts
    :param env: the environments
    :param n_steps: steps of each environment
    """
    decide = _Decisions(model)
    obs: Any = model._last_obs
    for _ in range(n_steps):
        decision = decide(obs, decide.actor.noise(env.num_envs))
        obs, rewards, dones, infos = env.step(decision[-1])
        yield Step(*decision, obs, rewards, dones, infos)
