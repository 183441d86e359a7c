"""The standard deviation of a Gaussian policy: how it begins, and how it fades beside what it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule

from acktr.schedules import as_schedule


def auto_log_std(action_dim: int) -> float:
    """Return the logarithm of a good standard deviation for a Gaussian policy to begin with.

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


class Noise:
    """Lets the standard deviation of a Gaussian policy follow a schedule beside what it learns.

    What it learns is a factor of its own: ``log_std`` moves by the logarithm of what the schedule has
    now over what is in force, so that however often ``learn`` is called, the noise is what was learned
    times what the schedule says. What it says first is taken as in force already. (In the runs of
    Schulman et al. 2017, arXiv 1707.06347, table 4, on Roboschool the standard deviation is all
    schedule.) The KL of such a move, ``(change of log_std)^2`` for each dimension of an action, is
    thousands of times below the radius of a trust region, and not counted.
    """

    def __init__(self) -> None:
        self.scale: float | None = None  # in force

    def state_dict(self) -> dict[str, Any]:
        """Return what is in force."""
        return {"scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.scale = state["scale"]

    @torch.no_grad()
    def follow(
        self, policy: ActorCriticPolicy, std_scale: float | Schedule, progress_remaining: float
    ) -> None:
        """Bring the noise of a policy to what the schedule says.

        :param policy: left as it is if it is no Gaussian
        :param std_scale: the setting; a number changes nothing
        :param progress_remaining: the share of training that is left
        :raises ConfigurationError: the schedule's value is no positive number
        """
        log_std = getattr(policy, "log_std", None)
        if log_std is None or not callable(std_scale):
            return
        scale = as_schedule(std_scale, "std_scale", positive=True)(progress_remaining)
        before, self.scale = self.scale, scale
        if before is not None and before != scale:
            log_std += math.log(scale / before)
