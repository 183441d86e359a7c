"""Settings that change while training goes on: what they may be, and what they are now."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from acktr.errors import AcktrError, ConfigurationError


class CheckedSchedule:
    """A schedule whose values are numbers in the range of the argument that it is given for.

    :param name: of the argument
    :param schedule: of the share of training that is left, from 1 to 0; beyond that it is not asked
    :param holds: tells whether a value is in range
    :param range_: says the range, as in "must lie in [0, 1]"
    """

    def __init__(
        self, name: str, schedule: Schedule, holds: Callable[[float], bool], range_: str
    ) -> None:
        self.name, self.schedule, self.holds, self.range = name, schedule, holds, range_

    def __call__(self, progress_remaining: float) -> float:
        """Return the value at a share of training that is left.

        :raises ConfigurationError: it is no number in range, or the schedule itself raises
        """
        progress_remaining = _clamp(progress_remaining)
        try:
            value: Any = self.schedule(progress_remaining)
        except AcktrError:
            raise
        except Exception as error:  # whatever somebody's own function raises
            problem = " ".join(f"raised {type(error).__name__}: {error}".split())
            raise self._refusal(problem, progress_remaining) from error
        number = _number(value)
        if number is None or not self.holds(number):
            raise self._refusal(f"gave {value!r}", progress_remaining)
        return number

    def _refusal(self, problem: str, progress_remaining: float) -> ConfigurationError:
        where = f"at {progress_remaining:.3f} of the training left"
        return ConfigurationError(f"{self.name} {self.range}, but its schedule {problem} {where}.")

    def check_ends(self) -> None:
        """Ask for the first value and the last one, before anything is trained.

        :raises ConfigurationError: one is no number in range
        """
        self(1.0)
        self(0.0)

    def __repr__(self) -> str:
        return f"CheckedSchedule({self.name}, {self.schedule})"


def _clamp(progress_remaining: float) -> float:
    return min(max(float(progress_remaining), 0.0), 1.0)


def _number(value: Any) -> float | None:
    """Turn a number of Python, numpy or torch into a float; ``None`` for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: tensors of several
        return None


def as_schedule(
    value: float | str | Schedule, name: str = "A schedule", positive: bool = False
) -> CheckedSchedule:
    """Turn a number, a callable or a name into a schedule.

    ``"lin_A_B"`` goes linearly from A to B, ``"late_A_B"`` is A for the first half of training and goes
    linearly to B in the second; without B both end at 0.

    :param name: of the argument, for messages
    :param positive: whether a value must be positive and finite, and not only 0 or more
    :raises ConfigurationError: a string of another form, or a number below 0
    """

    def checked(schedule: Schedule) -> CheckedSchedule:
        if positive:
            return CheckedSchedule(
                name, schedule, lambda x: 0 < x < math.inf, "must stay positive and finite"
            )
        return CheckedSchedule(name, schedule, lambda x: x >= 0, "must not be negative")

    if isinstance(value, str):
        kind, *ends = value.split("_")
        start, end = _ends(ends if len(ends) > 1 else [*ends, "0"])
        if kind not in ("lin", "late") or not (0 <= start < math.inf and 0 <= end < math.inf):
            raise _no_schedule(name, value)
        linear = LinearSchedule(start, end, 1.0)
        if kind == "lin":
            return checked(linear)
        return checked(lambda progress_remaining: linear(min(2 * progress_remaining, 1.0)))
    if callable(value):
        return checked(value)
    number = _number(value)
    if number is None:
        raise _no_schedule(name, value)
    if not number >= 0:
        raise ConfigurationError(f"{name} must not be negative, got {value}.")
    return checked(ConstantSchedule(number))


def _no_schedule(name: str, value: Any) -> ConfigurationError:
    return ConfigurationError(
        f"{name} must be a number, a callable, 'lin_A_B' or 'late_A_B' with A, B >= 0 (B is 0 if it is "
        f"left out), not {value!r}."
    )


def _ends(ends: list[str]) -> tuple[float, float]:
    try:
        start, end = map(float, ends)
    except ValueError:
        return math.nan, math.nan
    return start, end


