"""Checks of ACKTR's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from acktr.errors import ConfigurationError
from acktr.networks import check_widths
from acktr.precision import PRECISIONS
from acktr.schedules import as_discount, as_schedule, is_schedule

CRITIC_NORMS = ("gauss-newton", "euclidean")


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


_AT_LEAST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_steps": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "n_critic_updates": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "critic_batch_size": (lambda x: x is None or x >= 1, "must be at least 1, or None"),
    "cg_iterations": (lambda x: isinstance(x, int) and x >= 0, "must be 0 or more"),
    "sub_sampling_factor": (lambda x: isinstance(x, int) and x >= 1, "must be at least 1"),
    "gamma": (lambda x: is_schedule(x) or 0 <= x <= 1, "must lie in [0, 1]"),
    "damping": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
    "critic_damping": (lambda x: 0 <= x < math.inf, "must be finite, 0 or more"),
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


def _holds(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except (TypeError, ValueError, RuntimeError):  # of a type that is not compared with numbers
        return False


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the constructor's arguments.

    :param arguments: by name
    :raises ConfigurationError: names the argument, its range and what was given
    """
    for name, (holds, range_) in _AT_LEAST.items():
        if not _holds(holds, arguments[name]):
            raise ConfigurationError(f"{name} {range_}, got {arguments[name]!r}.")
    if arguments["corrected_learning_rate"] is not None and not arguments["kl_feedback"]:
        raise ConfigurationError(
            "corrected_learning_rate needs the measured KL: leave kl_feedback at True, or pass "
            "corrected_learning_rate=None and limit steps with learning_rate."
        )
    rates = ("learning_rate", "corrected_learning_rate", "critic_learning_rate")
    for name in (*rates, "target_kl"):
        if name == "learning_rate" or arguments[name] is not None:
            as_schedule(arguments[name], name).check_ends()
    std_scale = arguments["std_scale"]
    if isinstance(std_scale, str) and not min(map(as_schedule(std_scale, "std_scale"), (0.0, 1.0))) > 0:
        raise ConfigurationError(
            f"std_scale must stay positive, so 'lin_A_B' or 'late_A_B' with A, B > 0, not {std_scale!r}."
        )
    as_schedule(std_scale, "std_scale", positive=True).check_ends()
    as_discount(arguments["gamma"]).check_ends()
    as_trace_decay(arguments["gae_lambda"])
    owned = {"lr", "damping", "target_kl", "cg_iterations", "param_groups", "process_group"}
    for kwargs, its_own in (("kfac_kwargs", owned), ("critic_kfac_kwargs", owned - {"cg_iterations"})):
        for name in sorted(its_own & (arguments[kwargs] or {}).keys()):
            raise ConfigurationError(
                f"{kwargs} must not hold {name}: ACKTR sets it from its own arguments (learning_rate, "
                "damping, target_kl, cg_iterations and their critic_ forms)."
            )
    for name in ("optimizer_class", "optimizer_kwargs"):
        if name in (arguments["policy_kwargs"] or {}):
            raise ConfigurationError(
                f"policy_kwargs must not hold {name}: ACKTR's optimiser is K-FAC; its options go into "
                "kfac_kwargs."
            )
    net_arch = (arguments["policy_kwargs"] or {}).get("net_arch")
    if isinstance(net_arch, list) and any(isinstance(part, Mapping) for part in net_arch[1:]):
        raise ConfigurationError(
            f"net_arch in policy_kwargs has shared layers before those of pi and vf ({net_arch}), which "
            "SB3 has no more: give dict(pi=[...], vf=[...]), or a features extractor to share."
        )
    check_widths(arguments["policy_kwargs"])
    log_std = (arguments["policy_kwargs"] or {}).get("log_std_init", "auto")
    if log_std != "auto" and not (isinstance(log_std, Real) and math.isfinite(log_std)):
        raise ConfigurationError(
            f"log_std_init in policy_kwargs must be a finite number or 'auto', got {log_std!r}."
        )
    if (arguments["policy_kwargs"] or {}).get("squash_output"):
        raise ConfigurationError(
            "squash_output in policy_kwargs is for gSDE, which is not supported: actions outside their "
            "bounds are clipped; leave it out."
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
