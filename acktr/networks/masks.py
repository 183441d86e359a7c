"""A policy without the actions that an environment forbids.

A mask makes of a policy another one, ``p'(a|s) = p(a|s) / sum of p(b|s) over what is allowed``, and the
policy gradient theorem holds for that one (Huang and Ontañón 2020, arXiv 2006.14171, sec. 3). All that
is learned from is a property of p': log-probabilities, entropy, KL, and the Fisher. The logit of a
forbidden action is -inf: its probability is 0 and not merely small, and a logit that is replaced passes
no gradient on. Nothing is learned of it, and it has no curvature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from acktr.errors import ConfigurationError

# The logit of what has to be 1. An infinite one would make NaN of the entropy, ``p log p``; of this one
# every sigmoid is 1, and the entropy 0, in any precision.
_SURE = 1e8


def masked(distribution: Any, allowed: Tensor) -> Any:
    """Return a distribution that draws nothing that is forbidden.

    :param distribution: a Categorical with logits ``(B, n)``, a list of these (MultiDiscrete), or a
        Bernoulli with logits ``(B, n)``
    :param allowed: boolean: ``(B, n)``; for a list one part after another, ``(B, sum of n)``; for a
        Bernoulli whether each part may be 0, and whether it may be 1, ``(B, 2 n)``. One action or more
        of each part
    :raises ConfigurationError: a distribution of another kind
    """
    if isinstance(distribution, list | tuple):
        parts = allowed.split([part.logits.shape[-1] for part in distribution], -1)
        return [masked(part, of_part) for part, of_part in zip(distribution, parts, strict=True)]
    if type(distribution) is Categorical:
        logits = distribution.logits.masked_fill(~allowed, -torch.inf)
        return Categorical(logits=logits, validate_args=False)
    if type(distribution) is Bernoulli:
        free, one = freedom(distribution.logits, allowed)
        sure = (2.0 * one.to(distribution.logits.dtype) - 1.0) * _SURE
        return Bernoulli(logits=torch.where(free, distribution.logits, sure), validate_args=False)
    raise ConfigurationError(
        f"No mask is known for the distribution {type(distribution).__name__} of a policy: let it be "
        "SB3's own for its action space, or give ACKTR use_masking=False."
    )


def freedom(parts: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Tell of binary parts ``(B, n)`` which are free, and which may be 1, from a mask ``(B, 2 n)``."""
    zero, one = allowed.view(*parts.shape, 2).unbind(-1)
    return zero & one, one


def mask(wrapper: Any, allowed: Tensor) -> Any:
    """Mask what is in the wrapper that SB3 puts around a distribution; return the wrapper."""
    wrapper.distribution = masked(wrapper.distribution, allowed)
    return wrapper


def predict_masked(
    policy: ActorCriticPolicy, observation: Any, allowed: np.ndarray, deterministic: bool
) -> np.ndarray:
    """Choose actions as ``policy.predict`` does, none of which is forbidden.

    :param policy: of SB3's kind
    :param observation: ``(*obs)`` or ``(n_envs, *obs)``, or a dict of such arrays
    :param allowed: boolean, a row for each observation; see :func:`masked`
    :param deterministic: the most probable actions and not drawn ones
    :return: ``(*action)`` or ``(n_envs, *action)``
    :raises ConfigurationError: there are other masks than observations
    """
    policy.set_training_mode(False)
    tensor, vectorized = policy.obs_to_tensor(observation)
    first = next(iter(tensor.values())) if isinstance(tensor, dict) else tensor
    if len(first) != len(allowed):
        raise ConfigurationError(
            f"action_masks holds {len(allowed)} masks for {len(first)} observations: give one for each."
        )
    with torch.no_grad():
        distribution = mask(
            policy.get_distribution(tensor), torch.as_tensor(allowed, device=policy.device)
        )
        drawn: Tensor = distribution.get_actions(deterministic=deterministic)
    actions = drawn.cpu().numpy().reshape((-1, *(policy.action_space.shape or ())))
    return actions if vectorized else actions.squeeze(axis=0)
