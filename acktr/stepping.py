"""The steps of a rollout: the policy's actions out, the environments' answers in."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from acktr.acting import Actor
from acktr.adapted import AdaptedAlgorithm
from acktr.errors import DivergenceError


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
    :raises DivergenceError: an observation, reward or output of the policy that is not finite
    """
    decide = _Decide(model)
    obs: Any = _copied(model._last_obs)
    for _ in range(n_steps):
        decision = decide(obs, decide.noise(env.num_envs))
        result = _own(env.step(decision.clipped_actions))
        check_finite(model, env, result)
        yield decision, result
        obs = result.new_obs


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
        """Decide for the environments, with the noise of their actions."""
        obs_tensor = as_tensors(self._model, obs)
        action_tensor, values = self._actor(obs_tensor, noise)
        actions = self._adapter.reshape(action_tensor.cpu().numpy())
        return Decision(obs_tensor, action_tensor, actions, self._adapter.actions(actions), values)


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
                infos[index] = {**infos[index], "terminal_observation": _copied(last)}
    return Result(_copied(obs), np.array(rewards), dones, infos)


def _copied(obs: Any) -> Any:
    """Return observations, an array or a dict or tuple of arrays, in memory of their own."""
    if isinstance(obs, dict):
        return {key: np.array(value) for key, value in obs.items()}
    return tuple(map(np.array, obs)) if isinstance(obs, tuple) else np.array(obs)


def check_finite(model: AdaptedAlgorithm, env: VecEnv, result: Result) -> None:
    """Stop before a value that is not finite enters the rollout.

    :param model: for its step counter
    :param env: the environments
    :param result: what they returned
    :raises DivergenceError: names what is not finite, the step and the environment
    """
    for index, end in last_observations(result.dones, result.infos).items():
        if not all(map(_is_finite, _arrays(end))):
            raise _divergence("last observation", index, model)
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
            raise _divergence(what, int(culprits[0]), model)
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
