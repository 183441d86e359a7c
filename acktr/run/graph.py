"""The whole way from an environment's observation to its action as one module of torch.

What vector environments do to observations on their way to a model (normalisation, channels first), what
its adapter does, the policy, and what ``predict`` does to actions on their way back: bounds, first
action, shape and dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage
from torch import Tensor, nn

from acktr.envs.masks import part_sizes
from acktr.errors import ConfigurationError
from acktr.learner.algorithm import ACKTR
from acktr.networks.masks import masking
from acktr.networks.outputs import as_list, without_validation
from acktr.networks.recurrent import Memory, RecurrentPolicy, Sequences

PLAIN = "observation"  # the name of an observation that is no Dict


class ActionGraph(nn.Module):
    """Observations of an environment to actions of its space, and a memory to the next one.

    :param model: a model with its environments; it has to be on the CPU, and gets no copy
    :param sampled: whether actions are drawn, with random numbers that the graph draws itself; else they
        are the most probable ones
    :raises ConfigurationError: ``sampled``, and a policy that draws in a way of its own
    """

    def __init__(self, model: ACKTR, sampled: bool = False) -> None:
        super().__init__()
        assert model.env is not None
        self.policy = model.policy
        memory = self.policy.empty_memory(1).actor if isinstance(self.policy, RecurrentPolicy) else ()
        self.state_shapes = [(len(s), *s.shape[2:]) for s in memory]  # of each state, but for the batch
        self._sampled = sampled
        own = model.observation_space
        plain = model.adapter.observation_space
        kept = plain.spaces if isinstance(plain, spaces.Dict) else {PLAIN: plain}
        self.single = not isinstance(plain, spaces.Dict)
        self.parts = {
            name: Observation(name, model.env, _part(own, name), space) for name, space in kept.items()
        }
        self._modules_of_parts = nn.ModuleList(self.parts.values())
        masked = model.masks_of(model.env) is not None
        self.mask_sizes = part_sizes(model.action_space) if masked else None
        self._action = _Action(model.action_space)
        if sampled and not _draws_as_sb3(self.policy):
            raise ConfigurationError(
                f"{type(self.policy).__name__} draws its actions in a way of its own, which cannot be "
                "exported: leave out --sampled."
            )

    @property
    def inputs(self) -> dict[str, spaces.Space]:
        """The observations by the name of their input, and the spaces that they are of."""
        return {name: part.space for name, part in self.parts.items()}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Choose actions ``(B, *action)``, and say what is to be remembered.

        :param inputs: ``(B, *obs)`` for each of :attr:`inputs`; for a policy that remembers its states,
            ``(n_layers, B, H)`` each, and whether an episode begins, ``(B,)``; then, for a model that
            learned with masks, which actions are allowed, ``(B, sum(mask_sizes))``
        :return: the actions, and the states afterwards
        """
        allowed = inputs[-1] if self.mask_sizes is not None else None
        pairs = zip(self.parts.items(), inputs, strict=False)
        parts = {name: part(x) for (name, part), x in pairs}
        obs: Any = parts[PLAIN] if self.single else parts
        policy: Any = self.policy
        after: tuple[Tensor, ...] = ()
        with without_validation(), masking(policy, allowed):
            if self.state_shapes:
                *states, starts = inputs[len(parts) :][: len(self.state_shapes) + 1]
                told = Sequences(obs, starts.unsqueeze(0), Memory(tuple(states)))
                latent, history = policy.latent_actor(told)
                after = tuple(s[0] for s in history)
                distribution = policy._get_action_dist_from_latent(latent)
            elif self._sampled:
                distribution = policy.get_distribution(obs)
            if self._sampled:
                actions = _DRAW[type(distribution)](as_list(distribution.distribution))
            elif self.state_shapes:
                actions = distribution.get_actions(deterministic=True)
            else:
                actions = policy._predict(obs, deterministic=True)
        return self._action(actions), *after


class Observation(nn.Module):
    """One observation: from how the environment gives it to how the policy takes it.

    :param name: its key in a ``Dict``
    :param env: the environments of the model
    :param own: its space as the model has it: behind all wrappers
    :param plain: its space as the policy has it
    """

    _mean: Tensor
    _deviation: Tensor

    def __init__(self, name: str, env: VecEnv, own: spaces.Space, plain: spaces.Space) -> None:
        super().__init__()
        self.space = _part(unwrapped_space(env), name)
        self._transposed = own.shape != self.space.shape
        self._translate = _translation(own, plain)
        self._clip = None
        normalize: Any = _wrapper(env, VecNormalize)
        moments = None
        if normalize is not None and normalize.norm_obs:
            statistics = normalize.obs_rms
            moments = statistics.get(name) if isinstance(statistics, dict) else statistics
        if moments is not None:
            self._clip = float(normalize.clip_obs)
            # In 64 bits, as VecNormalize does.
            self.register_buffer("_mean", torch.as_tensor(moments.mean, dtype=torch.float64))
            deviation = np.sqrt(np.asarray(moments.var, dtype=np.float64) + normalize.epsilon)
            self.register_buffer("_deviation", torch.as_tensor(deviation))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *space)`` to ``(B, *plain)``."""
        if self._clip is not None:
            x = (x.double() - self._mean) / self._deviation
            x = x.clamp(-self._clip, self._clip).float()
        if self._transposed:
            x = x.movedim(-1, 1)
        return self._translate(x)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Make up observations ``(count, *shape)``; with statistics, such as they tell of."""
        space = copy.deepcopy(self.space)
        space.seed(int(rng.integers(2**31)))
        if self._clip is not None and isinstance(space, spaces.Box):
            noise = rng.normal(size=(count, *space.shape))
            likely = self._mean.numpy() + self._deviation.numpy() * noise
            return np.clip(likely, space.low, space.high).astype(space.dtype)
        return np.stack([np.asarray(space.sample(), space.dtype) for _ in range(count)])


