"""Settings that change while training goes on: objects that print what they are; their names in YAML.

A schedule is a callable of the share of training that is left, from 1 to 0, as in Stable-Baselines3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule

from acktr.errors import AcktrError, ConfigurationError


@dataclass(frozen=True)
class Linear:
    """A value that goes linearly from one number to another.

    :param start: at the beginning, 0 or more
    :param end: at the end, 0 or more
    :raises ConfigurationError: one is no such number
    """

    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        ends = self.start, self.end
        if not (_are_numbers(*ends) and all(0 <= end < math.inf for end in ends)):
            name = type(self).__name__
            raise ConfigurationError(f"{name}(A, B) needs finite A and B, 0 or more, got {self}.")

    def __call__(self, progress_remaining: float) -> float:
        """Return the value at a share of training that is left."""
        return self.start + (1 - progress_remaining) * (self.end - self.start)


@dataclass(frozen=True)
class Late(Linear):
    """A value that stays for the first half of training and goes linearly to another in the second."""

    def __call__(self, progress_remaining: float) -> float:
        """Return the value at a share of training that is left."""
        return super().__call__(min(2 * progress_remaining, 1.0))


@dataclass(frozen=True)
class Horizon:
    """A discount factor whose horizon ``1 / (1 - gamma)`` grows by the same factor with each step.

    A long horizon from the start rewards caution before anything else is learned; a short one to the end
    does not see what a fall costs. (Francois-Lavet et al. 2015, arXiv 1512.02011, raise it too, by
    another rule.) It stays within the time limit of an episode
    (:class:`acktr.learner.discount.Discount`).

    :param start: gamma at the beginning
    :param end: gamma at the end, at least ``start`` and below 1
    :param lasting: what gamma is where no episode ends but by time: ``"end"``, that of the end at once,
        ``"start"``, that of the start as long as that is so, or ``"rise"``, as elsewhere
    :param samples: over which gamma rises, counted over all calls of ``learn``; ``None``: over each call
    :raises ConfigurationError: they do not rise within [0, 1), ``lasting`` is none of these, or
        ``samples`` is no number of samples
    """

    start: float
    end: float
    lasting: Literal["end", "start", "rise"] = "end"
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.lasting not in _HORIZONS.values():
            raise ConfigurationError(
                f"Horizon needs 'end', 'start' or 'rise' for lasting, got {self.lasting!r}."
            )
        if not (_are_numbers(self.start, self.end) and 0 <= self.start <= self.end < 1):
            raise ConfigurationError(f"Horizon(A, B) needs 0 <= A <= B < 1, got {self}.")
        whole = isinstance(self.samples, int) and not isinstance(self.samples, bool)
        if self.samples is not None and not (whole and self.samples >= 1):
            raise ConfigurationError(f"Horizon needs at least 1 sample, or None, got {self.samples!r}.")

    def left(self, samples: int, progress_remaining: float) -> float:
        """Return the share of the rise that is left.

        :param samples: learned from so far
        :param progress_remaining: the share of training that is left
        """
        return progress_remaining if self.samples is None else clamped(1.0 - samples / self.samples)

    def __call__(self, progress_remaining: float) -> float:
        """Return gamma at a share of the rise that is left."""
        left = progress_remaining
        return 1 - (1 - self.start) ** left * (1 - self.end) ** (1 - left)


@dataclass(frozen=True)
class TraceDecay:
    """Lambda of GAE that is smaller where long episodes end by time alone.

    :param usual: in [0, 1]
    :param lasting: where long episodes end by time alone, in [0, 1]; see
        :class:`acktr.learner.discount.Discount`
    :raises ConfigurationError: one is beyond
    """

    usual: float
    lasting: float

    def __post_init__(self) -> None:
        if not (
            _are_numbers(self.usual, self.lasting) and 0 <= self.usual <= 1 and 0 <= self.lasting <= 1
        ):
            raise ConfigurationError(f"TraceDecay(A, B) needs A and B in [0, 1], got {self}.")


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)


# Names ---------------------------------------------------------------------------------------

_NAMED: Mapping[str, Callable[..., Any]] = {"lin": Linear, "late": Late}
_HORIZONS: Mapping[str, Literal["end", "start", "rise"]] = {
    "auto": "end",
    "early": "start",
    "rise": "rise",
}
_OF_GAMMA: Mapping[str, Callable[..., Any]] = {
    kind: partial(Horizon, lasting=lasting) for kind, lasting in _HORIZONS.items()
}
_OF_LAMBDA: Mapping[str, Callable[..., Any]] = {"auto": TraceDecay}


def parse(name: str, text: str) -> Any:
    """Read a schedule as YAML and the command line write it.

    ``lin_A_B`` and ``late_A_B`` (B is 0 if it is left out) for any argument but these two:
    ``auto_A_B``, ``early_A_B`` and ``rise_A_B`` for ``gamma``, each with ``_N`` behind it for N samples,
    and ``auto_A_B`` for ``gae_lambda``.

    :param name: of the argument; what stands before a dot does not count
    :param text: what was written
    :return: a :class:`Linear`, :class:`Late`, :class:`Horizon` or :class:`TraceDecay`
    :raises ConfigurationError: it is none of these
    """
    kinds = {"gamma": _OF_GAMMA, "gae_lambda": _OF_LAMBDA}.get(name, _NAMED)
    kind, *ends = text.split("_")
    if kinds is _NAMED and len(ends) == 1:
        ends.append("0")
    try:
        samples = {"samples": int(ends.pop())} if kinds is _OF_GAMMA and len(ends) == 3 else {}
        start, end = map(float, ends)
        return kinds[kind](start, end, **samples)
    except (KeyError, ValueError) as error:  # ConfigurationError is one
        raise ConfigurationError(f"{name} must be {_forms(name)}, not {text!r}.") from error


def _forms(name: str) -> str:
    if name == "gamma":
        return (
            "a number, a callable, 'auto_A_B', 'early_A_B' or 'rise_A_B' with 0 <= A <= B < 1, or one "
            "of these with '_N' for N samples"
        )
    if name == "gae_lambda":
        return (
            "a number in [0, 1], or 'auto_A_B' with two of them, the second where long episodes end by "
            "time alone"
        )
    return "a number, a callable, 'lin_A_B' or 'late_A_B' with A, B >= 0 (B is 0 if it is left out)"


def written(value: Any) -> Any:
    """Write a schedule as :func:`parse` reads it; anything else stays as it is."""
    ends: tuple[float, ...]
    if isinstance(value, Linear):
        kind, ends = ("late" if isinstance(value, Late) else "lin"), (value.start, value.end)
    elif isinstance(value, Horizon):
        kinds = {lasting: kind for kind, lasting in _HORIZONS.items()}
        samples = () if value.samples is None else (value.samples,)
        kind, ends = kinds[value.lasting], (value.start, value.end, *samples)
    elif isinstance(value, TraceDecay):
        kind, ends = "auto", (value.usual, value.lasting)
    else:
        return value
    return "_".join([kind, *(str(end).removesuffix(".0") for end in ends)])


# Values --------------------------------------------------------------------------------------


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
        progress_remaining = clamped(progress_remaining)
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


def clamped(progress_remaining: float) -> float:
    """Return a share of training within [0, 1]; the last rollout goes beyond the end."""
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
    value: float | Schedule, name: str = "A schedule", positive: bool = False
) -> CheckedSchedule:
    """Turn a number or a callable into a schedule.

    :param name: of the argument, for messages
    :param positive: whether a value must be positive and finite, and not only 0 or more
    :raises ConfigurationError: it is neither, or a number below 0; a string is told what it is now
    """

    def checked(schedule: Schedule) -> CheckedSchedule:
        if positive:
            return CheckedSchedule(
                name, schedule, lambda x: 0 < x < math.inf, "must stay positive and finite"
            )
        return CheckedSchedule(name, schedule, lambda x: x >= 0, "must not be negative")

    if callable(value):
        return checked(value)
    number = _as_number(value, name, "a number or a callable")
    if not number >= 0:
        raise ConfigurationError(f"{name} must not be negative, got {value}.")
    return checked(ConstantSchedule(number))


def as_discount(value: float | Schedule) -> CheckedSchedule:
    """Turn a number, a :class:`Horizon` or another callable into a schedule of gamma.

    :raises ConfigurationError: a number beyond [0, 1], or something else
    """

    def checked(schedule: Schedule) -> CheckedSchedule:
        return CheckedSchedule("gamma", schedule, lambda x: 0 <= x <= 1, "must lie in [0, 1]")

    if callable(value):
        return checked(value)
    number = _as_number(value, "gamma", "a number in [0, 1] or a callable")
    if not 0 <= number <= 1:
        raise ConfigurationError(f"gamma must lie in [0, 1], got {value!r}.")
    return checked(ConstantSchedule(number))


def as_trace_decay(value: float | TraceDecay) -> TraceDecay:
    """Turn a number into a lambda of GAE that is the same everywhere.

    :raises ConfigurationError: a number beyond [0, 1], or something else
    """
    if isinstance(value, TraceDecay):
        return value
    number = _as_number(value, "gae_lambda", "a number in [0, 1] or a TraceDecay")
    if not 0 <= number <= 1:
        raise ConfigurationError(f"gae_lambda must lie in [0, 1], got {value!r}.")
    return TraceDecay(number, number)


def _as_number(value: Any, name: str, wanted: str) -> float:
    number = _number(value)
    if number is not None:
        return number
    if isinstance(value, str):
        try:
            now = parse(name.rpartition(".")[2], value)
        except ConfigurationError:
            pass
        else:
            raise ConfigurationError(
                f"{name}={value!r} is how YAML and the command line write it: in Python give {now}, "
                "from acktr.schedules."
            )
    raise ConfigurationError(f"{name} must be {wanted}, not {value!r}.")
