"""An algorithm whose environments may have spaces that SB3's networks and buffers do not know."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.envs.adapter import Adapter
from acktr.envs.lookup import find_spec
from acktr.envs.masks import ActionMasks, check_given, has_masks
from acktr.envs.spaces import adapt, check_spaces
from acktr.errors import ConfigurationError
from acktr.networks.masks import masking


class AdaptedAlgorithm(OnPolicyAlgorithm):
    """An algorithm that checks the spaces of its environments before it builds anything.

    It has the environment's own spaces, and gives actions of these; its policy and its storage have the
    plain ones of its ``adapter``.

    :param policy: a name or a class
    :param env: an environment, a vector environment or a registered id; ``None`` for none yet
    :param settings: of ``OnPolicyAlgorithm``
    :raises ConfigurationError: for spaces that it cannot work with
    """

    adapter: Adapter
    use_masking: bool

    def __init__(
        self, policy: str | type[ActorCriticPolicy], env: GymEnv | str | None, **settings: Any
    ) -> None:
        if env is not None:
            env = _make(env, settings.get("verbose", 0))
            # A class may get its arguments later, where a model is loaded.
            name = policy if isinstance(policy, str) else None
            _check(env, name, settings.get("policy_kwargs"))
        self._masks: tuple[VecEnv, ActionMasks | None] | None = None
        super().__init__(policy, env, **settings)  # type: ignore[arg-type]  # None: as SB3's load does

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # Also what set_env and load are given. SB3's DummyVecEnv fails on spaces of no shape.
        _check(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        own = self.observation_space, self.action_space
        check_spaces("The environment", *own, self.policy_class, self.policy_kwargs)
        self.adapter = adapt(*own, self.policy_class, self.policy_kwargs)
        # What SB3 builds here takes the spaces from these attributes.
        self.observation_space = self.adapter.observation_space
        self.action_space = self.adapter.action_space
        try:
            super()._setup_model()
        finally:
            self.observation_space, self.action_space = own

    def masks_of(self, env: VecEnv | None) -> ActionMasks | None:
        """Return what asks environments for masks; ``None`` where they have none, or none are wanted.

        :param env: with the model's spaces
        :raises ConfigurationError: they have masks, and actions that no mask is for
        """
        if env is None or not self.use_masking:
            return None
        if self._masks is None or self._masks[0] is not env:
            self._masks = env, ActionMasks(env, self.action_space) if has_masks(env) else None
        return self._masks[1]

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed everything random; each rank draws other actions in other episodes."""
        n_envs = 1 if self.env is None else self.env.num_envs
        super().set_random_seed(None if seed is None else distributed.own_seed(int(seed), n_envs))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions, which lie in the environment's action space.

        :param observation: ``(*obs)`` or ``(n_envs, *obs)``, or a dict of such arrays
        :param state: of a recurrent policy; handed through
        :param episode_start: whether an episode begins, for a recurrent policy; handed through
        :param deterministic: the most probable actions and not drawn ones
        :param action_masks: which actions are allowed (:mod:`acktr.envs.masks`), ``(width,)`` or
            ``(n_envs, width)``; ``None`` for all: no environment is asked here
        :return: ``(*action)`` or ``(n_envs, *action)``, and the next state
        :raises ConfigurationError: masks of another form, or that leave no action
        """
        plain, allowed = self.adapter.observations(observation), None
        if action_masks is not None:
            masks = check_given(action_masks, self.action_space)
            allowed = torch.as_tensor(masks, device=self.policy.device)
        with masking(self.policy, allowed):
            actions, state = super().predict(plain, state, episode_start, deterministic)
        return self.adapter.predicted(actions), state


def _make(env: GymEnv | str, verbose: int) -> GymEnv:
    try:
        return maybe_make_env(env, verbose)
    except gym.error.UnregisteredEnv:
        assert isinstance(env, str)
        find_spec(env)  # tells why, or brings in what registers it
        return maybe_make_env(env, verbose)


def _check(env: Any, policy: str | None = None, policy_kwargs: Any = None) -> None:
    if isinstance(env, gym.vector.VectorEnv):
        raise ConfigurationError(
            "ACKTR takes Stable-Baselines3's vector environments, and was given gymnasium's "
            f"{type(env).__name__}: use acktr.envs.make_vec_env(id, n_envs)."
        )
    if hasattr(env, "observation_space") and hasattr(env, "action_space"):
        check_spaces(_name(env), env.observation_space, env.action_space, policy, policy_kwargs)


def _name(env: Any) -> str:
    try:
        return str(env.spec.id)
    except Exception:  # as an environment's specification is built when it is asked for
        return "The environment"