class _Action(nn.Module):
    """Actions of the policy to actions of the environment, as ``predict`` turns them."""

    _low: Tensor
    _high: Tensor
    _start: Tensor

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self._shape = tuple(space.shape or ())
        self._dtype = torch.as_tensor(np.zeros(1, space.dtype)).dtype
        self._bounded = isinstance(space, spaces.Box)
        if isinstance(space, spaces.Box):
            self.register_buffer("_low", torch.as_tensor(space.low))
            self.register_buffer("_high", torch.as_tensor(space.high))
        start = np.asarray(getattr(space, "start", 0), dtype=np.int64)
        self._shifted = bool(start.any())
        self.register_buffer("_start", torch.as_tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self._shape)
        if self._bounded:
            x = torch.minimum(torch.maximum(x, self._low), self._high)
        elif self._shifted:
            x = x + self._start
        return x.to(self._dtype)


def unwrapped_space(env: VecEnv) -> spaces.Space:
    """Return the space of observations before they are normalised and their channels put first."""
    while isinstance(env, VecTransposeImage | VecNormalize):
        env = env.venv
    return env.observation_space


def as_predict_takes(env: VecEnv, obs: Any) -> Any:
    """Bring observations of :func:`unwrapped_space` into the form that ``predict`` is given.

    :param env: the environments of a model
    :param obs: ``(B, *obs)``, or a dict of such arrays
    """
    normalize, transpose = _wrapper(env, VecNormalize), _wrapper(env, VecTransposeImage)
    if isinstance(normalize, VecNormalize):
        obs = normalize.normalize_obs(obs)
    return transpose.transpose_observations(obs) if isinstance(transpose, VecTransposeImage) else obs


def _wrapper(env: VecEnv, kind: type[VecEnvWrapper]) -> VecEnvWrapper | None:
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, kind):
            return env
        env = env.venv
    return None


def _part(space: spaces.Space, name: str) -> spaces.Space:
    return space.spaces[name] if isinstance(space, spaces.Dict) else space


def _translation(own: spaces.Space, plain: spaces.Space) -> Callable[[Tensor], Tensor]:
    """Return what :class:`~acktr.envs.adapter.Adapter` does to one observation, for tensors."""
    if plain is own:
        return lambda x: x
    if isinstance(own, spaces.Discrete | spaces.MultiDiscrete):
        start = torch.as_tensor(np.asarray(own.start, dtype=np.int64))
        shape = plain.shape or ()
        return lambda x: (x.long() - start).reshape(-1, *shape)
    if own.shape is not None and len(own.shape) == 3:
        return lambda x: x.movedim(-1, 1)
    return lambda x: x.reshape(-1, *(plain.shape or ()))  # an axis more


# Drawn actions ------------------------------------------------------------------------------


def _draws_as_sb3(policy: ActorCriticPolicy) -> bool:
    known = ActorCriticPolicy._predict, RecurrentPolicy._predict
    own = type(policy)._predict in known and "_predict" not in vars(policy)
    return own and type(policy.action_dist) in _DRAW


def _gaussian(parts: list[Any]) -> Tensor:
    mean = parts[0].mean
    return mean + parts[0].stddev * torch.randn_like(mean)


def _categorical(parts: list[Any]) -> Tensor:
    return torch.stack([_race(part.logits) for part in parts], -1)


def _bernoulli(parts: list[Any]) -> Tensor:
    logits = parts[0].logits
    return torch.rand_like(logits) < logits.sigmoid()


def _race(logits: Tensor) -> Tensor:
    """Draw by the largest of logits with Gumbel's noise; one of -inf never wins."""
    uniform = torch.rand_like(logits)
    noise = -torch.log((-torch.log1p(-uniform)).clamp_min(1e-30))
    return (logits + noise).argmax(-1)


_DRAW: dict[type, Callable[[list[Any]], Tensor]] = {
    DiagGaussianDistribution: _gaussian,
    CategoricalDistribution: _categorical,
    MultiCategoricalDistribution: _categorical,
    BernoulliDistribution: _bernoulli,
}
