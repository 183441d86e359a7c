"""An algorithm whose environments may have spaces that SB3's networks and buffers do not know."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from acktr.envs.adapter import Adapter
from acktr.envs.lookup import find_spec
from acktr.envs.spaces import adapt, check_spaces
from acktr.errors import ConfigurationError


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

    def __init__(
        self, policy: str | type[ActorCriticPolicy], env: GymEnv | str | None, **settings: Any
    ) -> None:
        if env is not None:
            env = _make(env, settings.get("verbose", 0))
            # A class may get its arguments later, where a model is loaded.
            name = policy if isinstance(policy, str) else None
            _check(env, name, settings.get("policy_kwargs"))
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

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions, which lie in the environment's action space.

        :param observation: ``(*obs)`` or ``(n_envs, *obs)``, or a dict of such arrays
        :param state: of a recurrent policy; handed through
        :param episode_start: whether an episode begins, for a recurrent policy; handed through
        :param deterministic: the most probable actions and not drawn ones
        :return: ``(*action)`` or ``(n_envs, *action)``, and the next state
        """
        plain = self.adapter.observations(observation)
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
