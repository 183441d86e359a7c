"""An algorithm whose policy may remember: what it takes from one rollout to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from acktr.errors import ConfigurationError
from acktr.kfac.options import Curvature, as_group
from acktr.kfac.recurrent import CHAINS, is_recurrent
from acktr.learner.settings import Critic, Natural, NaturalCritic
from acktr.networks.outputs import Outputs
from acktr.networks.recurrent import Memory, RecurrentPolicy
from acktr.rollout.actions import ActionSampler
from acktr.rollout.memory import MemorySampler
from acktr.rollout.noise import ColoredNoise


class RememberingAlgorithm(OnPolicyAlgorithm):
    """An algorithm that begins each rollout with what its policy remembers of the last one.

    A policy without memory is one that remembers nothing: only what chooses actions is another.
    """

    outputs: Outputs
    noise_color: float
    _last_lstm_states: Any  # a pair, as Memory; None where nothing is remembered

    def sampler(self, n_steps: int, starts: np.ndarray) -> ActionSampler:
        """Return what draws the actions of a rollout.

        :param n_steps: of the rollout
        :param starts: whether episodes begin with the first of them, ``(n_envs,)``
        """
        policy, color = self.policy, ColoredNoise(self.noise_color, n_steps)
        if not isinstance(policy, RecurrentPolicy):
            return ActionSampler(policy, self.outputs.acts_by_forward, color)
        memory = policy.empty_memory(self.n_envs)
        if fits(self._last_lstm_states, memory):
            actor, critic = self._last_lstm_states
            memory = Memory(*(tuple(s.to(self.device) for s in states) for states in (actor, critic)))
        return MemorySampler(policy, color, memory, starts)

    def keep(self, memory: Memory | None) -> None:
        """Remember for the next rollout."""
        self._last_lstm_states = None if memory is None else tuple(memory)


def fits(state: Any, memory: Memory) -> bool:
    """Whether something is the memory of as many environments, by the same layers.

    :param state: what may come from a file
    :param memory: of the right form
    """
    if not (isinstance(state, tuple) and len(state) == len(memory)):
        return False
    return all(
        isinstance(found, tuple)
        and len(found) == len(wanted)
        and all(
            isinstance(x, Tensor) and x.shape == y.shape and x.dtype == y.dtype and x.isfinite().all()
            for x, y in zip(found, wanted, strict=True)
        )
        for found, wanted in zip(state, memory, strict=True)
    )


def with_damping(policy: ActorCriticPolicy, natural: Natural, critic: Critic) -> tuple[Natural, Critic]:
    """Choose the damping where the settings leave it open.

    An observation reaches the outputs of a memory through gates that begin half open, and its weights
    have so little curvature that 0.1 would be nearly all of it.
    """
    usual = 0.01 if isinstance(policy, RecurrentPolicy) else 0.1
    if natural.damping is None:
        natural = replace(natural, damping=usual)
    if isinstance(critic, NaturalCritic) and critic.damping is None:
        critic = replace(critic, damping=usual)
    return natural, critic


def _of_memory(policy: RecurrentPolicy, curvature: Any) -> list[Curvature]:
    """Return what is said of each weight of a memory, by its own name or for all."""
    try:
        whole = as_group(Curvature, curvature)
    except (TypeError, ValueError):
        return []  # KFAC says what is wrong
    memories = [name for name, module in policy.named_modules() if is_recurrent(type(module))]
    names = [name for name, _ in policy.named_parameters() if name.rpartition(".")[0] in memories]
    return [own for name in names if (own := whole.of(name)) is not None]


def check_memory(policy: ActorCriticPolicy, natural: Natural, critic: Critic) -> None:
    """Refuse settings that a policy with memory cannot have.

    :raises ConfigurationError: names the first
    """
    if not isinstance(policy, RecurrentPolicy):
        return
    name = type(policy).__name__
    for of, settings in (("natural", natural), ("critic", critic)):
        iterates, kwargs = getattr(settings, "cg_iterations", 0), getattr(settings, "kfac_kwargs", {})
        if iterates or kwargs.get("step_rule", {}).get("exact_scaling"):
            exact = "cg_iterations" if iterates else "kfac_kwargs with exact_scaling"
            raise ConfigurationError(
                f"{of}.{exact} needs the exact Fisher, a second derivative, which the memory of {name} "
                "does not have: leave it out."
            )
        for said in _of_memory(policy, kwargs.get("curvature", {})):
            if said.recurrent in CHAINS:
                raise ConfigurationError(
                    f"{of}.kfac_kwargs has recurrent={said.recurrent!r}, and K-FAC sees whole sequences "
                    f"of {name} already: leave it out, or give 'diagonal'."
                )
            if said.approximation == "diagonal":
                raise ConfigurationError(
                    f"{of}.kfac_kwargs gives the memory of {name} approximation='diagonal', which would "
                    "be of single steps: give curvature={'recurrent': 'diagonal'}."
                )
    if natural.sub_sampling_factor > 1:
        raise ConfigurationError(
            f"natural.sub_sampling_factor is {natural.sub_sampling_factor}, and {name} learns from "
            "whole sequences, of which no single samples can be drawn: leave it at 1."
        )
    if critic.batch_size is not None:
        raise ConfigurationError(
            f"critic.batch_size is {critic.batch_size}, and {name} learns from whole sequences, which "
            "are not cut into minibatches: leave it at None."
        )
    if natural.cuda_graphs:
        raise ConfigurationError(
            f"natural.cuda_graphs=True is not possible with the memory of {name}, whose episodes end "
            "at other steps in each rollout: leave it out."
        )
