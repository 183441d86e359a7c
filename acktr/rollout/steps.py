"""The steps of a rollout: the policy's actions out, the environments' answers in.

In turn, or with two halves of the environments in flight: while one steps, the policy decides for the
other. What is learned from is the same.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from acktr.envs.halves import copied, join, join_results, take
from acktr.envs.lanes import Lane, Lanes, halved_below
from acktr.errors import DivergenceError
from acktr.learner.adapted import AdaptedAlgorithm
from acktr.rollout.actions import Actor


class Decision(NamedTuple):
    """What the policy answers to observations.

    :param obs_tensor: the observations on the policy's device, ``(n_envs, *obs)`` or a dict
    :param action_tensor: as the policy drew them
    :param actions: the same on the host, ``(n_envs, *action)``, neither clipped nor shifted
    :param clipped_actions: as the environments get them
    :param values: the critic's, ``(n_envs, 1)``; ``None`` if it was not asked
    """

    obs_tensor: Any
    action_tensor: Tensor
    actions: np.ndarray
    clipped_actions: np.ndarray
    values: Tensor | None


class Result(NamedTuple):
    """What the environments answer to actions.

    :param new_obs: ``(n_envs, *obs)``, or a dict of such arrays
    :param rewards: ``(n_envs,)``
    :param dones: whether an episode ended, ``(n_envs,)``
    :param infos: one for each environment
    """

    new_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


Step = tuple[Decision, Result]


def steps_of(model: AdaptedAlgorithm, env: VecEnv, n_steps: int) -> Generator[Step]:
    """Step from the model's last observations on; close what is returned, even after its end.

    :param model: its policy acts
    :param env: the environments
    :param n_steps: steps of each environment
    :raises ConfigurationError: if the environments are halves below a wrapper that cannot be divided
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    """
    return (_overlapped if halved_below(env) else _in_turn)(model, env, n_steps)


def last_observations(dones: np.ndarray, infos: list[dict[str, Any]]) -> dict[int, Any]:
    """Return the last observations of the episodes that ended, by environment."""
    return {
        index: infos[index]["terminal_observation"]
        for index in dones.nonzero()[0].tolist()
        if infos[index].get("terminal_observation") is not None
    }


def as_tensors(model: AdaptedAlgorithm, obs: Any) -> Any:
    """Bring observations of the environments to where the policy reads them, and into its plain space.

    :param model: whose policy it is
    :param obs: ``(n_envs, *obs)``, or a dict of such arrays
    """
    return obs_as_tensor(model.adapter.observations(obs), model.device)


class _Decide:
    """Turns observations into actions for the environments, for one rollout of a model."""

    def __init__(self, model: AdaptedAlgorithm) -> None:
        self._actor = Actor(model.policy, model.outputs.acts_by_forward)  # type: ignore[attr-defined]
        self.noise = self._actor.noise
        self._model = model
        self._adapter = model.adapter

    def __call__(self, obs: Any, noise: Tensor | None) -> Decision:
        """Decide for some of the environments, with their rows of the noise."""
        obs_tensor = as_tensors(self._model, obs)
        action_tensor, values = self._actor(obs_tensor, noise)
        actions = self._adapter.reshape(action_tensor.cpu().numpy())
        return Decision(obs_tensor, action_tensor, actions, self._adapter.actions(actions), values)


def _in_turn(model: AdaptedAlgorithm, env: VecEnv, n_steps: int) -> Generator[Step]:
    decide = _Decide(model)
    obs: Any = copied(model._last_obs)
    for _ in range(n_steps):
        decision = decide(obs, decide.noise(env.num_envs))
        result = _own(env.step(decision.clipped_actions))
        check_finite(model, env, result)
        yield decision, result
        obs = result.new_obs


def _overlapped(model: AdaptedAlgorithm, env: VecEnv, n_steps: int) -> Generator[Step]:
    """Each half is sent into its next step before the other has ended this one."""
    stack = Lanes(env)
    decide = _Decide(model)

    def send(lane: Lane, obs: Any, noise: Tensor | None) -> Decision:
        decision = decide(obs, None if noise is None else noise[lane.part])
        lane.env.step_async(decision.clipped_actions)
        return decision

    threads = torch.get_num_threads()
    # The other half of the cores steps. With all of them the policy's threads, which wait by spinning,
    # stand in the way of the environments': Breakout took 1.5 times as long.
    torch.set_num_threads(max(threads // 2, 1))
    try:
        # Noise is drawn for all at once: the generator moves as it does without overlap.
        noise = decide.noise(env.num_envs)
        obs: Any = copied(model._last_obs)
        sent = [send(lane, take(obs, lane.part), noise) for lane in stack.lanes]
        for left in reversed(range(n_steps)):
            decided, sent, results = sent, [], []
            noise = decide.noise(env.num_envs) if left else None
            for lane in stack.lanes:
                result = _wait(model, lane)
                results.append(result)
                if left:
                    sent.append(send(lane, result.new_obs, noise))
            stack.merge()
            yield _join_decisions(decided), Result(*join_results(results))
    finally:
        torch.set_num_threads(threads)
        _drain(model, stack)


def _own(result: VecEnvStepReturn) -> Result:
    """Keep what environments returned: they may write their next answer into the same memory."""
    obs, rewards, dones, infos = result
    dones = np.array(dones)
    ended = dones.nonzero()[0].tolist()
    if ended:
        infos = list(infos)
        for index in ended:
            last = infos[index].get("terminal_observation")
            if last is not None:
                infos[index] = {**infos[index], "terminal_observation": copied(last)}
    return Result(copied(obs), np.array(rewards), dones, infos)


def _wait(model: AdaptedAlgorithm, lane: Lane) -> Result:
    result = _own(lane.env.step_wait())
    check_finite(model, lane.env, result, lane.part.start)
    return result


def _drain(model: AdaptedAlgorithm, stack: Lanes) -> None:
    """Wait for what a stop or an error has left in flight, so that the environments are free."""
    results = []
    for lane in stack.lanes:
        if lane.half.in_flight:
            # What stopped the rollout is what its caller hears of.
            with suppress(Exception):
                results.append(_wait(model, lane))
    if len(results) == len(stack.lanes):
        # Nobody saw this step. Who goes on learning begins after it, where the environments are.
        stack.merge()
        last = Result(*join_results(results))
        model._last_obs, model._last_episode_starts = last.new_obs, last.dones


def _join_decisions(decisions: list[Decision]) -> Decision:
    obs, action_tensors, actions, clipped_actions, values = zip(*decisions, strict=True)
    joined: Any
    if isinstance(obs[0], dict):
        joined = {key: torch.cat([part[key] for part in obs]) for key in obs[0]}
    else:
        joined = torch.cat(obs)
    known = None if values[0] is None else torch.cat(values)
    return Decision(joined, torch.cat(action_tensors), join(actions), join(clipped_actions), known)


def check_finite(model: AdaptedAlgorithm, env: VecEnv, result: Result, first: int = 0) -> None:
    """Stop before a value that is not finite enters the rollout.

    :param model: for its step counter
    :param env: the environments
    :param result: what they returned
    :param first: the number of the first of them
    :raises DivergenceError: names what is not finite, the step and the environment
    """
    for index, end in last_observations(result.dones, result.infos).items():
        if not all(map(_is_finite, _arrays(end))):
            raise _divergence("last observation", first + index, model)
    arrays, rewards = _arrays(result.new_obs), result.rewards
    if all(map(_is_finite, (*arrays, rewards))):
        return
    normalize = unwrap_vec_normalize(env)
    if isinstance(normalize, VecNormalize):  # one bad observation has spoiled the mean of all
        arrays = _arrays(normalize.get_original_obs())
        rewards = normalize.get_original_reward()
    for what, parts in (("reward", [rewards]), ("observation", arrays)):
        bad = [~np.isfinite(x).reshape(env.num_envs, -1).all(1) for x in parts]
        culprits = np.flatnonzero(np.any(bad, axis=0))
        if len(culprits):
            raise _divergence(what, first + int(culprits[0]), model)
    raise DivergenceError(
        f"Normalisation gave a value that is not finite at step {model.num_timesteps}; no parameter "
        "was changed: bound what the environment returns."
    )


def _arrays(obs: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (obs.values() if isinstance(obs, dict) else [obs])]


def _is_finite(array: np.ndarray) -> bool:
    # Integers, such as images, always are.
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _divergence(what: str, index: int, model: AdaptedAlgorithm) -> DivergenceError:
    return DivergenceError(
        f"A {what} that is not finite came from environment {index} at step {model.num_timesteps}; no "
        "parameter was changed: look at what the environment returns there."
    )
