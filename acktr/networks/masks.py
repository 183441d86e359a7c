"""A policy without the actions that an environment forbids.

A mask makes of a policy another one, ``p'(a|s) = p(a|s) / sum of p(b|s) over what is allowed``, and the
policy gradient theorem holds for that one (Huang and Ontañón 2020, arXiv 2006.14171, sec. 3). All that
is learned from is a property of p': log-probabilities, entropy, KL, and the Fisher. The logit of a
forbidden action becomes -inf: its probability is 0 and not merely small, and a logit that is replaced
passes no gradient on. Nothing is learned of it, and it has no curvature.

Logits are masked before a distribution is made of them, and not in the finished one: that one has
normalised them with what is forbidden, and the gradient of that vanishes up to rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from acktr.errors import ConfigurationError

# The logit of what has to be 1. An infinite one would make NaN of the entropy, ``p log p``; of this one
# every sigmoid is 1, and the entropy 0, in any precision.
_SURE = 1e8
_KNOWN = (CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)


@contextmanager
def masking(policy: ActorCriticPolicy, allowed: Tensor | None) -> Iterator[None]:
    """Let a policy forbid actions inside ``with``, whatever it is asked.

    SB3's policies, and those of a user's own that are like them, make their distribution with
    ``self.action_dist.proba_distribution(logits)``, from which they act, and which they evaluate.

    :param policy: the policy
    :param allowed: boolean ``(B, width)``, see :func:`mask_logits`; ``None`` for all actions
    :raises ConfigurationError: its distribution is of a kind that no mask is known for, or it makes it
        in another way, or there are other masks than observations
    """
    if allowed is None:
        yield
        return
    wrapper: Any = policy.action_dist
    if not isinstance(policy.action_dist, _KNOWN):
        raise ConfigurationError(
            f"No mask is known for the {type(wrapper).__name__} of {type(policy).__name__}: let it be "
            "SB3's own for its action space, or give ACKTR use_masking=False."
        )
    binary = isinstance(policy.action_dist, BernoulliDistribution)
    build, before, made = wrapper.proba_distribution, dict(vars(wrapper)), False

    def build_masked(action_logits: Tensor) -> Any:
        nonlocal made
        made = True
        if allowed.shape[0] != action_logits.shape[0]:  # one mask would be stretched in silence
            raise ConfigurationError(
                f"{len(allowed)} action masks were given for {len(action_logits)} observations: give "
                "one for each."
            )
        return build(mask_logits(action_logits, allowed, binary))

    wrapper.proba_distribution = build_masked
    try:
        yield
    finally:
        del wrapper.proba_distribution
        if "proba_distribution" in before:
            wrapper.proba_distribution = before["proba_distribution"]
    if not made:
        raise ConfigurationError(
            f"{type(policy).__name__} makes its distribution without self.action_dist."
            "proba_distribution, and no mask reaches it: build it with that, or give ACKTR "
            "use_masking=False."
        )


def mask_logits(logits: Tensor, allowed: Tensor, binary: bool = False) -> Tensor:
    """Return the logits of a policy that forbids actions.

    :param logits: of a choice, or of several one after another, ``(B, width)``; of binary parts
        ``(B, n)``
    :param allowed: boolean, ``(B, width)``; of binary parts whether each may be 0, and whether it may be
        1, ``(B, 2 n)``. One action or more of each part
    :param binary: whether the parts are binary
    """
    if not binary:
        return logits.masked_fill(~allowed, -torch.inf)
    free, one = freedom(logits, allowed)
    sure = (2.0 * one.to(logits.dtype) - 1.0) * _SURE
    return torch.where(free, logits, sure)


def freedom(parts: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Tell of binary parts ``(B, n)`` which are free, and which may be 1, from a mask ``(B, 2 n)``."""
    zero, one = allowed.view(*parts.shape, 2).unbind(-1)
    return zero & one, one
