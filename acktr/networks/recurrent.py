"""Policies that remember: an LSTM or a GRU between features and hidden layers.

They are asked what other policies are asked, of *sequences* in the place of observations: whole
rollouts, with resets inside, from what was remembered when they began. Observations alone are episodes
of one step. Names and arguments are those of sb3-contrib's recurrent policies, and so are those of
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from acktr.errors import ConfigurationError
from acktr.networks.cells import GRU, LSTM
from acktr.networks.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from acktr.networks.recurrence import Recurrent, State

_SIZES = ("input_size", "hidden_size", "num_layers")  # of a cell, which have arguments of their own


class Memory(NamedTuple):
    """What N environments' past has left, ``(n_layers, N, H)`` for each state.

    :param actor: the actor's, of a shared memory that of both
    :param critic: the critic's own; empty if it has none
    """

    actor: State
    critic: State = ()


class Sequences(NamedTuple):
    """N sequences of T observations, in the place of T N observations.

    :param observations: ``(T N, *obs)``, steps first, or a dict of such tensors
    :param starts: whether an episode begins, boolean, ``(T, N)``, on the host
    :param memory: of before the first step
    """

    observations: Any
    starts: Tensor
    memory: Memory


def plain(observations: Any) -> Any:
    """Return the observations of sequences, and others as they are."""
    return observations.observations if isinstance(observations, Sequences) else observations


def following(observations: Any, states: State | None, steps: Any, indices: Any) -> Any:
    """Give observations the memory that came before them, for their values.

    :param observations: ``(M, *obs)``, or a dict of such tensors
    :param states: the critic's after each step, ``(T, n_layers, N, H)`` each; ``None`` without memory
    :param steps: after which of the steps each observation came: M numbers, or one for all
    :param indices: from which of the environments, M numbers
    """
    if states is None:
        return observations
    own = tuple(s.transpose(1, 2)[steps, indices].transpose(0, 1).contiguous() for s in states)
    starts = torch.zeros(1, _count(observations), dtype=torch.bool)
    return Sequences(observations, starts, Memory(own, own))


def _count(observations: Any) -> int:
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return len(next(iter(parts)))


class RecurrentPolicy(ActorCriticPolicy):
    """Actor and critic with a memory each, or with one for both.

    :param args: of SB3's ``ActorCriticPolicy``
    :param lstm_hidden_size: units of each recurrent layer
    :param n_lstm_layers: recurrent layers, each above the one before
    :param shared_lstm: one memory for actor and critic, which both of them train; it needs
        ``enable_critic_lstm=False``
    :param enable_critic_lstm: a memory of the critic's own; without any the critic has a linear layer
        in its place
    :param lstm_kwargs: further arguments of the layers: ``dropout``, ``bias``
    :param kwargs: of SB3's ``ActorCriticPolicy``
    :raises ConfigurationError: settings that do not go together
    """

    cell: ClassVar[Callable[..., Recurrent]] = LSTM

    def __init__(
        self,
        *args: Any,
        lstm_hidden_size: int = 64,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, size in (("lstm_hidden_size", lstm_hidden_size), ("n_lstm_layers", n_lstm_layers)):
            if not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
                raise ConfigurationError(f"{name} must be a whole number, at least 1, got {size!r:.80}.")
        for name, flag in (("shared_lstm", shared_lstm), ("enable_critic_lstm", enable_critic_lstm)):
            if not isinstance(flag, bool):
                raise ConfigurationError(f"{name} must be True or False, got {flag!r:.80}.")
        if not (lstm_kwargs is None or isinstance(lstm_kwargs, Mapping)):
            raise ConfigurationError(
                f"lstm_kwargs must be a mapping such as {{'dropout': 0.1}}, got {lstm_kwargs!r:.80}."
            )
        given = dict(lstm_kwargs or {})
        if not all(isinstance(key, str) and key not in _SIZES for key in given):
            raise ConfigurationError(
                f"lstm_kwargs may have bias and dropout, not {list(given)!r:.80}: sizes are "
                "lstm_hidden_size and n_lstm_layers."
            )
        if shared_lstm and enable_critic_lstm:
            raise ConfigurationError(
                "shared_lstm=True gives actor and critic one memory, and enable_critic_lstm=True, the "
                "default, the critic one of its own: set one of them to False."
            )
        self.lstm_output_dim = lstm_hidden_size
        super().__init__(*args, **kwargs)
        if shared_lstm and not self.share_features_extractor:
            raise ConfigurationError(
                "shared_lstm=True needs a shared features extractor: leave share_features_extractor "
                "at True."
            )
        self.n_lstm_layers, self.lstm_kwargs = n_lstm_layers, given
        self.shared_lstm, self.enable_critic_lstm = shared_lstm, enable_critic_lstm

        def build() -> Recurrent:
            make = type(self).cell
            # A number of numpy's where a part of a Dict is one of choices, which torch refuses.
            return make(int(self.features_dim), lstm_hidden_size, n_lstm_layers, **self.lstm_kwargs)

        self.lstm_actor = build()
        self.lstm_critic = build() if enable_critic_lstm else None
        apart = not (shared_lstm or enable_critic_lstm)
        self.critic = nn.Linear(self.features_dim, lstm_hidden_size) if apart else None
        lr_schedule: Schedule = kwargs["lr_schedule"] if "lr_schedule" in kwargs else args[2]
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )  # type: ignore[call-arg]  # as SB3's

    def _build_mlp_extractor(self) -> None:
        features, self.features_dim = self.features_dim, self.lstm_output_dim
        super()._build_mlp_extractor()
        self.features_dim = features

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = ("n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")
        return {
            **super()._get_constructor_parameters(),
            "share_features_extractor": self.share_features_extractor,
            "lstm_hidden_size": self.lstm_output_dim,
            **{name: getattr(self, name) for name in own},
        }

    # ------------------------------------------------------------------ memory

    def empty_memory(self, n_envs: int) -> Memory:
        """Return the memory of environments that have no past."""
        of_critic = () if self.lstm_critic is None else self.lstm_critic.zeros(n_envs)
        return Memory(self.lstm_actor.zeros(n_envs), of_critic)

    def sequences(self, obs: Any) -> Sequences:
        """Return sequences as they are, and observations as episodes of one step."""
        if isinstance(obs, Sequences):
            return obs
        count = _count(obs)
        return Sequences(obs, torch.ones(1, count, dtype=torch.bool), self.empty_memory(count))

    def latent_actor(self, obs: Any) -> tuple[Tensor, State]:
        """Return what the distribution is made of, ``(T N, width)``, and the actor's states.

        :param obs: sequences, or observations
        :return: also the states after each step, ``(T, n_layers, N, H)`` each
        """
        told = self.sequences(obs)
        features = self._features(told.observations, self.pi_features_extractor)
        latent, states = self.lstm_actor(features, told.memory.actor, told.starts)
        return self.mlp_extractor.forward_actor(latent), states

    def values_and_memory(self, obs: Any) -> tuple[Tensor, State]:
        """Return values ``(T N, 1)``, and the states that they are made of after each step.

        :param obs: sequences, or observations
        :return: of a critic without memory no states
        """
        told = self.sequences(obs)
        features = self._features(told.observations, self.vf_features_extractor)
        latent, states = self._critic_remembers(features, told)
        return self._values(latent), states

    def _critic_remembers(self, features: Tensor, told: Sequences) -> tuple[Tensor, State]:
        if self.critic is not None:
            return self.critic(features), ()
        if self.lstm_critic is not None:
            return self.lstm_critic(features, told.memory.critic, told.starts)
        return self.lstm_actor(features, told.memory.actor, told.starts)

    def _values(self, latent: Tensor) -> Tensor:
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values

    def _features(self, obs: Any, extractor: Any) -> Tensor:
        if isinstance(self, CnnPolicy):
            return self.features(obs, extractor)
        return BasePolicy.extract_features(self, obs, extractor)

    # ------------------------------------------------------------------ what policies are asked

    def get_distribution(self, obs: Any) -> Distribution:
        """Return the distribution of actions."""
        return self._get_action_dist_from_latent(self.latent_actor(obs)[0])

    def predict_values(self, obs: Any) -> Tensor:
        """Return values ``(T N, 1)``."""
        return self.values_and_memory(obs)[0]

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log-probabilities of actions and entropies, of one pass."""
        values, distribution = self._both(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, their values and log-probabilities."""
        values, distribution = self._both(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        shape = self.action_space.shape or ()
        return actions.reshape((-1, *shape)), values, distribution.log_prob(actions)

    def _both(self, obs: Any) -> tuple[Tensor, Distribution]:
        told = self.sequences(obs)
        of_actor = of_critic = self._features(told.observations, self.pi_features_extractor)
        if not self.share_features_extractor:
            of_critic = self._features(told.observations, self.vf_features_extractor)
        latent, _ = self.lstm_actor(of_actor, told.memory.actor, told.starts)
        if self.shared_lstm:
            values = self._values(latent)
        else:
            values = self._values(self._critic_remembers(of_critic, told)[0])
        return values, self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.get_distribution(observation).get_actions(deterministic=deterministic)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Choose actions, and say what is to be remembered.

        :param observation: ``(*obs)`` or ``(n_envs, *obs)``, or a dict of such arrays
        :param state: what this returned the last time; ``None`` at the beginning
        :param episode_start: whether an episode begins, ``(n_envs,)``; ``None`` for no
        :param deterministic: the most probable actions and not drawn ones
        :return: actions and the actor's states, ``(n_layers, n_envs, H)`` each
        :raises ConfigurationError: a state of another policy, or a state or flags of another number of
            environments
        """
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        count = _count(obs)
        memory = self.empty_memory(count)
        if state is not None:
            memory = memory._replace(actor=_given(state, memory.actor))
        starts = np.zeros(count, bool) if episode_start is None else np.asarray(episode_start, bool)
        if starts.size != count:
            raise ConfigurationError(
                f"episode_start must have a flag for each of {count} environments, got {starts.size}."
            )
        with torch.no_grad():
            told = Sequences(obs, torch.as_tensor(starts.reshape(1, count)), memory)
            latent, states = self.latent_actor(told)
            drawn = self._get_action_dist_from_latent(latent).get_actions(deterministic=deterministic)
        actions = drawn.cpu().numpy().reshape((-1, *(self.action_space.shape or ())))
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions if vectorized else actions.squeeze(0), tuple(s[0].cpu().numpy() for s in states)


def _given(state: Any, memory: State) -> State:
    """Return a state that a caller has given, if it is one.

    :param memory: of the right form
    :raises ConfigurationError: it is not
    """
    try:
        found = tuple(torch.as_tensor(np.asarray(s, np.float64)).to(memory[0]) for s in state)
        shapes: Any = [tuple(s.shape) for s in found]
    except (TypeError, ValueError):
        found, shapes = (), type(state).__name__
    if shapes != [tuple(s.shape) for s in memory]:
        _, count, _ = memory[0].shape
        raise ConfigurationError(
            f"state must be {len(memory)} arrays of the shape {tuple(memory[0].shape)} for {count} "
            f"environments, not {shapes}: give what predict returned for them."
        )
    return found


class MlpLstmPolicy(RecurrentPolicy):
    """An LSTM over plain observations."""


class CnnLstmPolicy(RecurrentPolicy, CnnPolicy):
    """An LSTM over the features of images, which actor and critic share."""


class MultiInputLstmPolicy(RecurrentPolicy, MultiInputPolicy):
    """An LSTM over the parts of a ``Dict``."""


class MlpGruPolicy(RecurrentPolicy):
    """A GRU over plain observations."""

    cell = GRU


class CnnGruPolicy(RecurrentPolicy, CnnPolicy):
    """A GRU over the features of images, which actor and critic share."""

    cell = GRU


class MultiInputGruPolicy(RecurrentPolicy, MultiInputPolicy):
    """A GRU over the parts of a ``Dict``."""

    cell = GRU


POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": MlpPolicy,
    "CnnPolicy": CnnPolicy,
    "MultiInputPolicy": MultiInputPolicy,
    "MlpLstmPolicy": MlpLstmPolicy,
    "CnnLstmPolicy": CnnLstmPolicy,
    "MultiInputLstmPolicy": MultiInputLstmPolicy,
    "MlpGruPolicy": MlpGruPolicy,
    "CnnGruPolicy": CnnGruPolicy,
    "MultiInputGruPolicy": MultiInputGruPolicy,
}
