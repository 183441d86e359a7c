"""The storage of a rollout, with the interface of SB3's buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from acktr.envs.masks import part_sizes
from acktr.errors import ConfigurationError
from acktr.networks.outputs import Outputs
from acktr.networks.recurrent import Memory, Sequences
from acktr.rollout.batch import MaskedSamples, Observations, RolloutBatch
from acktr.rollout.later import Asked


class RolloutStorage(RolloutBuffer):
    """Preallocated arrays ``(n_steps, n_envs, ...)``, each entry written once a rollout.

    It fills the place of SB3's ``RolloutBuffer`` and offers what that does: ``observations``,
    ``actions``, ``values``, ``log_probs``, ``advantages`` and ``returns`` are numpy arrays, which are
    written into where they share the learner's memory, and are read-only copies where they do not (on
    an accelerator, or of another type). What is learned from is what they hold when the update begins.
    Values and log-probabilities that nothing has needed yet are computed when they are read.

    :param buffer_size: n_steps
    :param observation_space: of one environment
    :param action_space: of one environment
    :param device: where the learner computes
    :param gae_lambda: lambda of the generalised advantage estimator; 1 gives k-step returns
    :param gamma: discount factor
    :param n_envs: number of environments
    """

    rewards: np.ndarray
    episode_starts: np.ndarray

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
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.asked = Asked(None)  # what the policy that acts is asked, and answers when it is read
        self.memory: Memory | None = None
        self._allocate()
        self.reset()

    def _allocate(self) -> None:
        """Make room for what is large, and is written again from rollout to rollout."""
        size = (self.buffer_size, self.n_envs)

        def allocate(space: spaces.Space) -> Tensor:
            # Other bytes than those of images may come normalised, which their space does not say.
            dtype = torch.uint8 if is_image_space(space) else torch.float32
            shape = get_obs_shape(space)
            assert isinstance(shape, tuple)
            return torch.zeros((*size, *shape), dtype=dtype, device=self.device)

        self._observations: Observations
        if isinstance(self.observation_space, spaces.Dict):
            self._observations = {k: allocate(s) for k, s in self.observation_space.spaces.items()}
        else:
            self._observations = allocate(self.observation_space)
        discrete = isinstance(self.action_space, spaces.Discrete)
        self._actions = torch.zeros(
            (*size, *(() if discrete else (self.action_dim,))), device=self.device
        )
        parts = self._observations if isinstance(self._observations, dict) else {"": self._observations}
        self._slots = {key: _Slots(stored) for key, stored in parts.items()}
        self._action_slots = _Slots(self._actions)
        self._masks: Tensor | None = None  # with room where there are any
        self._shown = False  # whether somebody may hold on to arrays of the large ones

    def reset(self) -> None:
        """Begin a new rollout; arrays that were handed out stay as they are."""
        self.pos, self.full, self.generator_ready = 0, False, False
        size = (self.buffer_size, self.n_envs)
        self.rewards, self.episode_starts = np.zeros(size, np.float32), np.zeros(size, np.float32)
        parts = [torch.zeros(size, device=self.device) for _ in range(4)]
        self._values, self._log_probs, self._advantages, self._returns = parts
        self._known = {"values": 0, "log_probs": 0}  # so many steps of them
        if self._shown:
            self._allocate()

    def begin(
        self, outputs: Outputs, n_steps: int, masked: bool = False, memory: Memory | None = None
    ) -> None:
        """Begin a new rollout of the policy that acts now.

        :param outputs: the policy's, to ask for what is not known, until :meth:`close`
        :param n_steps: of each environment
        :param masked: whether each step comes with masks
        :param memory: of before the first step, of a policy that remembers
        :raises ConfigurationError: the storage is for another number of steps
        """
        if n_steps != self.buffer_size:
            raise ConfigurationError(
                f"n_steps is {n_steps} now, and the model was built for rollouts of "
                f"{self.buffer_size}: give n_steps to ACKTR or to ACKTR.load."
            )
        self.reset()
        self.memory = memory
        self._make_room_for_masks(masked)
        self._ask(outputs)

    def close(self) -> None:
        """Compute whatever somebody still holds and has not read, before the policy learns."""
        self._ask(None)

    def _ask(self, outputs: Outputs | None) -> None:
        self.asked.close()
        self.asked = Asked(outputs)

    def _make_room_for_masks(self, masked: bool) -> None:
        if not masked:
            self._masks = None
        elif self._masks is None:
            sizes = part_sizes(self.action_space)
            assert sizes is not None, "no mask is for these actions"
            size = (self.buffer_size, self.n_envs, int(sizes.sum()))
            self._masks = torch.ones(size, dtype=torch.bool, device=self.device)

    def write(
        self,
        step: int,
        obs: Observations,
        actions: Tensor,
        rewards: np.ndarray,
        starts: np.ndarray,
        masks: Tensor | None = None,
    ) -> None:
        """Write one step of all environments.

        :param step: of the rollout, from 0
        :param obs: what the actions answer, ``(n_envs, *obs)`` on the device, or a dict of such tensors
        :param actions: as they were drawn, ``(n_envs, *action)`` on the device
        :param rewards: ``(n_envs,)``
        :param starts: whether the observation began an episode, ``(n_envs,)``
        :param masks: which actions were allowed, ``(n_envs, width)``, if the rollout is a masked one
        """
        for key, slots in self._slots.items():
            slots[step] = obs[key] if isinstance(obs, dict) else obs
        self._action_slots[step] = actions
        if self._masks is not None and masks is not None:
            self._masks[step] = masks
        self.rewards[step] = rewards
        self.episode_starts[step] = starts
        self.pos = step + 1
        self.full = self.pos == self.buffer_size

    def write_values(self, values: Tensor, step: int | None = None) -> None:
        """Write the critic's values of one step, ``(n_envs, 1)``, or of all of them."""
        if step is None:
            self._values.copy_(values.view_as(self._values))
            self._known["values"] = self.buffer_size
        else:
            self._values[step] = values.flatten()
            self._known["values"] = step + 1

    def add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        episode_start: Any,
        value: Tensor,
        log_prob: Tensor,
        action_masks: Any = None,
    ) -> None:
        """Write the next step as SB3's loop does, see ``RolloutBuffer.add``, or sb3-contrib's."""
        step, masks = self.pos, None
        if action_masks is not None:
            self._make_room_for_masks(True)
            masks = torch.as_tensor(action_masks, device=self.device).reshape(self.n_envs, -1)
        obs_tensor = obs_as_tensor(obs, self.device)
        actions = torch.as_tensor(action, device=self.device)
        self.write(step, obs_tensor, actions, np.asarray(reward), np.asarray(episode_start), masks)
        self.write_values(value, step)
        self._log_probs[step] = log_prob.flatten()
        self._known["log_probs"] = step + 1

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards in time.

        ``A_t = delta_t + gamma lambda A_{t+1}``, ``delta_t = r_t + gamma V_{t+1} - V_t``, both cut
        where an episode ended.

        :param last_values: values of the observations after the last step, ``(n_envs,)``
        :param dones: whether the last step ended an episode, ``(n_envs,)``
        """
        last = last_values.reshape(1, -1)
        values = torch.cat([self._values, last]).cpu().numpy()
        alive = 1.0 - np.concatenate([self.episode_starts[1:], dones[np.newaxis]], dtype=np.float32)
        decay = self.gamma * self.gae_lambda * alive
        advantages = self.rewards + self.gamma * values[1:] * alive - values[:-1]
        for step in reversed(range(len(advantages) - 1)):
            advantages[step] += decay[step] * advantages[step + 1]
        self._advantages.copy_(torch.from_numpy(advantages))
        torch.add(self._values, self._advantages, out=self._returns)

    def batch(self) -> RolloutBatch:
        """Return the whole rollout as views, without a copy of the observations."""
        parts = (self._actions, self._values, self._advantages, self._returns)
        all_ = slice(None)
        batch = RolloutBatch(self.seen(all_), *(x.flatten(0, 1) for x in parts))
        return batch._replace(masks=self._flat_masks(all_))

    def _flat_masks(self, steps: slice) -> Tensor | None:
        return None if self._masks is None else self._masks[steps].flatten(0, 1)

    def seen(self, steps: slice) -> Any:
        """Return what policies are asked of some steps; with memory these are the first ones."""
        if isinstance(self._observations, dict):
            flat: Any = {k: v[steps].flatten(0, 1) for k, v in self._observations.items()}
        else:
            flat = self._observations[steps].flatten(0, 1)
        if self.memory is None:
            return flat
        return Sequences(flat, torch.from_numpy(self.episode_starts[steps] > 0), self.memory)

    # ------------------------------------------------------------------ what SB3's offers

    @property
    def observations(self) -> Any:
        """``(n_steps, n_envs, *obs)``, or a dict of such arrays."""
        if not isinstance(self._observations, dict):
            return self._show(self._observations, self.observation_space)
        assert isinstance(self.observation_space, spaces.Dict)
        return {k: self._show(x, self.observation_space[k]) for k, x in self._observations.items()}

    @observations.setter
    def observations(self, value: Any) -> None:
        parts = self._observations if isinstance(self._observations, dict) else {"": self._observations}
        for key, stored in parts.items():
            _put(stored, value[key] if isinstance(value, dict) else value)

    @property
    def actions(self) -> np.ndarray:
        """As they were drawn, ``(n_steps, n_envs, action_dim)``."""
        shown = self._show(self._actions, self.action_space)
        return shown.reshape(self.buffer_size, self.n_envs, self.action_dim)

    @actions.setter
    def actions(self, value: Any) -> None:
        _put(self._actions, value)

    @property
    def action_masks(self) -> np.ndarray | None:
        """Which actions were allowed, ``(n_steps, n_envs, width)``, 1 or 0; ``None`` where all were."""
        if self._masks is None:
            return None
        self._masks[self.pos :] = True  # of the rollout before
        return _read_only(self._masks.cpu().numpy().astype(np.float32))

    @property
    def values(self) -> np.ndarray:
        """The critic's, ``(n_steps, n_envs)``."""
        self._complete("values", self._values, lambda obs, *_: self.asked.values(obs))
        return _array(self._values)

    @values.setter
    def values(self, value: Any) -> None:
        _put(self._values, value)

    @property
    def log_probs(self) -> np.ndarray:
        """Of the actions, ``(n_steps, n_envs)``; computed when they are read, before the update."""
        self._complete("log_probs", self._log_probs, lambda *batch: self.asked.log_probs(*batch))
        return _array(self._log_probs)

    @log_probs.setter
    def log_probs(self, value: Any) -> None:
        _put(self._log_probs, value)
        self._known["log_probs"] = self.buffer_size

    @property
    def advantages(self) -> np.ndarray:
        """``(n_steps, n_envs)``."""
        return _array(self._advantages)

    @advantages.setter
    def advantages(self, value: Any) -> None:
        _put(self._advantages, value)

    @property
    def returns(self) -> np.ndarray:
        """Targets of the critic, ``(n_steps, n_envs)``."""
        return _array(self._returns)

    @returns.setter
    def returns(self, value: Any) -> None:
        _put(self._returns, value)

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        """Yield shuffled minibatches, as SB3's ``RolloutBuffer.get`` does."""
        assert self.full, "The rollout is not complete yet: ask for minibatches in _on_rollout_end."
        count = self.buffer_size * self.n_envs
        indices, samples = np.random.permutation(count), self._samples()  # noqa: NPY002  # as SB3
        size = batch_size or count
        for start in range(0, count, size):
            yield samples(indices[start : start + size])

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        return self._samples()(batch_inds)

    def _samples(self) -> Callable[[np.ndarray], Any]:
        numbers = (self.values, self.log_probs, self.advantages, self.returns)
        flat = [self.swap_and_flatten(x).flatten() for x in numbers]
        actions = self.swap_and_flatten(self.actions).astype(np.float32)
        shown, masks = self.observations, self.action_masks
        kind: Callable[..., Any] = RolloutBufferSamples
        if masks is not None:
            flat, kind = [*flat, self.swap_and_flatten(masks)], MaskedSamples
        if not isinstance(shown, dict):
            observations = self.swap_and_flatten(shown)
            return lambda i: kind(*(self.to_torch(x[i]) for x in (observations, actions, *flat)))
        kind = DictRolloutBufferSamples if masks is None else kind
        parts = {key: self.swap_and_flatten(x) for key, x in shown.items()}
        return lambda i: kind(
            {key: self.to_torch(x[i]) for key, x in parts.items()},
            *(self.to_torch(x[i]) for x in (actions, *flat)),
        )

    def _show(self, stored: Tensor, space: spaces.Space) -> np.ndarray:
        self._shown = True
        stored[self.pos :] = 0  # of the rollout before
        array = _array(stored)
        # Numbers may be stored normalised; what is counted is not, and SB3 gives it in its own type.
        if isinstance(space, spaces.Box) or array.dtype == space.dtype:
            return array
        return _read_only(array.astype(space.dtype))

    def _complete(self, name: str, stored: Tensor, compute: Callable[..., Tensor]) -> None:
        """Ask the policy for the steps that were written since it was asked last."""
        begin, end = self._known[name], self.pos
        if begin < end:
            begin = begin if self.memory is None else 0
            steps = slice(begin, end)
            computed = compute(
                self.seen(steps),
                self._actions[steps].flatten(0, 1),
                self._flat_masks(steps),
            )
            stored[steps] = computed.view_as(stored[steps])
            self._known[name] = end


def _array(stored: Tensor) -> np.ndarray:
    """Return a tensor's own memory as an array, or a copy that nobody can take for it."""
    if stored.device.type == "cpu":
        return stored.numpy()
    return _read_only(stored.cpu().numpy())


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _put(stored: Tensor, value: Any) -> None:
    stored.copy_(torch.as_tensor(value).reshape(stored.shape))


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
