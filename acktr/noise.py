"""The standard deviation of a Gaussian policy: how it begins, and how it fades beside what it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

from acktr import distributed
from acktr.errors import ConfigurationError

if TYPE_CHECKING:
    from acktr.algorithm import ACKTR


def auto_log_std(action_dim: int) -> float:
    """Return the logarithm of the standard deviation that a Gaussian policy had best begin with.

    Noise of each actuator moves the same body, so that of d actuators is ``sigma sqrt(d)`` together: it
    may be 0.87, which is 0.5 for each of three. More than 0.5 is cut off at the bounds of many action
    spaces, so fewer actuators have no more. Both are figures of measurement (the page of ablations).

    :param action_dim: d, at least 1
    """
    return min(-0.7, math.log(0.87 / math.sqrt(action_dim)))


def resolve_log_std(policy_kwargs: Mapping[str, Any], space: spaces.Space) -> dict[str, Any]:
    """Return the policy's arguments with a number for ``log_std_init="auto"``, or for none.

    :param space: of the actions; what is not a ``Box`` has no standard deviation, and needs no number
    """
    kwargs = {"log_std_init": "auto", **policy_kwargs}
    if kwargs["log_std_init"] == "auto":
        del kwargs["log_std_init"]
        if isinstance(space, spaces.Box):
            kwargs["log_std_init"] = auto_log_std(get_action_dim(space))
    return kwargs


@torch.no_grad()
def fade_noise(model: ACKTR, n_samples: int) -> None:
    """Let the standard deviation of a Gaussian policy follow the schedule ``std_scale``.

    What it learns is a factor of its own: after each rollout ``log_std`` moves by the logarithm of what
    the schedule has now over what it had when the rollout began, so that only changes of the schedule
    count. (In the runs of Schulman et al. 2017, arXiv 1707.06347, table 4, on Roboschool the standard
    deviation is all schedule.) The KL of such a move, ``(change of log_std)^2`` for each dimension of an
    action, is thousands of times below the radius of a trust region, and not counted.

    :param model: after its update; its policy is left as it is if it is no Gaussian
    :param n_samples: of the rollout, on this rank
    :raises ConfigurationError: the schedule's value is no positive number
    """
    log_std = getattr(model.policy, "log_std", None)
    if log_std is None:
        return
    now = model._current_progress_remaining
    before = now + n_samples * distributed.size() / model._total_timesteps
    log_std += math.log(_scale(model, now) / _scale(model, before))


def _scale(model: ACKTR, progress_remaining: float) -> float:
    """Ask the schedule, and refuse what is no positive number."""
    scale = model.std_scale_schedule(progress_remaining)
    if not 0 < scale < math.inf:
        raise ConfigurationError(
            f"std_scale must stay positive and finite, but its schedule gave {scale!r} at "
            f"{progress_remaining:.3f} of the training left."
        )
    return scale
