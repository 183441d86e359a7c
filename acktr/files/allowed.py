"""The classes that a saved file may name: an allow-list of what is loaded anyway; none is imported."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import buffers, policies, preprocessing, torch_layers
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

_MODULES: list[ModuleType] = [nn, torch_layers, policies, buffers, preprocessing, spaces]
_BASES = (nn.Module, buffers.BaseBuffer, spaces.Space)
SCHEDULES = {cls.__name__: cls for cls in (ConstantSchedule, FloatSchedule, LinearSchedule)}
SETTINGS: dict[str, type] = {}  # dataclasses, by their name
# Of those whose earlier files have other values: what builds them, by name.
READERS: dict[str, Callable[..., Any]] = {}
_EARLIER: dict[str, str] = {}  # module as earlier files name it, and as it is named now


def allow(
    modules: Iterable[ModuleType] = (),
    settings: Iterable[type] = (),
    earlier: Mapping[str, str] | None = None,
) -> None:
    """Let files name further classes; a module that reads such files calls this when it is imported.

    :param modules: whose networks, policies and buffers may be named
    :param settings: dataclasses that check themselves, whose values are stored
    :param earlier: for modules that have moved, as earlier files name them, where they are now
    """
    _MODULES.extend(modules)
    SETTINGS.update({cls.__name__: cls for cls in settings})
    _EARLIER.update(earlier or {})
    allowed_classes.cache_clear()


def is_class(value: Any) -> TypeGuard[type]:
    """Tell whether a value is a class; ``dict[str, Tensor]`` is none.

    On Python 3.10 ``isinstance(dict[str, Tensor], type)`` is true, and ``inspect.isclass`` with it: the
    alias hands ``__class__`` through to ``dict``. ``issubclass`` then raises.
    """
    return issubclass(type(value), type)


def name_of(cls: type) -> str:
    """Return the dotted name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def allowed_classes() -> Mapping[str, type]:
    """Return the allowed classes by their dotted names."""
    classes = {name_of(cls): cls for module in _MODULES for cls in _classes_in(module)}
    moved = {
        name.replace(f"{now}.", f"{before}.", 1): cls
        for before, now in _EARLIER.items()
        for name, cls in classes.items()
        if name.startswith(f"{now}.")
    }
    return {**moved, **classes}


@contextlib.contextmanager
def earlier_modules() -> Iterator[None]:
    """Let pickles inside ``with`` name modules that have moved as earlier files name them."""
    names = {name: sys.modules[now] for name, now in _EARLIER.items() if name not in sys.modules}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _classes_in(module: Any) -> Iterator[type]:
    for value in vars(module).values():
        if is_class(value) and issubclass(value, _BASES):
            yield value


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype, such as ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def _dtypes() -> Mapping[str, torch.dtype]:
    # Not getattr: torch imports modules for names that it does not know yet.
    return {dtype_name(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


def find_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name.

    :raises KeyError: there is none
    """
    return _dtypes()[name]


ARRAYS = "?bBhHiIlLqQefd"  # numbers that are stored, by numpy's letters
_ARRAY_DTYPES = {str(np.dtype(char)): np.dtype(char) for char in ARRAYS}


def find_array_dtype(name: str) -> np.dtype:
    """Return the numpy dtype of a name.

    :raises KeyError: it is none of those that are stored
    """
    return _ARRAY_DTYPES[name]


def space_to_plain(space: spaces.Space) -> dict[str, Any] | None:
    """Describe one of gymnasium's spaces by plain values and arrays; ``None`` for any other."""
    kind = type(space)
    if kind is spaces.Box:
        assert isinstance(space, spaces.Box)
        return {"type": "Box", "low": space.low, "high": space.high, "dtype": str(space.dtype)}
    if kind is spaces.Discrete:
        assert isinstance(space, spaces.Discrete)
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if kind is spaces.MultiDiscrete:
        assert isinstance(space, spaces.MultiDiscrete)
        plain = {"nvec": space.nvec, "start": space.start, "dtype": str(space.dtype)}
        return {"type": "MultiDiscrete", **plain}
    if kind is spaces.MultiBinary:
        assert isinstance(space, spaces.MultiBinary)
        sizes = np.asarray(space.n).tolist()  # a number, or one for each axis
        return {"type": "MultiBinary", "n": sizes}
    if kind is spaces.Dict:
        assert isinstance(space, spaces.Dict)
        parts = {key: space_to_plain(part) for key, part in space.spaces.items()}
        return None if None in parts.values() else {"type": "Dict", "spaces": parts}
    return None


def space_from_plain(plain: Mapping[str, Any]) -> spaces.Space:
    """Undo :func:`space_to_plain`.

    :raises ValueError: not a description of a space
    """
    kind = plain["type"]
    if kind == "Box":
        return spaces.Box(plain["low"], plain["high"], dtype=find_array_dtype(plain["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(plain["n"], start=plain["start"])
    if kind == "MultiDiscrete":
        dtype: Any = find_array_dtype(plain["dtype"]).type
        return spaces.MultiDiscrete(plain["nvec"], dtype=dtype, start=plain["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["n"])
    if kind == "Dict":
        return spaces.Dict({key: space_from_plain(part) for key, part in plain["spaces"].items()})
    raise ValueError(f"there is no space of type {kind!r}")
