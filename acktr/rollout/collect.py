"""The loop that fills a rollout."""

from __future__ import annotations

from contextlib import closing
from itertools import compress
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from acktr import distributed
from acktr.errors import ConfigurationError
from acktr.learner.adapted import AdaptedAlgorithm
from acktr.rollout.later import Later
from acktr.rollout.steps import as_tensors, last_observations, steps_of
from acktr.rollout.storage import Observations, RolloutBatch, RolloutStorage

__all__ = ["RolloutBatch", "RolloutStorage", "collect_rollout"]


def collect_rollout(
    model: AdaptedAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutStorage,
    n_rollout_steps: int,
) -> bool:
    """Fill the storage with one rollout, as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Local names are SB3's, because callbacks read them. Unless actor and critic share a trunk the critic
    is not asked step by step: values of the whole rollout come from one batched forward pass, and so do
    those of all truncated ends. ``log_probs`` and such ``values`` of a step are computed when they are
    read (:class:`acktr.rollout.later.Later`).

    :param model: its policy acts, its counters and last observations are moved on
    :param env: the environments
    :param callback: called at each step
    :param rollout_buffer: filled
    :param n_rollout_steps: steps of each environment
    :return: False if the callback asked to stop
    :raises ConfigurationError: the storage is for another number of steps
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    """
    if n_rollout_steps != rollout_buffer.buffer_size:
        raise ConfigurationError(
            f"n_steps is {n_rollout_steps} now, and the model was built for rollouts of "
            f"{rollout_buffer.buffer_size}: give n_steps to ACKTR or to ACKTR.load."
        )
    outputs = model.outputs  # type: ignore[attr-defined]  # ACKTR's
    model.policy.set_training_mode(False)
    rollout_buffer.reset()
    asked = rollout_buffer.ask(outputs)
    callback.on_rollout_start()
    truncated: list[tuple[int, int, object]] = []
    new_obs: Any = model._last_obs
    known: Tensor | None = None
    n_steps = 0
    with closing(steps_of(model, env, n_rollout_steps)) as steps:
        for decision, result in steps:
            obs_tensor, action_tensor, actions, clipped_actions, known = decision
            values: Any = asked.later(asked.values, obs_tensor) if known is None else known
            log_probs: Any = asked.later(asked.log_probs, obs_tensor, action_tensor)
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
            rollout_buffer.write(n_steps, obs_tensor, action_tensor, rewards, model._last_episode_starts)
            if known is not None:
                rollout_buffer.write_values(known, n_steps)
            model._last_obs = new_obs
            model._last_episode_starts = dones
            n_steps += 1

    with torch.no_grad():
        if known is None:
            rollout_buffer.write_values(outputs.values(rollout_buffer.batch().observations))
        values = outputs.values(as_tensors(model, new_obs)).unsqueeze(1)
        if truncated:
            # A cut by time is no end: what would have come counts as gamma V (SB3 issue #633).
            at, indices, observations = map(list, zip(*truncated, strict=True))
            end_values = outputs.values(_stack(observations, model))
            rollout_buffer.rewards[at, indices] += rollout_buffer.gamma * end_values.cpu().numpy()
    rollout_buffer.compute_returns_and_advantage(values, dones)
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.reshape(-1, 1)  # as SB3 leaves them
    # As it was, but none that would be computed because the callback keeps it until the next rollout.
    log_probs = Later(asked.log_probs, obs_tensor, action_tensor)
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
