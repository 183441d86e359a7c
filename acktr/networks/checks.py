"""Checks of a policy's networks: before they are built, and before anything is learned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from acktr.errors import ConfigurationError
from acktr.networks.examples import example_observations


def check_widths(policy_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse layers without units, which torch builds and nothing can learn.

    :param policy_kwargs: for the policy; ``net_arch`` is a list of widths, or one for each of ``pi``
        and ``vf``
    :raises ConfigurationError: it is neither
    """
    given = (policy_kwargs or {}).get("net_arch")
    if given is None or _are_widths(given):
        return
    # SB3 still takes the mapping in a list.
    parts = given[0] if isinstance(given, list) and len(given) == 1 else given
    known = isinstance(parts, Mapping) and parts.keys() <= {"pi", "vf"}
    if not (known and all(map(_are_widths, parts.values()))):
        raise ConfigurationError(
            "net_arch in policy_kwargs must be a list of positive whole numbers, or {'pi': ..., 'vf': "
            f"...}} of such lists, not {given!r:.200}."
        )


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(x, int | np.integer) and not isinstance(x, bool) and x > 0 for x in value
    )


def try_networks(policy: ActorCriticPolicy) -> None:
    """Ask a policy once, where its networks are none of a user's own, who may know better what fits.

    A class that is no activation, such as a container or a loss, is built like one, and fails at the
    first step. Of a features extractor of the user's own the width is looked at.

    :param policy: as it was built; it stays as it is, and so do random numbers
    :raises ConfigurationError: an extractor returns other features than its ``features_dim`` says
    :raises Exception: whatever its networks raise
    """
    mode, device = policy.training, policy.device
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        policy.set_training_mode(False)
        obs = next(example_observations(policy))
        if all(map(_is_known, policy.modules())):
            policy.get_distribution(obs)
            policy.predict_values(obs)
        elif _is_known(policy):
            for extractor in (policy.pi_features_extractor, policy.vf_features_extractor):
                _check_width(policy, extractor, obs)
    policy.set_training_mode(mode)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in {"torch", "stable_baselines3", "acktr"}


def _check_width(policy: ActorCriticPolicy, extractor: BaseFeaturesExtractor, obs: Any) -> None:
    try:
        features: Any = BasePolicy.extract_features(policy, obs, extractor)
    except Exception:
        return  # of observations that cannot be
    if isinstance(features, Tensor) and features.shape[-1] != extractor.features_dim:
        raise ConfigurationError(
            f"The features extractor {type(extractor).__name__} returns {features.shape[-1]} features "
            f"for each observation and says that they are {extractor.features_dim}: give "
            "BaseFeaturesExtractor.__init__ the right features_dim."
        )
