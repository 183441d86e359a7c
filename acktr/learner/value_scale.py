"""The scale on which a critic learns: sigma of its Gaussian output, and normalised targets (PopArt).

PopArt (van Hasselt et al. 2016, "Learning values across many orders of magnitude", arXiv 1602.07714):
the network predicts ``n = (V - mean) / std``, with running moments of its targets, and when these move
its last layer is rewritten so that every V stays what it was. Here the last layer itself turns n into V.
Whatever asks for values (rollout, advantages, logs) gets them in units of the returns, and the critic's
likelihood ``N(V, (sigma std)^2)`` is that of normalised returns under ``N(n, sigma^2)``: the same loss,
the same Fisher and the same KL.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from acktr import distributed
from acktr.errors import ConfigurationError
from acktr.kfac import KFAC
from acktr.kfac.rescaling import scale_fisher

if TYPE_CHECKING:
    from acktr.learner.algorithm import ACKTR
    from acktr.rollout.collect import RolloutBatch

_DECAY = 0.99  # of the moments, an update; the first updates are plainly averaged
_MIN_STD = 1e-4  # returns that are all alike have no spread to divide by
_MIN_SIGMA = 1e-3


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


def choose_value_scale(model: ACKTR) -> None:
    """Let a new model's critic predict normalised values, if that is asked for, or needed and possible.

    A Gauss-Newton step does not depend on the unit of the returns, but a damped one does: the larger
    they are, the larger the last layer's weights and, with their square, the curvature of the layers
    below, while that of the last layer stays, so no lambda fits both. Where ``VecNormalize`` scales the
    rewards there is no need.

    :param model: its ``normalize_value_targets`` is a bool afterwards, whatever ``None`` stood for
    :raises ConfigurationError: it is asked for, and the critic does not end with a linear layer with
        a bias
    """
    wanted = model.normalize_value_targets
    if wanted is None:
        normalizer = model.get_vec_normalize_env()
        scaled = normalizer is not None and normalizer.norm_reward
        wanted = not scaled and _ends_linearly(model.policy)
    if wanted:
        normalize_value(model.policy)
    model.normalize_value_targets = wanted


def _ends_linearly(policy: ActorCriticPolicy) -> bool:
    return type(policy.value_net) is nn.Linear and policy.value_net.bias is not None


def normalize_value(policy: ActorCriticPolicy) -> None:
    """Let a policy's critic predict normalised values; its ``value_net`` is replaced.

    :raises ConfigurationError: the critic does not end with a linear layer with a bias
    """
    head = policy.value_net
    if not _ends_linearly(policy):
        raise ConfigurationError(
            "normalize_value_targets needs a critic whose last layer (value_net) is a torch.nn.Linear "
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


def update_scale(model: ACKTR, batch: RolloutBatch) -> None:
    """Let the critic's scale follow a rollout: moments of the returns, and an adaptive sigma.

    :param model: before its update
    :param batch: the rollout; all ranks have as many samples
    """
    head = normalized_value(model.policy)
    # What is frozen stays as it is, moments and all.
    if head is not None and any(p.requires_grad for p in head.parameters()):
        _follow_returns(model, head, batch.returns)
    if model.critic_std == "adaptive":
        # The running standard deviation of the Bellman error (paper, sec. 5.3).
        variance = distributed.mean((batch.returns - batch.values).square().mean()).item()
        decay = 0.95 if model._n_updates else 0.0
        std = (decay * model.bellman_std**2 + (1.0 - decay) * variance) ** 0.5
        model.bellman_std = max(std, _MIN_SIGMA * (1.0 if head is None else head.std.item()))


def sigma(model: ACKTR, values: Tensor) -> Tensor:
    """Return sigma of the critic's Gaussian output, in units of the returns, as a 0-dim tensor.

    :param model: of whose scale nothing is looked at from the host
    :param values: what the critic said; sigma has their dtype and device
    """
    head = normalized_value(model.policy)
    if model.critic_std == "adaptive":
        return values.new_full((), model.bellman_std)
    factor = float(model.critic_std)
    return values.new_full((), factor) if head is None else factor * head.std.to(values.dtype)


def _follow_returns(model: ACKTR, head: NormalizedValue, returns: Tensor) -> None:
    returns = returns.double()
    center = distributed.mean(returns.mean())
    spread = distributed.mean((returns - center).square().mean())
    mean, variance = torch.stack((center, spread)).tolist()
    if not math.isfinite(variance):
        return  # the loss is not finite either, and says so before anything is changed
    ratio = head.update(mean, variance)
    rescale_optimizers(model, head, ratio, 1.0 if model.critic_std == "adaptive" else ratio)


def rescale_optimizers(model: ACKTR, head: NormalizedValue, ratio: float, sigma_ratio: float) -> None:
    """Bring what optimisers remember of the critic to new units.

    With r = std / std' the head's weights are r times what they were, and the same V as a function of
    them has 1/r times the slope; the layers below see no change. With q = sigma / sigma', both in units
    of the returns, the likelihood has q^2 times the curvature. So the head's Fisher is (q/r)^2 and that
    of the layers below q^2 times what it was, the loss's gradient q^2/r and q^2 times, and a step r and
    1 times. On a shared trunk the average of the Fisher is a sum with the policy's part, which stays;
    it is left to the average to forget the other.

    :param ratio: r
    :param sigma_ratio: q
    """
    actor, critic = set(model.outputs.actor), model.outputs.critic
    own = dict.fromkeys(head.parameters())
    hidden = [p for p in critic if p not in own]
    for optimizer in filter(None, (model.policy.optimizer, model.critic_optimizer)):
        if isinstance(optimizer, KFAC):
            scale_fisher(optimizer, own, (sigma_ratio / ratio) ** 2)
            scale_fisher(optimizer, [p for p in hidden if p not in actor], sigma_ratio**2)
            for p in own:
                _scale(optimizer, p, "momentum_buffer", ratio)
            continue
        for p in critic:
            factor = sigma_ratio**2 / (ratio if p in own else 1.0)
            _scale(optimizer, p, "exp_avg", factor)
            _scale(optimizer, p, "exp_avg_sq", factor**2)


def _scale(optimizer: torch.optim.Optimizer, param: Tensor, name: str, factor: float) -> None:
    if name in optimizer.state.get(param, {}):
        optimizer.state[param][name].mul_(factor)
