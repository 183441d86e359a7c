"""The steps of a rollout: the policy's actions out, the environments' answers in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from acktr import distributed
from acktr.envs.adapter import Adapter
from acktr.envs.finite import is_finite, not_finite
from acktr.envs.masks import ActionMasks
from acktr.errors import DivergenceError
from acktr.rollout.actions import ActionSampler


class Decision(NamedTuple):
    """The policy's answer to observations.

    :param obs_tensor: the observations on the policy's device, ``(n_envs, *obs)`` or a dict
    :param action_tensor: as the policy drew them
    :param actions: the same on the host, ``(n_envs, *action)``, neither clipped nor shifted
    :param clipped_actions: as the environments get them
    :param values: the critic's, ``(n_envs, 1)``; ``None`` if it was not asked
    :param action_masks: which actions the environments allow, ``(n_envs, width)``; ``None`` if all
    :param mask_tensor: the same on the policy's device
    """

    obs_tensor: Any
    action_tensor: Tensor
    actions: np.ndarray
    clipped_actions: np.ndarray
    values: Tensor | None
    action_masks: np.ndarray | None
    mask_tensor: Tensor | None


class Answer(NamedTuple):
    """The environments' answer to actions.

    :param new_obs: ``(n_envs, *obs)``, or a dict of such arrays
    :param rewards: ``(n_envs,)``
    :param dones: whether an episode ended, ``(n_envs,)``
    :param infos: one for each environment
    """

    new_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


class Translator:
    """Brings observations to where the policy reads them, and its actions to where environments do.

    :param adapter: between the environments' spaces and the policy's
    :param device: of the policy
    :param masks: asks the environments which actions are allowed; ``None`` where nobody asks
    """

    def __init__(self, adapter: Adapter, device: torch.device, masks: ActionMasks | None = None) -> None:
        self._adapter = adapter
        self._device = device
        self._masks = masks

    def masks(self, num_timesteps: int) -> tuple[np.ndarray | None, Tensor | None]:
        """Ask for the masks of the present observations, on the host and where the policy is."""
        if self._masks is None:
            return None, None
        masks = self._masks(num_timesteps)
        return masks, torch.as_tensor(masks, device=self._device)

    def tensors(self, obs: Any) -> Any:
        """Turn observations of the environments into the policy's.

        :param obs: ``(n_envs, *obs)``, or a dict of such arrays
        """
        return obs_as_tensor(self._adapter.observations(obs), self._device)

    def stacked(self, observations: list[Any]) -> Any:
        """Batch single observations as the environment returned them."""
        if isinstance(observations[0], dict):
            keys = observations[0]
            return self.tensors({key: np.stack([o[key] for o in observations]) for key in keys})
        return self.tensors(np.stack(observations))

    def actions(self, drawn: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return drawn actions on the host, and as the environments get them."""
        actions = self._adapter.reshape(drawn.cpu().numpy())
        return actions, self._adapter.actions(actions)


def steps_of(
    sampler: ActionSampler,
    translator: Translator,
    env: VecEnv,
    obs: Any,
    n_steps: int,
    num_timesteps: int,
) -> Iterator[tuple[Decision, Answer]]:
    """Step from observations on.

    :param sampler: draws the actions
    :param translator: between the policy and the environments
    :param env: the environments
    :param obs: their last observations
    :param n_steps: steps of each environment
    :param num_timesteps: environment steps of all ranks so far, for messages
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    :raises WorkerError: an environment's mask is none, or leaves no action
    """
    obs = _copied(obs)
    for _ in range(n_steps):
        obs_tensor = translator.tensors(obs)
        action_masks, mask_tensor = translator.masks(num_timesteps)
        drawn, values = sampler(obs_tensor, sampler.noise(env.num_envs), mask_tensor)
        actions, clipped_actions = translator.actions(drawn)
        result = _own(env.step(clipped_actions))
        check_finite(env, result, num_timesteps)
        masks = action_masks, mask_tensor
        yield Decision(obs_tensor, drawn, actions, clipped_actions, values, *masks), result
        sampler.ended(result.dones)
        obs = result.new_obs
        num_timesteps += env.num_envs * distributed.size()


def last_observations(dones: np.ndarray, infos: list[dict[str, Any]]) -> dict[int, Any]:
    """Return the last observations of the episodes that ended, by environment."""
    return {
        index: infos[index]["terminal_observation"]
        for index in dones.nonzero()[0].tolist()
        if infos[index].get("terminal_observation") is not None
    }


def _own(result: VecEnvStepReturn) -> Answer:
    """Keep what environments returned: they may write their next answer into the same memory."""
    obs, rewards, dones, infos = result
    dones = np.array(dones)
    ended = dones.nonzero()[0].tolist()
    if ended:
        infos = list(infos)
        for index in ended:
            last = infos[index].get("terminal_observation")
            if last is not None:
                infos[index] = {**infos[index], "terminal_observation": _copied(last)}
    return Answer(_copied(obs), np.array(rewards), dones, infos)


def _copied(obs: Any) -> Any:
    """Return observations, an array or a dict or tuple of arrays, in memory of their own."""
    if isinstance(obs, dict):
        return {key: np.array(value) for key, value in obs.items()}
    return tuple(map(np.array, obs)) if isinstance(obs, tuple) else np.array(obs)


def check_finite(env: VecEnv, result: Answer, num_timesteps: int) -> None:
    """Stop before a value that is not finite enters the rollout.

    :param env: the environments
    :param result: what they returned
    :param num_timesteps: environment steps so far, for the message
    :raises DivergenceError: names what is not finite, the step and the environment
    """
    for index, end in last_observations(result.dones, result.infos).items():
        if not all(map(is_finite, _arrays(end))):
            raise _divergence("last observation", index, num_timesteps)
    arrays, rewards = _arrays(result.new_obs), result.rewards
    if all(map(is_finite, (*arrays, rewards))):
        return
    normalize = unwrap_vec_normalize(env)
    if isinstance(normalize, VecNormalize):  # one bad observation has spoiled the mean of all
        arrays = _arrays(normalize.get_original_obs())
        rewards = normalize.get_original_reward()
    for what, parts in (("reward", [rewards]), ("observation", arrays)):
        culprits = [int(index) for part in parts for index in not_finite(part)]
        if culprits:
            raise _divergence(what, min(culprits), num_timesteps)
    raise DivergenceError(
        f"Normalisation gave a value that is not finite at step {num_timesteps}; no parameter "
        "was changed: bound what the environment returns."
    )


def _arrays(obs: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (obs.values() if isinstance(obs, dict) else [obs])]


def _divergence(what: str, index: int, num_timesteps: int) -> DivergenceError:
    return DivergenceError(
        f"A {what} that is not finite came from environment {index} at step {num_timesteps}; no "
        "parameter was changed: look at what the environment returns there."
    )
