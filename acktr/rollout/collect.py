"""The loop that fills a rollout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from acktr.distributed import Flags
from acktr.networks.outputs import Outputs
from acktr.networks.recurrence import State
from acktr.networks.recurrent import Memory, following
from acktr.rollout.actions import ActionSampler
from acktr.rollout.later import Later
from acktr.rollout.memory import MemorySampler, memory_of_stopped, recalled_values
from acktr.rollout.steps import Translator, last_observations, steps_of
from acktr.rollout.storage import RolloutStorage

# Called at each step with what SB3's loop knows by name; False asks to stop.
OnStep = Callable[[dict[str, Any]], bool]


class End(NamedTuple):
    """How a rollout ended.

    :param complete: whether it did, and nobody asked to stop
    :param endings: whether episodes were seen cut by time, and ended before
    :param names: what SB3's loop knows by name at the end
    :param memory: what the policy remembers now; ``None`` if it has no memory
    """

    complete: bool
    endings: Flags
    names: dict[str, Any]
    memory: Memory | None


def collect_rollout(
    env: VecEnv,
    rollout_buffer: RolloutStorage,
    outputs: Outputs,
    sampler: ActionSampler,
    translator: Translator,
    obs: Any,
    episode_starts: np.ndarray,
    endings: Flags,
    num_timesteps: int,
    on_step: OnStep,
) -> End:
    """Fill the storage with one rollout, as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Local names are SB3's, and sb3-contrib's ``action_masks``, because callbacks read them. Unless actor
    and critic share a trunk the critic is not asked step by step: values of the whole rollout come from
    one batched forward pass, and so do those of all truncated ends. ``log_probs`` and such ``values`` of
    a step are computed when they are read (:class:`acktr.rollout.later.Later`).

    :param env: the environments
    :param rollout_buffer: filled, after its :meth:`~acktr.rollout.storage.RolloutStorage.begin`
    :param outputs: of the policy that acts
    :param sampler: draws its actions
    :param translator: between it and the environments
    :param obs: the environments' last observations
    :param episode_starts: whether these begin an episode, ``(n_envs,)``
    :param endings: that were seen before
    :param num_timesteps: environment steps of all ranks so far, for messages
    :param on_step: called at each step
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    :raises WorkerError: an environment's mask is none, or leaves no action
    """
    n_rollout_steps, asked = rollout_buffer.buffer_size, rollout_buffer.asked
    truncated: list[tuple[int, int, object]] = []
    known: Tensor | None = None
    states: State | None = None  # what values are made of, where that is remembered
    value_of: Callable[..., Tensor] = asked.values
    cut, ended = endings
    steps = steps_of(sampler, translator, env, obs, n_rollout_steps, num_timesteps)
    for n_steps, (decision, result) in enumerate(steps):
        obs_tensor, action_tensor, actions, clipped_actions, known, action_masks, masks = decision
        seen = sampler.seen(obs_tensor)
        if sampler.memory is not None:
            value_of = partial(recalled_values, asked, rollout_buffer, n_steps)
        values: Any = asked.later(value_of, seen) if known is None else known
        log_probs: Any = asked.later(asked.log_probs, seen, action_tensor, masks)
        new_obs, rewards, dones, infos = result
        if not on_step(locals()):
            memory = None
            if isinstance(sampler, MemorySampler):
                rollout_buffer.write(n_steps, obs_tensor, action_tensor, rewards, episode_starts, masks)
                memory = memory_of_stopped(sampler, outputs, rollout_buffer, dones)
            return End(False, (cut, ended), {}, memory)
        for info in compress(infos, dones):
            by_time = bool(info.get("TimeLimit.truncated"))
            cut, ended = cut or by_time, ended or not by_time
        for idx, end in last_observations(dones, infos).items():
            if infos[idx].get("TimeLimit.truncated"):
                truncated.append((n_steps, idx, end))
        rollout_buffer.write(n_steps, obs_tensor, action_tensor, rewards, episode_starts, masks)
        if known is not None:
            rollout_buffer.write_values(known, n_steps)
        episode_starts = dones

    with torch.no_grad():
        if known is None:
            of_rollout, states = outputs.values_and_memory(rollout_buffer.batch().observations)
            rollout_buffer.write_values(of_rollout)
        last = following(translator.tensors(new_obs), states, -1, slice(None))
        values = outputs.values(last).unsqueeze(1)
        if truncated:
            # A cut by time is no end: what would have come counts as gamma V (SB3 issue #633).
            at, indices, observations = map(list, zip(*truncated, strict=True))
            ends = following(translator.stacked(observations), states, at, indices)
            end_values = outputs.values(ends)
            rollout_buffer.rewards[at, indices] += rollout_buffer.gamma * end_values.cpu().numpy()
    rollout_buffer.compute_returns_and_advantage(values, dones)
    if isinstance(env.action_space, spaces.Discrete):
        actions = actions.reshape(-1, 1)  # as SB3 leaves them
    n_steps = n_rollout_steps
    # As it was, but none that would be computed because the callback keeps it until the next rollout.
    log_probs = Later(asked.log_probs, seen, action_tensor, masks)
    memory = sampler.remembered(states) if isinstance(sampler, MemorySampler) else None
    return End(True, (cut, ended), locals(), memory)
