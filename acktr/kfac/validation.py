"""Checks of the optimiser's arguments: one sentence for each thing that can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.blocks import Block
from acktr.kfac.damping import MAX_DAMPING, MIN_DAMPING
from acktr.kfac.inverses import INVERSES
from acktr.kfac.likelihood import ESTIMATORS
from acktr.kfac.options import BY_NAME, RECURRENT, WEIGHT_SHARING, BlockOptions
from acktr.kfac.schedule import REFRESHES, Periods
from acktr.kfac.structure import Structure

# Of parameter groups, in states of versions that had them.
_GONE = ("length_floor", "lengths", "cold_start")


def check_options(fisher: str, refresh: str, periods: Periods) -> None:
    """Check what holds for the whole optimiser.

    :param fisher: one of :data:`acktr.kfac.likelihood.ESTIMATORS`
    :param refresh: one of :data:`acktr.kfac.schedule.REFRESHES`
    :param periods: when curvature is made anew
    :raises ValueError: an argument out of its range
    """
    _check_choice("fisher", fisher, ESTIMATORS)
    _check_choice("inverse_refresh", refresh, REFRESHES)
    for name, period in (("factor_period", periods.factors), ("inverse_period", periods.inverses)):
        if period < 1:
            raise ValueError(f"{name} must be at least 1, got {period}.")
    if periods.burn_in < 0:
        raise ValueError(f"burn_in must be 0 or more, got {periods.burn_in}.")


def block_options(
    stat_decay: float,
    inverse: str,
    weight_sharing: str,
    max_factor_size: int | str | None,
    statistics_dtype: torch.dtype | str | None,
    recurrent: str,
    layers: Mapping[str, str | None],
) -> BlockOptions:
    """Check how Kronecker blocks are to be made; the arguments are those of :class:`KFAC`.

    :raises ValueError: an argument out of its range
    """
    if not 0.0 < stat_decay <= 1.0:
        raise ValueError(f"stat_decay must lie in (0, 1], got {stat_decay}.")
    _check_choice("inverse", inverse, (*INVERSES, "ekfac"))
    _check_choice("weight_sharing", weight_sharing, WEIGHT_SHARING)
    if isinstance(max_factor_size, str):
        fits = max_factor_size == "auto"
    else:
        fits = max_factor_size is None or max_factor_size >= 1
    if not fits:
        raise ValueError(
            f"max_factor_size must be at least 1, 'auto', or None for no bound, got {max_factor_size!r}."
        )
    dtype = statistics_dtype
    if isinstance(dtype, str):  # as a preset writes it
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            "statistics_dtype must be a floating-point dtype such as torch.bfloat16, or None, got "
            f"{statistics_dtype!r}."
        )
    _check_choice("recurrent", recurrent, RECURRENT)
    for option, value, only in (
        ("inverse", inverse, "cholesky"),  # whose damping a chain's own inverse has
        ("weight_sharing", weight_sharing, "expand"),
    ):
        if recurrent != "independent" and value != only:
            raise ValueError(
                f"recurrent={recurrent!r} goes with {option}={only!r} alone, got {option}={value!r}: "
                "leave one out."
            )
    method, kind = ("eigen", "ekfac") if inverse == "ekfac" else (inverse, "kfac")
    sizes = weight_sharing, max_factor_size
    return BlockOptions(stat_decay, method, kind, *sizes, dtype, recurrent, dict(layers))


def check_layers(layers: Mapping[str, Any], module: nn.Module) -> None:
    """Check what is said of layers by name.

    :param layers: by dotted name of a module or a parameter
    :param module: the model
    :raises ValueError: there is no such layer, or no such word
    """
    known = {*dict(module.named_modules()), *dict(module.named_parameters())}
    for name, said in layers.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ValueError(
                f"layers names {name!r}, which is no module or parameter of the model"
                + (f": did you mean {near[0]!r}?" if near else ".")
            )
        if said not in BY_NAME:
            raise ValueError(
                f"layers[{name!r}] must be 'diagonal', or None to leave the layer alone, got {said!r}."
            )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def as_groups(
    module: nn.Module, given: Iterable[Any] | None, left_out: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """Return parameter groups as torch's optimisers take them, in dictionaries of their own.

    :param module: the model
    :param given: groups, or the parameters of one; ``None`` for all of the model's
    :param left_out: whether the parameter of a name is in none of those
    """
    if given is None:
        found: list[Any] = [p for name, p in module.named_parameters() if not left_out(name)]
    else:
        found = list(given)
    if found and all(isinstance(group, Mapping) for group in found):
        return [dict(group) for group in found]  # torch writes its defaults into what it is given
    return [{"params": found}]


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
    for name in ("lr", "damping", "weight_decay", "momentum"):
        value = group[name]
        if not isinstance(value, Real | Tensor) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}.")
    if not isinstance(group["cg_iterations"], Integral) or group["cg_iterations"] < 0:
        raise ValueError(f"cg_iterations must be 0 or more, got {group['cg_iterations']!r}.")
    for name in ("exact_scaling", "adapt_damping"):
        if not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, got {group[name]!r}.")
    if group["adapt_damping"] and not MIN_DAMPING <= group["damping"] <= MAX_DAMPING:
        raise ValueError(
            f"adapt_damping moves damping between {MIN_DAMPING:g} and {MAX_DAMPING:g}: let it begin "
            f"there, got {group['damping']}."
        )
    if not group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}.")
    if group["target_kl"] is not None and not group["target_kl"] > 0:
        raise ValueError(
            f"target_kl must be positive (nats), or None for no bound, got {group['target_kl']}."
        )


def without_gone(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return saved parameter groups without what those of older versions had.

    :param groups: of a ``state_dict``
    :raises ValueError: one asks for what is gone
    """
    for group in groups:
        if group.get("length_floor", 0.0) != 0.0:
            raise ValueError(
                f"This state has length_floor {group['length_floor']}, which is gone: begin a new "
                "optimiser."
            )
    return [{k: x for k, x in group.items() if k not in _GONE} for group in groups]


def check_ready(blocks: Iterable[Block], structure: Structure) -> None:
    """Check that whatever has a gradient has statistics.

    :param blocks: with a gradient
    :param structure: knows the parameters that have no block yet
    :raises RuntimeError: names the first that has none
    """
    missing = [block.name for block in blocks if not block.ready]
    if not missing:
        for i in range(len(structure.groups)):
            without = structure.without_block(i)
            missing += [structure.parameters.layer_of(p) for p in without if p.grad is not None]
    if missing:
        raise RuntimeError(
            f"Layer {missing[0]!r} has a gradient but no curvature: run its forward pass inside "
            "`with kfac.capture():` and call update_curvature before step."
        )
