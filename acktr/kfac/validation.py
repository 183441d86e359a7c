"""Checks of the optimiser's arguments: one sentence for each thing that can be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from acktr.kfac.blocks import WEIGHT_SHARING
from acktr.kfac.fisher import ESTIMATORS
from acktr.kfac.inverses import INVERSES


def check_options(
    stat_decay: float,
    fisher: str,
    inverse: str,
    weight_sharing: str,
    factor_period: int,
    inverse_period: int,
) -> None:
    """Check what holds for the whole optimiser.

    :raises ValueError: an argument out of its range
    """
    if not 0.0 < stat_decay <= 1.0:
        raise ValueError(f"stat_decay must lie in (0, 1], got {stat_decay}.")
    choices = (
        ("fisher", fisher, ESTIMATORS),
        ("inverse", inverse, tuple(INVERSES)),
        ("weight_sharing", weight_sharing, WEIGHT_SHARING),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    for name, period in (("factor_period", factor_period), ("inverse_period", inverse_period)):
        if period < 1:
            raise ValueError(f"{name} must be at least 1, got {period}.")


def check_group(group: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Check what each parameter group may set for itself.

    :param group: the settings of the group
    :param known: the settings that there are
    :raises ValueError: an unknown setting, or a value out of its range
    """
    # torch's schedulers add keys of their own, such as initial_lr: only a new group is checked.
    strangers = sorted(group.keys() - known.keys() - {"params"})
    if strangers:
        raise ValueError(f"A parameter group sets {strangers}; it may set {', '.join(known)}.")
    for name in ("lr", "damping", "weight_decay", "cold_start", "momentum"):
        value = group[name]
        if not isinstance(value, (int, float, Tensor)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}.")
    if not isinstance(group["cg_iterations"], int) or group["cg_iterations"] < 0:
        raise ValueError(f"cg_iterations must be 0 or more, got {group['cg_iterations']!r}.")
    if not group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}.")
    if group["target_kl"] is not None and not group["target_kl"] > 0:
        raise ValueError(
            f"target_kl must be positive (nats), or None for no bound, got {group['target_kl']}."
        )
