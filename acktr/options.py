"""Checks of ACKTR's arguments, and the schedules that they may name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from acktr.errors import ConfigurationError
from acktr.precision import PRECISIONS

CRITIC_NORMS = ("gauss-newton", "euclidean")


def as_schedule(value: float | str | Schedule) -> Schedule:
    """Turn a number, a callable or a name into a schedule.

    ``"lin_A_B"`` goes linearly from A to B, ``"late_A_B"`` is A for the first half of training and goes
    linearly to B in the second; without B both end at 0.

    :raises ConfigurationError: a string of another form, or a number below 0
    """
    if isinstance(value, str):
        kind, *ends = value.split("_")
        try:
            start, end = map(float, ends if len(ends) > 1 else [*ends, "0"])
        except ValueError:
            start, end = math.nan, math.nan
        if kind not in ("lin", "late") or not (start >= 0 and end >= 0):
            raise ConfigurationError(
                "A schedule must be a number, a callable, 'lin_A_B' or 'late_A_B' with A, B >= 0 (B is "
                f"0 if it is left out), not {value!r}."
            )
        linear = LinearSchedule(start, end, 1.0)
        if kind == "lin":
            return FloatSchedule(linear)
        return FloatSchedule(lambda progress_remaining: linear(min(2 * progress_remaining, 1.0)))
    if not callable(value) and not value >= 0:
        raise ConfigurationError(f"A schedule must not be negative, got {value}.")
    return FloatSchedule(value)


def as_discount(value: float | str | Schedule) -> Schedule:
    """Turn a number, ``"rise_A_B"``, ``"auto_A_B"`` or a callable into a schedule of gamma.

    With ``"rise_A_B"`` the horizon ``1 / (1 - gamma)`` grows by the same factor with each step, from
    that of A to that of B (Francois-Lavet et al. 2015, arXiv 1512.02011, raise it too, by another rule).
    A long one from the start rewards caution before anything else is learned; a short one to the end
    does not see what a fall costs. ``"auto_A_B"`` is the same schedule, from which
    :func:`acktr.advantages.set_discount` departs where no episode ends early.

    :raises ConfigurationError: a string of another form, or discount factors that do not rise below 1
    """
    if not isinstance(value, str):
        return FloatSchedule(value)
    kind, *ends = value.split("_")
    try:
        start, end = map(float, ends)
    except ValueError:
        start, end = math.nan, math.nan
    if kind not in ("rise", "auto") or not 0 <= start <= end < 1:
        raise ConfigurationError(
            "gamma must be a number, a callable, 'rise_A_B' or 'auto_A_B' with 0 <= A <= B < 1, "
            f"not {value!r}."
        )
    return lambda progress: 1 - (1 - start) ** progress * (1 - end) ** (1 - progress)


def as_trace_decay(value: float | str) -> tuple[float, float]:
    """Turn lambda of GAE into what it is, and what it is where long episodes end by time alone.

    A number is both; ``"auto_A_B"`` names them. :func:`acktr.advantages.set_discount` tells which one a
    rollout has.

    :raises ConfigurationError: another string, or a number beyond [0, 1]
    """
    kind, *ends = value.split("_") if isinstance(value, str) else ("auto", value, value)
    try:
        decay, lasting = map(float, ends)
    except (TypeError, ValueError):
        decay = lasting = math.nan
    if kind != "auto" or not (0 <= decay <= 1 and 0 <= lasting <= 1):
        raise ConfigurationError(
            "gae_lambda must be a number in [0, 1], or 'auto_A_B' with two of them, the second where "
            f"long episodes end by time alone, got {value!r}."
        )
    return decay, lasting


def is_schedule(value: Any) -> bool:
    """Say whether a setting is a schedule (a callable, or its name) and not a number."""
    return callable(value) or isinstance(value, str)


_AT_LEAST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_steps": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "n_actor_updates": (lambda x: x >= 1, "must be at least 1"),
    "n_critic_updates": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "critic_batch_size": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "cg_iterations": (lambda x: isinstance(x, int) and x >= 0, "must be 0 or more"),
    "sub_sampling_factor": (lambda x: isinstance(x, int) and x >= 1, "must be at least 1"),
    "gamma": (lambda x: is_schedule(x) or 0 <= x <= 1, "must lie in [0, 1]"),
    "momentum": (lambda x: 0 <= x < 1, "must lie in [0, 1)"),
    "damping": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "critic_damping": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "vf_coef": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "critic_learning_rate": (
        lambda x: x is None or is_schedule(x) or x > 0,
        "must be positive, or None",
    ),
    "corrected_learning_rate": (
        lambda x: x is None or is_schedule(x) or x > 0,
        "must be positive, or None",
    ),
    "std_scale": (lambda x: is_schedule(x) or x > 0, "must be positive"),
    "target_kl": (lambda x: is_schedule(x) or x > 0, "must be positive (nats)"),
    "critic_trust_region": (lambda x: x is None or x > 0, "must be positive, or None"),
    "precision": (lambda x: x in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}"),
    "cuda_graphs": (lambda x: isinstance(x, bool), "must be True or False"),
    "normalize_value_targets": (
        lambda x: x is None or isinstance(x, bool),
        "must be True, False or None",
    ),
    "ent_coef": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "stats_window_size": (lambda x: x >= 1, "must be at least 1"),
    "normalize_advantage": (
        lambda x: isinstance(x, bool) or x == "running",
        "must be True, False or 'running'",
    ),
    "critic_norm": (lambda x: x in CRITIC_NORMS, f"must be one of {', '.join(CRITIC_NORMS)}"),
    "critic_std": (
        lambda x: x == "adaptive" or (not isinstance(x, str) and x > 0),
        "must be positive, or 'adaptive'",
    ),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the constructor's arguments.

    :param arguments: by name
    :raises ConfigurationError: names the argument, its range and what was given
    """
    for name, (holds, range_) in _AT_LEAST.items():
        if not holds(arguments[name]):
            raise ConfigurationError(f"{name} {range_}, got {arguments[name]!r}.")
    target_kl = arguments["target_kl"]
    if not is_schedule(target_kl) and not target_kl > 0:
        raise ConfigurationError(f"target_kl must be positive (nats), got {target_kl!r}.")
    if arguments["corrected_learning_rate"] is not None and not arguments["kl_feedback"]:
        raise ConfigurationError(
            "corrected_learning_rate needs the measured KL: leave kl_feedback at True, or pass "
            "corrected_learning_rate=None and limit steps with learning_rate."
        )
    rates = ("learning_rate", "corrected_learning_rate", "critic_learning_rate")
    for name in (*rates, "target_kl", "std_scale"):
        if arguments[name] is not None:
            as_schedule(arguments[name])
    std_scale = arguments["std_scale"]
    if isinstance(std_scale, str) and not min(map(as_schedule(std_scale), (0.0, 1.0))) > 0:
        raise ConfigurationError(
            f"std_scale must stay positive, so 'lin_A_B' or 'late_A_B' with A, B > 0, not {std_scale!r}."
        )
    as_discount(arguments["gamma"])
    as_trace_decay(arguments["gae_lambda"])
    owned = {"lr", "damping", "momentum", "target_kl", "cg_iterations", "param_groups"}
    owned |= {"weight_decay", "process_group"}
    for kwargs, its_own in (("kfac_kwargs", owned), ("critic_kfac_kwargs", owned - {"cg_iterations"})):
        for name in sorted(its_own & (arguments[kwargs] or {}).keys()):
            raise ConfigurationError(
                f"{kwargs} must not hold {name}: ACKTR sets it from its own arguments (learning_rate, "
                "damping, momentum, weight_decay, target_kl, cg_iterations and their critic_ forms)."
            )
    for name in ("optimizer_class", "optimizer_kwargs"):
        if name in (arguments["policy_kwargs"] or {}):
            raise ConfigurationError(
                f"policy_kwargs must not hold {name}: ACKTR's optimiser is K-FAC; its options go into "
                "kfac_kwargs."
            )
    log_std = (arguments["policy_kwargs"] or {}).get("log_std_init", "auto")
    if log_std != "auto" and not (isinstance(log_std, Real) and math.isfinite(log_std)):
        raise ConfigurationError(
            f"log_std_init in policy_kwargs must be a finite number or 'auto', got {log_std!r}."
        )
    if arguments["use_sde"] or (arguments["policy_kwargs"] or {}).get("use_sde"):
        raise ConfigurationError(
            "gSDE (use_sde) is not supported: its Fisher is not that of a Gaussian in the mean; leave "
            "it out."
        )


def check_joint_critic(n_critic_updates: int | None, critic_batch_size: int | None) -> None:
    """Check what a Gauss-Newton critic on a shared trunk, which learns with the actor, cannot have.

    :raises ConfigurationError: several updates, or minibatches
    """
    if (n_critic_updates or 1) > 1 or critic_batch_size is not None:
        raise ConfigurationError(
            "n_critic_updates > 1 and critic_batch_size need a critic that learns by itself: a "
            "Gauss-Newton critic on a shared trunk learns with the actor. Pass critic_norm='euclidean' "
            "or policy_kwargs=dict(share_features_extractor=False)."
        )


def check_graphs(critic_std: float | str) -> None:
    """Check that the critic's sigma is not a number from the host: a CUDA graph repeats the one it saw.

    :raises ConfigurationError: it follows the Bellman error
    """
    if critic_std == "adaptive":
        raise ConfigurationError(
            "cuda_graphs=True does not go with critic_std='adaptive', which is another number in every "
            "update: leave one of them out."
        )


def valid_range(name: str) -> str | None:
    """Say what an argument must be, as :func:`check_arguments` does; ``None`` where it says nothing."""
    return _AT_LEAST[name][1] if name in _AT_LEAST else None
