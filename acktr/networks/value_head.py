"""The critic's last layer, which may predict normalised values (PopArt).

PopArt (van Hasselt et al. 2016, "Learning values across many orders of magnitude", arXiv 1602.07714):
the network predicts ``n = (V - mean) / std``, with running moments of its targets, and when these move
its last layer is rewritten so that every V stays what it was. Here the last layer itself turns n into V:
whatever asks for values (rollout, advantages, logs) gets them in units of the returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from acktr.errors import ConfigurationError

_DECAY = 0.99  # of the moments, an update; the first updates are plainly averaged
_MIN_STD = 1e-4  # returns that are all alike have no spread to divide by


class NormalizedValue(nn.Module):
    """A critic's last layer that predicts normalised values and returns them in units of the returns.

    ``V = std n + mean``. Before the first returns are known ``std`` is 0, and so is every value.

    Its ``state_dict`` is that of the plain linear layer with the same values, which fits SB3's policies,
    and one of theirs fits here. With the moments and bit for bit it is in :meth:`exact_state`.

    :param linear: the layer that predicts n
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        for name in ("mean", "std", "count"):
            zero = torch.zeros((), dtype=torch.float64, device=linear.weight.device)
            self.register_buffer(name, zero)

    def forward(self, latent: Tensor) -> Tensor:
        """Map ``(B, in_features)`` to values ``(B, 1)`` in units of the returns."""
        # Moments are 0-dim tensors, which leave the dtype of the network's output alone.
        values: Tensor = self.linear(latent) * self.std + self.mean
        return values

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``weight`` and ``bias`` of a plain linear layer with the same values."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for name in self._names():
            del state[prefix + name]
        for name, p in self.linear.named_parameters():
            plain = self.std * p.detach().double() + (self.mean if name == "bias" else 0.0)
            state[prefix + name] = plain.to(p.dtype)
        return state

    def exact_state(self) -> dict[str, Tensor]:
        """Return parameters and moments by name, detached."""
        return {**dict(self.named_buffers()), **{n: p.detach() for n, p in self.named_parameters()}}

    def _names(self) -> list[str]:
        return list(self.exact_state())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        plain = {name: state_dict.pop(prefix + name, None) for name in ("weight", "bias")}
        weight, bias = plain["weight"], plain["bias"]
        if weight is not None and bias is not None:
            own = self.exact_state()
            if self.std > 0:  # in the units that the optimiser knows, with the same values
                own["linear.weight"] = (weight.to(self.std) / self.std).to(weight)
                own["linear.bias"] = ((bias.to(self.std) - self.mean) / self.std).to(bias)
            elif weight.any() or bias.any():
                own.update({"linear.weight": weight, "linear.bias": bias})
                own.update(std=torch.ones_like(self.std), count=torch.ones_like(self.count))
            state_dict.update({prefix + name: x for name, x in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def update(self, mean: float, variance: float) -> float:
        """Average in the moments of a batch of returns; all values stay what they were.

        ``x <- x + w (x_new - x)`` for the first two moments, with ``w = max(1/k, 1 - 0.99)`` in the k-th
        update.

        :param mean: of the batch
        :param variance: of the batch
        :return: the old standard deviation over the new one; 1 at the first update, which is the only
            one to move values
        """
        # One look at the device, and not three.
        old_mean, old_std, count = torch.stack((self.mean, self.std, self.count)).tolist()
        weight = max(1.0 / (count + 1.0), 1.0 - _DECAY)
        shift = weight * (mean - old_mean)
        spread = (1.0 - weight) * (old_std**2 + shift * (mean - old_mean)) + weight * variance
        std = max(math.sqrt(spread), _MIN_STD)
        self.mean += shift
        self.std.fill_(std)
        self.count += 1
        if not count:
            return 1.0
        # Proposition 1 of the paper: W' = std/std' W, b' = (std b + mean - mean') / std'.
        self.linear.weight.mul_(old_std / std)
        if self.linear.bias is not None:
            self.linear.bias.mul_(old_std / std).sub_(shift / std)
        return old_std / std


def choose_value_head(policy: ActorCriticPolicy, wanted: bool | None, scaled: bool) -> bool:
    """Let a policy's critic predict normalised values, if that is asked for, or needed and possible.

    A Gauss-Newton step does not depend on the unit of the returns, but a damped one does: the larger
    they are, the larger the last layer's weights and, with their square, the curvature of the layers
    below, while that of the last layer stays, so no lambda fits both. Where the rewards are scaled there
    is no need.

    :param wanted: whether it is asked for; ``None``: if it is needed and possible
    :param scaled: whether rewards are scaled before they are learned from
    :return: whether it does
    :raises ConfigurationError: it is asked for, and the critic does not end with a linear layer with a
        bias
    """
    chosen = not scaled and _ends_linearly(policy) if wanted is None else wanted
    if chosen:
        normalize_value(policy)
    return chosen


def _ends_linearly(policy: ActorCriticPolicy) -> bool:
    return type(policy.value_net) is nn.Linear and policy.value_net.bias is not None


def normalize_value(policy: ActorCriticPolicy) -> None:
    """Let a policy's critic predict normalised values; its ``value_net`` is replaced.

    :raises ConfigurationError: the critic does not end with a linear layer with a bias
    """
    head = policy.value_net
    if not _ends_linearly(policy):
        raise ConfigurationError(
            "critic.normalize_targets needs a critic whose last layer (value_net) is a torch.nn.Linear "
            f"with a bias, that of {type(policy).__name__} is {' '.join(str(head).split())}: leave it "
            "out, or change the policy."
        )
    policy.value_net = NormalizedValue(head)  # type: ignore[assignment]  # SB3 only calls it


def normalized_value(policy: ActorCriticPolicy) -> NormalizedValue | None:
    """Return the critic's last layer if it predicts normalised values."""
    head: nn.Module = policy.value_net
    return head if isinstance(head, NormalizedValue) else None


def exact_parameters(policy: ActorCriticPolicy, state: dict[str, Any]) -> dict[str, Any]:
    """Return a policy's ``state_dict`` with what a plain one does not say of a critic's moments.

    :param state: the ``state_dict``
    """
    head = normalized_value(policy)
    if head is None:
        return state
    prefix = "value_net."
    others = {name: x for name, x in state.items() if not name.startswith(prefix)}
    return {**others, **{prefix + name: x for name, x in head.exact_state().items()}}


def is_normalized(state: Any) -> bool:
    """Whether :func:`exact_parameters` are those of a critic that predicts normalised values."""
    return isinstance(state, Mapping) and {"value_net.linear.weight", "value_net.std"} <= state.keys()
