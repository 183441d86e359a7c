"""Actions for a rollout: what ``policy.get_distribution(obs).sample()`` draws, in a third of the time.

SB3 builds and checks distribution objects at every step and calls each layer as a module; for a small
network both cost more than its arithmetic. Here layers are called directly, and white noise is drawn as
``torch.distributions`` draws it: the same seed gives the same actions. Whatever is not known to be
SB3's own is left to the policy itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from acktr.errors import DivergenceError
from acktr.networks.masks import freedom, mask_logits, masking
from acktr.networks.policies import CnnPolicy
from acktr.networks.recurrent import Memory
from acktr.rollout.noise import ColoredNoise

# The methods of SB3's policy that lead from an observation to an action.
_METHODS = ("forward", "get_distribution", "_get_action_dist_from_latent", "extract_features")


class ActionSampler:
    """Draws raw actions from a policy as it is now: build one for each rollout.

    :param policy: in evaluation mode; its networks must not be exchanged while this is in use
    :param by_forward: draw by ``policy.forward``, where ``get_distribution`` tells another policy
    :param color: of a Gaussian's noise; what else is drawn, or draws by itself, is white
    :raises DivergenceError: if its standard deviation is not a finite positive number
    """

    memory: Memory | None = None  # of before the rollout, where a policy has one

    def __init__(
        self, policy: ActorCriticPolicy, by_forward: bool = False, color: ColoredNoise | None = None
    ) -> None:
        self._policy = policy
        self._by_forward = by_forward
        self._sampler: _Sampler | None = None
        self._layers: list[Callable[[Tensor], Tensor]] | None = None
        if _is_known(policy) and not by_forward:
            self._sampler = SAMPLERS[type(policy.action_dist)](policy, color or ColoredNoise(0.0, 1))
            assert isinstance(policy.action_net, nn.Linear)
            self._like, self._width = policy.action_net.weight, policy.action_net.out_features
            self._layers = _layers(policy)
        # On a shared trunk of their own the values cost a head: no second pass is needed for them.
        self._values = self._sampler is not None and self._layers is None and _shares_trunk(policy)

    def seen(self, obs: Any) -> Any:
        """Return observations as the policy is asked of them: with what it remembers, if it does."""
        return obs

    def ended(self, dones: np.ndarray) -> None:
        """Take notice of which episodes have ended, ``(n_envs,)``, after each step."""

    def noise(self, n_envs: int) -> Tensor | None:
        """Draw what is random in one step of all environments.

        :return: ``(n_envs, ...)``, which may be divided among calls; ``None`` if the policy draws itself
        """
        if self._sampler is None:
            return None
        with torch.inference_mode():
            return self._sampler.noise(self._like.new_empty((n_envs, self._width)))

    def __call__(
        self, obs: Any, noise: Tensor | None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Sample an action for each observation.

        :param obs: ``(B, *obs)`` on the policy's device, or a dict of such tensors
        :param noise: the rows of what :meth:`noise` drew for them
        :param masks: which actions are allowed, ``(B, width)`` (:mod:`acktr.networks.masks`)
        :return: actions ``(B, action_dim)``, ``(B,)`` for Discrete, not clipped; and the critic's values
            ``(B, 1)`` where they cost nothing more, else ``None``
        :raises DivergenceError: if the network's output is not finite
        :raises ConfigurationError: no mask reaches the policy's distribution
        """
        if self._sampler is None or noise is None:
            with torch.no_grad(), masking(self._policy, masks):
                if self._by_forward:
                    actions, values, _ = self._policy.forward(obs)
                    return actions, values
                return self._policy.get_distribution(obs).sample(), None
        if self._layers is None:
            with torch.no_grad():
                features = _features(self._policy, obs)
                latent = self._policy.mlp_extractor.forward_actor(features)
                actions = self._sample(self._policy.action_net(latent), noise, masks)
                if not self._values:
                    return actions, None
                latent = self._policy.mlp_extractor.forward_critic(features)
                return actions, self._policy.value_net(latent)
        # Nothing in here outlives the step or runs somebody's code: tensors may forget autograd wholly.
        with torch.inference_mode():
            policy = self._policy
            x = preprocess_obs(obs, policy.observation_space, policy.normalize_images)
            assert isinstance(x, Tensor)
            for layer in self._layers:
                x = layer(x)
            return self._sample(x, noise, masks), None

    def _sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        assert self._sampler is not None
        # A sum of finite numbers may overflow: only then look at each.
        if not (math.isfinite(output.sum().item()) or output.isfinite().all()):
            raise DivergenceError(
                "The policy's output is not finite, so that no action can be drawn: the parameters have "
                "diverged or an observation is too large for them, lower target_kl or normalise."
            )
        return self._sampler.sample(output, noise, masks)


class _Sampler(Protocol):
    """Turns the network's output ``(B, width)`` into actions, with noise drawn apart from it."""

    def noise(self, empty: Tensor) -> Tensor:
        """Fill a tensor shaped like the output of all environments."""

    def sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        """Sample one action for each row, none that is forbidden."""


