"""Rollout storage on the device and the loop that fills it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import compress, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape, is_image_space
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from acktr import distributed
from acktr.adapted import AdaptedAlgorithm
from acktr.stepping import as_tensors, last_observations, steps_of

Observations = Tensor | dict[str, Tensor]


class RolloutBatch(NamedTuple):
    """One rollout, flattened over steps and environments: B = n_steps n_envs.

    :param observations: ``(B, *obs)``, or a dict of such tensors
    :param actions: ``(B, action_dim)``; ``(B,)`` for Discrete
    :param values: the critic's values when the rollout ended, ``(B,)``
    :param advantages: ``(B,)``
    :param returns: ``advantages + values``, ``(B,)``
    """

    observations: Observations
    actions: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def sample(self, factor: int) -> RolloutBatch:
        """Draw one sample in ``factor`` without replacement, at least one."""
        return self._pick(self._shuffled()[: max(len(self.returns) // factor, 1)])

    def minibatches(self, size: int | None, count: int) -> Iterator[tuple[Tensor | slice, RolloutBatch]]:
        """Go through the shuffled batch in parts, and through it again in another order.

        :param size: of each part; the last of a pass may be smaller. ``None`` for the whole batch
        :param count: of parts
        :return: which samples, and their part of the batch
        """
        if size is None:
            yield from repeat((slice(None), self), count)
            return
        left = self._shuffled()
        for _ in range(count):
            if not len(left):
                left = self._shuffled()
            chosen, left = left[:size], left[size:]
            yield chosen, self._pick(chosen)

    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self.returns), device=self.returns.device)

    def _pick(self, chosen: Tensor) -> RolloutBatch:
        def pick(part: Observations) -> Any:
            return {k: x[chosen] for k, x in part.items()} if isinstance(part, dict) else part[chosen]

        return RolloutBatch(*map(pick, self))


class RolloutStorage:
    """Preallocated arrays ``(n_steps, n_envs, ...)``, each entry written once a rollout.

    What the learner reads is on its device. Rewards and episode starts serve the advantages alone, which
    are computed in numpy, and are numpy arrays as in SB3. Takes the constructor of SB3's
    ``RolloutBuffer``, whose place it fills.

    :param buffer_size: n_steps
    :param observation_space: of one environment
    :param action_space: of one environment
    :param device: where the learner computes
    :param gae_lambda: lambda of the generalised advantage estimator; 1 gives k-step returns
    :param gamma: discount factor
    :param n_envs: number of environments
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "cpu",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.endings: distributed.Flags = (False, False)  # episodes seen cut by time, and ended before
        size = (buffer_size, n_envs)

        def allocate(space: spaces.Space) -> Tensor:
            # Other bytes than those of images may come normalised, which their space does not say.
            dtype = torch.uint8 if is_image_space(space) else torch.float32
            shape = get_obs_shape(space)
            assert isinstance(shape, tuple)
            return torch.zeros((*size, *shape), dtype=dtype, device=device)

        self.observations: Observations
        if isinstance(observation_space, spaces.Dict):
            self.observations = {k: allocate(s) for k, s in observation_space.spaces.items()}
        else:
            self.observations = allocate(observation_space)
        discrete = isinstance(action_space, spaces.Discrete)
        action_shape = () if discrete else (get_action_dim(action_space),)
        self.actions = torch.zeros((*size, *action_shape), device=device)
        self.values = torch.zeros(size, device=device)
        self.advantages = torch.zeros(size, device=device)
        self.rewards = np.zeros(size, np.float32)
        self.episode_starts = np.zeros(size, np.float32)
        parts = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        self._slots = {key: _Slots(stored) for key, stored in parts.items()}
        self._action_slots = _Slots(self.actions)

    def reset(self) -> None:
        """Begin a new rollout: nothing to clear, every entry is written again."""

    def add(
        self, step: int, obs: Observations, actions: Tensor, rewards: np.ndarray, starts: np.ndarray
    ) -> None:
        """Write one step of all environments.

        :param step: of the rollout, from 0
        :param obs: what the actions answer, ``(n_envs, *obs)`` on the device, or a dict of such tensors
        :param actions: as they were drawn, ``(n_envs, *action)`` on the device
        :param rewards: ``(n_envs,)``
        :param starts: whether the observation began an episode, ``(n_envs,)``
        """
        for key, slots in self._slots.items():
            slots[step] = obs[key] if isinstance(obs, dict) else obs
        self._action_slots[step] = actions
        self.rewards[step] = rewards
        self.episode_starts[step] = starts

    def compute_advantages(self, last_values: Tensor, last_dones: np.ndarray) -> None:
        """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards in time.

        ``A_t = delta_t + gamma lambda A_{t+1}``, ``delta_t = r_t + gamma V_{t+1} - V_t``, both cut
        where an episode ended.

        :param last_values: values of the observations after the last step, ``(n_envs,)``
        :param last_dones: whether the last step ended an episode, ``(n_envs,)``
        """
        values = torch.cat([self.values, last_values.unsqueeze(0)]).cpu().numpy()
        alive = 1.0 - np.concatenate([self.episode_starts[1:], last_dones[np.newaxis]], dtype=np.float32)
        decay = self.gamma * self.gae_lambda * alive
        advantages = self.rewards + self.gamma * values[1:] * alive - values[:-1]
        for step in reversed(range(len(advantages) - 1)):
            advantages[step] += decay[step] * advantages[step + 1]
        self.advantages.copy_(torch.from_numpy(advantages))

    def batch(self) -> RolloutBatch:
        """Return the whole rollout as views, without a copy of the observations."""
        if isinstance(self.observations, dict):
            obs: Observations = {k: v.flatten(0, 1) for k, v in self.observations.items()}
        else:
            obs = self.observations.flatten(0, 1)
        values, advantages = self.values.flatten(), self.advantages.flatten()
        return RolloutBatch(obs, self.actions.flatten(0, 1), values, advantages, values + advantages)


