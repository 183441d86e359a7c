"""Acting with a memory: what a policy remembers from one step of a rollout to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acktr.networks.masks import masking
from acktr.networks.outputs import Outputs
from acktr.networks.recurrence import State
from acktr.networks.recurrent import Memory, RecurrentPolicy, Sequences
from acktr.rollout.actions import SAMPLERS, ActionSampler
from acktr.rollout.later import Asked
from acktr.rollout.noise import ColoredNoise
from acktr.rollout.storage import RolloutStorage

# The methods that lead from an observation to an action.
_METHODS = ("forward", "get_distribution", "latent_actor", "_get_action_dist_from_latent")


class MemorySampler(ActionSampler):
    """Draws raw actions from a policy that remembers: build one for each rollout.

    It takes the actor's memory along. The critic's is found when the rollout is done, in one pass.

    :param policy: in evaluation mode; its networks must not be exchanged while this is in use
    :param color: of a Gaussian's noise
    :param memory: of before the first step
    :param starts: whether episodes begin with the first step, ``(n_envs,)``
    :raises DivergenceError: if its standard deviation is not a finite positive number
    """

    def __init__(
        self, policy: RecurrentPolicy, color: ColoredNoise, memory: Memory, starts: np.ndarray
    ) -> None:
        super().__init__(policy, by_forward=True)
        self._remembers = policy
        self._state = memory.actor
        self._after = memory.actor
        self.memory = memory
        self._starts = _begins(starts)
        theirs = all(getattr(type(policy), name) is getattr(RecurrentPolicy, name) for name in _METHODS)
        if theirs and type(policy.action_dist) in SAMPLERS and type(policy.action_net) is nn.Linear:
            self._sampler = SAMPLERS[type(policy.action_dist)](policy, color)
            self._like, self._width = policy.action_net.weight, policy.action_net.out_features

    def ended(self, dones: np.ndarray) -> None:
        """Go on from the step that was made last: until then :meth:`seen` is of that one."""
        self._state, self._starts = self._after, _begins(dones)

    def seen(self, obs: Any) -> Any:
        """Return observations as the actor sees them, with its memory of before the present step.

        The critic's is that of before the rollout.
        """
        assert self.memory is not None
        return Sequences(obs, self._starts, Memory(self._state, self.memory.critic))

    def remembered(self, states: State | None) -> Memory:
        """Return what is remembered after the last step.

        :param states: the critic's after each step
        """
        assert self.memory is not None
        own = states if self.memory.critic else ()
        return Memory(self._state, tuple(s[-1].clone() for s in own or ()))

    def __call__(
        self, obs: Any, noise: Tensor | None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Sample an action for each observation; see :meth:`ActionSampler.__call__`."""
        seen, policy = self.seen(obs), self._remembers
        with torch.no_grad():
            latent, states = policy.latent_actor(seen)
            self._after = tuple(s[0] for s in states)
            if self._sampler is None or noise is None:
                with masking(policy, masks):
                    return policy.get_distribution(seen).sample(), None
            return self._sample(policy.action_net(latent), noise, masks), None


def recalled_values(asked: Asked, storage: RolloutStorage, step: int, seen: Sequences) -> Tensor:
    """Return the values of one step, ``(n_envs, 1)``, for whoever wants them while the rollout goes on.

    :param asked: the policy that acts
    :param storage: with the steps before
    :param step: of the rollout, from 0
    :param seen: the step, as the actor saw it
    """
    memory = seen.memory
    if memory.critic and step:
        with torch.no_grad():
            _, states = asked.acting().values_and_memory(storage.seen(slice(0, step)))
        memory = memory._replace(critic=tuple(s[-1] for s in states or ()))
    return asked.values(seen._replace(memory=memory))


def memory_of_stopped(
    sampler: MemorySampler, outputs: Outputs, storage: RolloutStorage, dones: np.ndarray
) -> Memory:
    """Return what is remembered where a rollout was stopped.

    :param sampler: of the rollout
    :param outputs: of the policy
    :param storage: with all steps that were made
    :param dones: whether the last one ended an episode, ``(n_envs,)``
    """
    sampler.ended(dones)
    with torch.no_grad():
        return sampler.remembered(outputs.values_and_memory(storage.seen(slice(0, storage.pos)))[1])


def _begins(flags: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(flags, dtype=bool)).unsqueeze(0)
