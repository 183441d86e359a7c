"""The standard deviation of a Gaussian policy: how it begins, how it searches, and how it fades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from acktr import distributed
from acktr.rollout.noise import autocorrelations
from acktr.schedules import as_schedule

_STEPS_TOGETHER = 4  # over which colored noise moves a body as far as white
_DOUBLING = 7_000  # samples that tell nothing, after which noise has doubled
_NO_RANGE = 1e6
_ENOUGH = 10  # rollouts or episodes in a row that tell something end the search


def auto_log_std(action_dim: int, color: float = 0.0) -> float:
    """Return the logarithm of a good standard deviation for a Gaussian policy to begin with.

    Noise of each actuator moves the same body, so that of d actuators is ``sigma sqrt(d)`` together: it
    may be 0.87, which is 0.5 for each of three. More than 0.5 is cut off at the bounds of many action
    spaces, so fewer actuators have no more. What is tried for a while moves a body further: colored
    noise sums up in four steps to what white noise does. These are figures of measurement (the page of
    ablations).

    :param action_dim: d, at least 1
    :param color: beta of the noise (:class:`acktr.rollout.noise.ColoredNoise`)
    """
    r = autocorrelations(color, _STEPS_TOGETHER).tolist()
    correlated = sum((_STEPS_TOGETHER - lag) * 2 * r[lag] for lag in range(1, _STEPS_TOGETHER))
    further = math.sqrt(1 + correlated / _STEPS_TOGETHER)
    return min(-0.7, math.log(0.87 / math.sqrt(action_dim) / further))


def action_scale(space: spaces.Box) -> np.ndarray:
    """Return half of the range of each action, ``(d,)``: the unit of noise; 1 where there is none.

    :param space: a range beyond a million stands for none
    """
    half = (space.high.astype(np.float64) - space.low).ravel() / 2
    return np.where((half > 0) & (half < _NO_RANGE), half, 1.0)


@torch.no_grad()
def begin_noise(policy: ActorCriticPolicy) -> None:
    """Bring noise that began with ``"auto"`` to the units of the actions; once, after it is built."""
    log_std = getattr(policy, "log_std", None)
    if isinstance(log_std, Tensor):
        log_std += _log_scale(policy, log_std)


def _log_scale(policy: ActorCriticPolicy, log_std: Tensor) -> Tensor:
    assert isinstance(policy.action_space, spaces.Box)
    scale = torch.from_numpy(np.log(action_scale(policy.action_space))).to(log_std)
    # Somebody's own may have one number for all.
    return scale if scale.shape == log_std.shape else torch.zeros_like(log_std)


def resolve_log_std(
    policy_kwargs: Mapping[str, Any], space: spaces.Space, color: float
) -> tuple[dict[str, Any], bool]:
    """Return the policy's arguments with a number for ``log_std_init="auto"``, or for none.

    :param space: of the actions; what is not a ``Box`` has no standard deviation, and needs no number
    :param color: beta of the noise
    :return: the arguments, and whether the number of a ``Box`` was left to this
    """
    kwargs = {"log_std_init": "auto", **policy_kwargs}
    is_auto = kwargs["log_std_init"] == "auto"
    if is_auto:
        del kwargs["log_std_init"]
        if isinstance(space, spaces.Box):
            kwargs["log_std_init"] = auto_log_std(get_action_dim(space), color)
    return kwargs, is_auto and isinstance(space, spaces.Box)


class Noise:
    """The standard deviation of a Gaussian policy beside what it learns.

    **It searches.** A rollout in which all rewards are the same, and no episode ends but by time, tells
    nothing. With each of them noise that began with ``"auto"`` grows, to half of the range of an action
    at most: what is never found with little noise cannot be learned. The actor does not learn from it:
    its advantages are errors of the critic alone, and would lead the mean away to where less is tried.
    Ten rollouts in a row that tell something end the search for good, and so do ten episodes: who earns
    the same at each step later on may just do everything right, and of rewards that come late the critic
    tells the steps before.

    **It follows a schedule.** What is learned is a factor of its own: ``log_std`` moves by the logarithm
    of what the schedule has now over what is in force, so that however often ``learn`` is called, the
    noise is what was learned times what the schedule says. What it says first is taken as in force
    already. (In the runs of Schulman et al. 2017, arXiv 1707.06347, table 4, on Roboschool the standard
    deviation is all schedule.) The KL of such a move, ``(change of log_std)^2`` for each dimension of an
    action, is far below the radius of a trust region, and not counted.

    :param searches: whether it grows while nothing is found
    """

    def __init__(self, searches: bool = False) -> None:
        self.scale: float | None = None  # in force
        self.searches = searches  # still
        self.told, self.episodes = 0, 0  # rollouts and episodes in a row that told something
        self._rewards = math.inf, -math.inf  # the lowest of this rollout, and the highest
        self._ended = False
        self._counts = [0, 0]  # episodes of this rollout that told nothing, and something

    def state_dict(self) -> dict[str, Any]:
        """Return what is in force, and how the search goes."""
        return {
            "scale": self.scale,
            "searches": self.searches,
            "told": self.told,
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.scale, self.searches = state["scale"], state["searches"]
        self.told, self.episodes = state["told"], state["episodes"]

    def look(self, rewards: np.ndarray, infos: Sequence[Mapping[str, Any]], dones: np.ndarray) -> None:
        """Look at one step of a rollout.

        :param rewards: as the environments give them, ``(n_envs,)``
        :param infos: of each environment
        :param dones: whether an episode is over, ``(n_envs,)``
        """
        low, high = self._rewards
        self._rewards = min(low, float(rewards.min())), max(high, float(rewards.max()))
        for info, reward in compress(zip(infos, rewards, strict=True), dones):
            ended = not info.get("TimeLimit.truncated")
            self._ended |= ended
            if episode := info.get("episode"):  # the Monitor's
                same = math.isclose(
                    episode["r"], float(reward) * episode["l"], rel_tol=1e-4, abs_tol=1e-4
                )
                self._counts[ended or not same] += 1

    @torch.no_grad()
    def search(self, policy: ActorCriticPolicy, samples: int) -> bool:
        """Let the noise grow if the last rollout told nothing.

        :param policy: left as it is if it is no Gaussian
        :param samples: of the last rollout, of all ranks
        :return: whether the actor should learn from it
        """
        log_std = getattr(policy, "log_std", None)
        if not self.searches or log_std is None:
            return True
        low, high = self._rewards
        own = log_std.new_tensor([low < high or self._ended, *self._counts], dtype=torch.float64)
        told, silent, telling = (round(x * distributed.size()) for x in distributed.mean(own).tolist())
        self._rewards, self._ended, self._counts = (math.inf, -math.inf), False, [0, 0]
        self.told = self.told + 1 if told else 0
        self.episodes = 0 if silent else self.episodes + telling
        self.searches = max(self.told, self.episodes) < _ENOUGH
        if not told and log_std.requires_grad:  # what is frozen stays
            grown = log_std + math.log(2) * samples / _DOUBLING
            log_std.copy_(torch.maximum(log_std, grown.minimum(_log_scale(policy, log_std))))
        return bool(told)

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
