"""Checks of the optimiser's arguments: one sentence for each thing that can be wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from acktr.kfac.blocks import Block
from acktr.kfac.damping import MAX_DAMPING, MIN_DAMPING
from acktr.kfac.options import EARLIER, GROUPS, grouped
from acktr.kfac.structure import Structure

# Of parameter groups, in states of versions that had them.
_GONE = ("length_floor", "lengths", "cold_start")


def with_earlier(options: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return groups of options with what was given by the names of 0.1.0, after a warning.

    :param options: the groups, as users give them
    :param earlier: further arguments
    :raises TypeError: one was none of 0.1.0 either
    """
    if not earlier:
        return dict(options)
    for name in earlier.keys() - EARLIER.keys():
        near = get_close_matches(name, [*EARLIER, *GROUPS], 1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise TypeError(f"KFAC has no argument {name!r}{hint}")
    found, clauses = grouped({**options, **earlier})
    warnings.warn(f"KFAC: {', '.join(clauses)}.", FutureWarning, stacklevel=3)
    return {**options, **found}


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
