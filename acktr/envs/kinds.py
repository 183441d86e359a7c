"""Comparison of a value from a file with the kind of the value that it is to replace."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_INTEGERS = 2**63


def difference(value: Any, own: Any, name: str) -> str | None:
    """Tell where a value differs in kind from another one.

    :param value: from a file
    :param own: what stands there now; ``None`` says nothing of the kind
    :param name: of both
    :return: the end of a sentence; ``None`` if they are of one kind: numbers (whole where a whole one
        is, finite where a finite one is), strings, booleans, arrays of one shape, mappings of the
        same keys, lists and tuples of one length
    """
    if own is None:
        return None
    if isinstance(own, Mapping):
        if not isinstance(value, Mapping) or value.keys() != own.keys():
            return f"{name} is {_shown(value)}, not a mapping of {_shown(list(own))}"
        return _first(difference(value[key], own[key], f"{name}.{key}") for key in own)
    if isinstance(own, list | tuple):
        if not isinstance(value, type(own)) or len(value) != len(own):
            return f"{name} is {_shown(value)}, not a {type(own).__name__} of {len(own)} values"
        return _first(
            difference(v, o, f"{name}.{i}") for i, (v, o) in enumerate(zip(value, own, strict=True))
        )
    if isinstance(own, np.ndarray | Tensor):
        kinds: Any = Tensor if isinstance(own, Tensor) else (np.ndarray, np.generic, float)
        shapes = tuple(own.shape), (0,)  # of the last, nothing has been filled in yet
        if not isinstance(value, kinds) or (np.shape(value) != shapes[0] and own.shape != shapes[1]):
            return f"{name} is {_shown(value)}, not of the shape {tuple(own.shape)}"
        return None
    if isinstance(own, bool | np.bool_):
        holds = isinstance(value, bool | np.bool_)
        return None if holds else f"{name} is {_shown(value)}, not a boolean"
    if isinstance(own, int | np.integer):
        return None if is_whole(value) else f"{name} is {_shown(value)}, not a whole number"
    if isinstance(own, float | np.floating):
        number = is_whole(value) or isinstance(value, float | np.floating)
        holds = number and (math.isfinite(value) or not math.isfinite(own))
        return None if holds else f"{name} is {_shown(value)}, not a finite number"
    return (
        None if isinstance(value, type(own)) else f"{name} is {_shown(value)}, no {type(own).__name__}"
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_whole(value: Any, least: int = -_INTEGERS) -> bool:
    """Whether a value is a whole number of 64 bits that is not below another one."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and least <= value < _INTEGERS


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | Tensor):
        return f"an array of the shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
