"""The scale on which a critic learns: sigma of its Gaussian output, and normalised targets.

The critic's likelihood ``N(V, (sigma std)^2)`` in units of the returns is that of normalised returns
under ``N(n, sigma^2)`` (:mod:`acktr.networks.value_head`): the same loss, Fisher and KL.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Normal
from torch.optim import Optimizer

from acktr import distributed
from acktr.kfac import KFAC
from acktr.kfac.units import scale_fisher
from acktr.networks.outputs import Outputs
from acktr.networks.value_head import NormalizedValue, normalized_value
from acktr.rollout.batch import RolloutBatch

_MIN_SIGMA = 1e-3
_DECAY = 0.95  # of the Bellman error's variance, an update


class ValueScale:
    """Follows the returns, and says how sure a critic is of its values.

    :param policy: whose critic it is
    :param outputs: its parameters by whom they belong to
    :param std: sigma in units of what the critic predicts, or ``"adaptive"``
    """

    def __init__(self, policy: ActorCriticPolicy, outputs: Outputs, std: float | str) -> None:
        self._policy = policy
        self._outputs = outputs
        self._std = std
        self.bellman_std = 1.0  # running standard deviation of the Bellman error
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Return what the next update depends on; moments of the returns are the policy's buffers."""
        return {"bellman_std": self.bellman_std, "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.bellman_std, self._begun = state["bellman_std"], state["begun"]

    @property
    def _adaptive(self) -> bool:
        return self._std == "adaptive"

    def sigma(self, values: Tensor) -> Tensor:
        """Return sigma of the critic's Gaussian output, in units of the returns, as a 0-dim tensor.

        Nothing is looked at from the host.

        :param values: what the critic said; sigma has their dtype and device
        """
        head = normalized_value(self._policy)
        if self._adaptive:
            return values.new_full((), self.bellman_std)
        factor = float(self._std)
        return values.new_full((), factor) if head is None else factor * head.std.to(values.dtype)

    def distribution(self, values: Tensor) -> Normal:
        """Return the critic's Gaussian output, whose Fisher is the Gauss-Newton matrix over sigma^2."""
        # A check would look at all values from the host; the loss is looked at anyway.
        return Normal(values, self.sigma(values), validate_args=False)

    def loss(self, values: Tensor, returns: Tensor) -> Tensor:
        """Negative log-likelihood of the returns under N(V, sigma^2), without its constant.

        :param values: ``(B,)``
        :param returns: ``(B,)``
        """
        return 0.5 * ((returns - values) / self.sigma(values)).square().mean()

    def follow(self, batch: RolloutBatch, optimizers: Iterable[Optimizer]) -> None:
        """Let the scale follow a rollout: moments of the returns, and an adaptive sigma.

        :param batch: the rollout; all ranks have as many samples
        :param optimizers: that remember something of the critic in units of before
        """
        head = normalized_value(self._policy)
        if head is not None and self._learns(head):
            self._follow_returns(head, batch.returns, optimizers)
        if self._adaptive:
            # The running standard deviation of the Bellman error (paper, sec. 5.3).
            variance = distributed.mean((batch.returns - batch.values).square().mean()).item()
            decay = _DECAY if self._begun else 0.0
            std = (decay * self.bellman_std**2 + (1.0 - decay) * variance) ** 0.5
            self.bellman_std = max(std, _MIN_SIGMA * (1.0 if head is None else head.std.item()))
        self._begun = True

    def _learns(self, head: NormalizedValue) -> bool:
        # What is frozen stays as it is, moments and all; but layers below learn in some unit.
        if any(p.requires_grad for p in head.parameters()):
            return True
        return any(p.requires_grad for p in self._outputs.critic) and not head.count.item()

    def metrics(self) -> dict[str, float]:
        """Return the moments of the returns that the critic predicts in units of, for the log."""
        head = normalized_value(self._policy)
        return {} if head is None else {"return_mean": head.mean.item(), "return_std": head.std.item()}

    def _follow_returns(
        self, head: NormalizedValue, returns: Tensor, optimizers: Iterable[Optimizer]
    ) -> None:
        returns = returns.double()
        center = distributed.mean(returns.mean())
        spread = distributed.mean((returns - center).square().mean())
        mean, variance = torch.stack((center, spread)).tolist()
        if not math.isfinite(variance):
            return  # the loss is not finite either, and says so before anything is changed
        ratio = head.update(mean, variance)
        sigma_ratio = 1.0 if self._adaptive else ratio
        for optimizer in optimizers:
            rescale_optimizer(optimizer, self._outputs, head, ratio, sigma_ratio)


def rescale_optimizer(
    optimizer: Optimizer, outputs: Outputs, head: NormalizedValue, ratio: float, sigma_ratio: float
) -> None:
    """Bring what an optimiser remembers of the critic to new units.

    With r = std / std' the head's weights are r times what they were, and the same V as a function of
    them has 1/r times the slope; the layers below see no change. With q = sigma / sigma', both in units
    of the returns, the likelihood has q^2 times the curvature. So the head's Fisher is (q/r)^2 and that
    of the layers below q^2 times what it was, the loss's gradient q^2/r and q^2 times, and a step r and
    1 times. On a shared trunk the average of the Fisher is a sum with the policy's part, which stays;
    it is left to the average to forget the other.

    :param ratio: r
    :param sigma_ratio: q
    """
    actor, critic = set(outputs.actor), outputs.critic
    own = dict.fromkeys(head.parameters())
    if isinstance(optimizer, KFAC):
        hidden = [p for p in critic if p not in own and p not in actor]
        scale_fisher(optimizer, own, (sigma_ratio / ratio) ** 2)
        scale_fisher(optimizer, hidden, sigma_ratio**2)
        for p in own:
            _scale(optimizer, p, "momentum_buffer", ratio)
        return
    for p in critic:
        factor = sigma_ratio**2 / (ratio if p in own else 1.0)
        _scale(optimizer, p, "exp_avg", factor)
        _scale(optimizer, p, "exp_avg_sq", factor**2)


def _scale(optimizer: Optimizer, param: Tensor, name: str, factor: float) -> None:
    if name in optimizer.state.get(param, {}):
        optimizer.state[param][name].mul_(factor)