def as_discount(value: float | str | Schedule) -> CheckedSchedule:
    """Turn a number, ``"rise_A_B"``, ``"auto_A_B"`` or a callable into a schedule of gamma.

    With ``"rise_A_B"`` the horizon ``1 / (1 - gamma)`` grows by the same factor with each step, from
    that of A to that of B (Francois-Lavet et al. 2015, arXiv 1512.02011, raise it too, by another rule).
    A long one from the start rewards caution before anything else is learned; a short one to the end
    does not see what a fall costs. ``"auto_A_B"`` is the same schedule, from which
    :func:`acktr.learner.advantages.set_discount` departs where no episode ends early.

    :raises ConfigurationError: a string of another form, or discount factors that do not rise below 1
    """

    def checked(schedule: Schedule) -> CheckedSchedule:
        return CheckedSchedule("gamma", schedule, lambda x: 0 <= x <= 1, "must lie in [0, 1]")

    if not isinstance(value, str):
        if callable(value):
            return checked(value)
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise ConfigurationError(f"gamma must lie in [0, 1], got {value!r}.")
        return checked(ConstantSchedule(number))
    kind, *ends = value.split("_")
    start, end = _ends(ends)
    if kind not in ("rise", "auto") or not 0 <= start <= end < 1:
        raise ConfigurationError(
            "gamma must be a number, a callable, 'rise_A_B' or 'auto_A_B' with 0 <= A <= B < 1, "
            f"not {value!r}."
        )
    return checked(lambda progress: 1 - (1 - start) ** progress * (1 - end) ** (1 - progress))


def is_schedule(value: Any) -> bool:
    """Say whether a setting is a schedule (a callable, or its name) and not a number."""
    return callable(value) or isinstance(value, str)


class Scheduled(OnPolicyAlgorithm):
    """An algorithm whose settings may be schedules, each made of what its argument is at the time.

    As in SB3 the learning rate alone is turned into a schedule once, when the model is built:
    ``lr_schedule`` may be exchanged, ``learning_rate`` is not looked at again.
    """

    learning_rate: Any
    target_kl: Any
    std_scale: Any
    gamma: Any
    corrected_learning_rate: Any
    critic_learning_rate: Any
    critic_norm: str

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = as_schedule(self.learning_rate, "learning_rate")

    @property
    def target_kl_schedule(self) -> CheckedSchedule:
        """The radius of the trust region, nats."""
        return as_schedule(self.target_kl, "target_kl")

    @property
    def std_scale_schedule(self) -> CheckedSchedule:
        """What the learned standard deviation is multiplied with."""
        return as_schedule(self.std_scale, "std_scale", positive=True)

    @property
    def gamma_schedule(self) -> CheckedSchedule:
        """The discount factor."""
        return as_discount(self.gamma)

    @property
    def corrected_lr_schedule(self) -> CheckedSchedule:
        """eta_max in natural gradients as the measured KL corrects them; infinite for none."""
        return as_schedule(self.corrected_learning_rate or math.inf, "corrected_learning_rate")

    @property
    def critic_lr_schedule(self) -> CheckedSchedule:
        """The learning rate of a critic that learns by itself."""
        rate = self.critic_learning_rate
        if rate is None:
            rate = 0.3 if self.critic_norm == "gauss-newton" else 1e-3
        return as_schedule(rate, "critic_learning_rate")

    def check_schedules(self) -> None:
        """Ask for what the next update learns with, before it changes anything.

        :raises ConfigurationError: a schedule's value is not in its range
        """
        as_schedule(self.lr_schedule, "learning_rate")(self._current_progress_remaining)
        schedules = (self.target_kl_schedule, self.std_scale_schedule, self.corrected_lr_schedule)
        for schedule in (*schedules, self.critic_lr_schedule):
            schedule(self._current_progress_remaining)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the end, where SB3's figure is negative.
        self._current_progress_remaining = _clamp(1.0 - num_timesteps / max(total_timesteps, 1))