class _Gaussian:
    """``mean + noise * std``, as ``Normal.rsample``."""

    def __init__(self, policy: ActorCriticPolicy, color: ColoredNoise) -> None:
        self.noise = color.draw
        self._std = policy.log_std.detach().exp()
        if not (self._std.isfinite() & (self._std > 0)).all():
            raise DivergenceError(
                "The policy's standard deviation is 0 or not finite, so that no action can be drawn: "
                "the parameters have diverged, lower target_kl."
            )

    def sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        return output + noise * self._std


class _Categorical:
    """The winner of a race of exponential clocks, which is how ``torch.multinomial`` draws once."""

    def __init__(self, policy: ActorCriticPolicy, color: ColoredNoise) -> None:
        pass

    def noise(self, empty: Tensor) -> Tensor:
        return empty.exponential_()

    def sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        return _race(output, noise, masks)


class _MultiCategorical:
    """One race for each part of the action, drawn one after another."""

    def __init__(self, policy: ActorCriticPolicy, color: ColoredNoise) -> None:
        assert isinstance(policy.action_dist, MultiCategoricalDistribution)
        self._sizes = [int(size) for size in policy.action_dist.action_dims]

    def noise(self, empty: Tensor) -> Tensor:
        clocks = [empty.new_empty((len(empty), size)).exponential_() for size in self._sizes]
        return torch.cat(clocks, -1)

    def sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        allowed = [None for _ in self._sizes] if masks is None else masks.split(self._sizes, -1)
        races = zip(output.split(self._sizes, -1), noise.split(self._sizes, -1), allowed, strict=True)
        return torch.stack([_race(*race) for race in races], -1)


class _Bernoulli:
    """1 where a uniform number lies below the probability, as ``torch.bernoulli``."""

    def __init__(self, policy: ActorCriticPolicy, color: ColoredNoise) -> None:
        pass

    def noise(self, empty: Tensor) -> Tensor:
        return empty.uniform_()

    def sample(self, output: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        drawn = noise < output.sigmoid()
        if masks is not None:
            free, one = freedom(output, masks)
            drawn = torch.where(free, drawn, one)
        return drawn.to(output.dtype)


def _race(output: Tensor, clocks: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return (output.softmax(-1) / clocks).argmax(-1)
    speeds = mask_logits(output, allowed).softmax(-1) / clocks
    # Not 0, which is what a hopeless action has that is allowed.
    return speeds.masked_fill_(~allowed, -1.0).argmax(-1)


SAMPLERS: dict[type, Callable[[ActorCriticPolicy, ColoredNoise], _Sampler]] = {
    DiagGaussianDistribution: _Gaussian,
    CategoricalDistribution: _Categorical,
    MultiCategoricalDistribution: _MultiCategorical,
    BernoulliDistribution: _Bernoulli,
}


def _is_known(policy: ActorCriticPolicy) -> bool:
    """Whether the policy goes from observations to actions by SB3's own methods, or by ours."""
    ours = CnnPolicy if isinstance(policy, CnnPolicy) else ActorCriticPolicy
    theirs = all(
        getattr(type(policy), name, None) is getattr(ours, name) and name not in vars(policy)
        for name in _METHODS
    )
    return theirs and type(policy.action_dist) in SAMPLERS and type(policy.action_net) is nn.Linear


def _features(policy: ActorCriticPolicy, obs: Any) -> Tensor:
    """Call the modules that ``policy.get_distribution`` calls first."""
    if isinstance(policy, CnnPolicy):
        return policy.features(obs, policy.pi_features_extractor)
    return BasePolicy.extract_features(policy, obs, policy.pi_features_extractor)


def _shares_trunk(policy: ActorCriticPolicy) -> bool:
    """Whether actor and critic share a features extractor that learns, by SB3's own methods."""
    trunk = policy.pi_features_extractor
    ours = CnnPolicy if isinstance(policy, CnnPolicy) else ActorCriticPolicy
    own = type(policy).predict_values is ours.predict_values and "predict_values" not in vars(policy)
    return own and trunk is policy.vf_features_extractor and any(True for _ in trunk.parameters())


def _layers(policy: ActorCriticPolicy) -> list[Callable[[Tensor], Tensor]] | None:
    """Functions that do together what the modules of a plain MLP do; ``None`` if it is not plain."""
    extractor, mlp, head = policy.pi_features_extractor, policy.mlp_extractor, policy.action_net
    if type(extractor) is not FlattenExtractor or type(mlp) is not MlpExtractor:
        return None
    watched = [m for part in (extractor, mlp, head) for m in part.modules()]
    if not (all(map(_has_no_hook, watched)) and type(mlp.policy_net) is nn.Sequential):
        return None
    layers: list[Callable[[Tensor], Tensor]] = [lambda x: x.flatten(1)]
    for module in (*mlp.policy_net, head):
        if type(module) is nn.Linear:
            layers.append(_linear(module))
        elif type(module).__module__ == nn.Tanh.__module__:  # torch's activations
            layers.append(module.forward)
        else:
            return None
    return layers


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    return lambda x: F.linear(x, weight, bias)


def _has_no_hook(module: nn.Module) -> bool:
    everywhere = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
    own = module._forward_hooks, module._forward_pre_hooks
    return not any((*everywhere, *own)) and "forward" not in vars(module)