class _Slots:
    """Writes the steps of one stored tensor; a CPU's memory through numpy, at a third of the price."""

    def __init__(self, stored: Tensor) -> None:
        self._shape = stored.shape[1:]
        self._stored = stored
        self._array = stored.numpy() if stored.device.type == "cpu" else None

    def __setitem__(self, step: int, value: Tensor) -> None:
        if self._array is None:
            self._stored[step] = value.reshape(self._shape)
        else:
            self._array[step] = value.numpy().reshape(self._shape)


def collect_rollout(
    model: AdaptedAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutStorage,
    n_rollout_steps: int,
) -> bool:
    """Fill the storage with one rollout, as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Local names are SB3's, because callbacks read them; ``log_probs`` is missing, and ``values`` is None
    unless actor and critic share a trunk. Else the critic is not asked step by step: values of the whole
    rollout come from one batched forward pass, and so do those of all truncated ends.

    :param model: its policy acts, its counters and last observations are moved on
    :param env: the environments
    :param callback: called at each step
    :param rollout_buffer: filled
    :param n_rollout_steps: steps of each environment
    :return: False if the callback asked to stop
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    """
    policy = model.policy
    policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    truncated: list[tuple[int, int, object]] = []
    new_obs: Any = model._last_obs
    values: Tensor | None = None
    n_steps = 0
    with closing(steps_of(model, env, n_rollout_steps)) as steps:
        for decision, result in steps:
            obs_tensor, action_tensor, actions, clipped_actions, values = decision
            new_obs, rewards, dones, infos = result
            model.num_timesteps += env.num_envs * distributed.size()
            callback.update_locals(locals())
            if not callback.on_step():
                # Who goes on learning after a stop begins where the environments are.
                model._last_obs, model._last_episode_starts = new_obs, dones
                return False
            model._update_info_buffer(infos, dones)
            for info in compress(infos, dones):
                by_time = bool(info.get("TimeLimit.truncated"))
                cut, ended = rollout_buffer.endings
                rollout_buffer.endings = (cut or by_time, ended or not by_time)
            for idx, end in last_observations(dones, infos).items():
                if infos[idx].get("TimeLimit.truncated"):
                    truncated.append((n_steps, idx, end))
            assert model._last_episode_starts is not None
            rollout_buffer.add(n_steps, obs_tensor, action_tensor, rewards, model._last_episode_starts)
            if values is not None:
                rollout_buffer.values[n_steps] = values.flatten()
            model._last_obs = new_obs
            model._last_episode_starts = dones
            n_steps += 1

    with torch.no_grad():
        if values is None:
            flat = rollout_buffer.batch().observations
            rollout_buffer.values.copy_(policy.predict_values(flat).view_as(rollout_buffer.values))
        last_values = policy.predict_values(as_tensors(model, new_obs)).flatten()
        if truncated:
            # A cut by time is no end: what would have come counts as gamma V (SB3 issue #633).
            at, indices, observations = map(list, zip(*truncated, strict=True))
            end_values = policy.predict_values(_stack(observations, model)).flatten()
            rollout_buffer.rewards[at, indices] += rollout_buffer.gamma * end_values.cpu().numpy()
    rollout_buffer.compute_advantages(last_values, dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def _stack(observations: list[Any], model: AdaptedAlgorithm) -> Observations:
    """Batch single observations as the environment returned them."""
    stacked: Any
    if isinstance(observations[0], dict):
        stacked = {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    else:
        stacked = np.stack(observations)
    return as_tensors(model, stacked)
