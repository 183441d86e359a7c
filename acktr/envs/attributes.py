"""The attributes of one object as plain values, or the name of the one that cannot be had so."""

from __future__ import annotations

import math
import random
import types
from collections import OrderedDict, deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from acktr.envs.generators import set_legacy_state, set_python_state, set_state
from acktr.envs.kinds import difference, is_number

# list[int] passes for a type on Python 3.10 alone.
_TYPES: tuple[type, ...] = (type, types.GenericAlias)
_CODE = (*_TYPES, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_GENERATORS = {
    cls.__name__: cls
    for cls in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}
_LONG = 32  # lists of more numbers than this are kept as an array
_STRINGS = 2**28  # bytes that an array of strings may take
_PLAIN = (bool, int, float, str, bytes, type(None))
_CONTAINERS = (list, tuple, dict, OrderedDict, deque)
# Objects whose state is their attributes.
_OPEN = (RunningMeanStd, StackedObservations, gym.wrappers.utils.RunningMeanStd)
# Objects that stay, in another state.
_KEPT = (*_OPEN, spaces.Space, np.random.Generator, np.random.RandomState, random.Random)
# What holds no state, or none that matters to the next step, by the module of its class or by its name.
_STATELESS_MODULES = ("pygame", "gymnasium.envs.mujoco.mujoco_rendering", "enum", "ale_py")
_STATELESS_NAMES = frozenset(
    {
        "_previous_data",  # PassiveEnvChecker's: compared with the next observation, and a warning
        "_cached_spec",
        "_saved_kwargs",  # what the constructor was given
        "_ezpickle_args",
        "_ezpickle_kwargs",
        "results_writer",  # Monitor's: a file, which goes on growing
        "metadata",
        "class_attributes",
        "observation_structure",
        "t_start",  # Monitor's clock
    }
)


class NotCapturable(Exception):
    """An environment that does not give its state away; the text says which part."""


def get_attributes(owner: Any, skipped: set[str], seen: dict[int, str] | None = None) -> dict[str, Any]:
    """Return the attributes of an object; spaces and generators by the state of their random numbers.

    :param owner: the object
    :param skipped: names of what the caller takes care of
    :param seen: filled with the mutable values that were met, of which no two may be the same; ``None``
        for objects that are known not to mind
    :raises NotCapturable: naming an attribute that is neither data nor known to hold no state
    """
    found = {}
    for name, value in vars(owner).items():
        if name not in skipped and name not in _STATELESS_NAMES and not _is_stateless(value):
            found[name] = _Reader(f"{type(owner).__name__}.{name}", seen).read(value)
    return found


def set_attributes(owner: Any, state: dict[str, Any], *, known: bool = False) -> None:
    """Undo :func:`get_attributes`.

    :param owner: the object
    :param state: what it returned
    :param known: of an object whose attributes keep their kinds, and whose settings stay as they are
    :raises NotCapturable: the state is of another object
    """
    of = type(owner).__name__
    for name, value in state.items():
        if callable(getattr(type(owner), name, None)) or name.startswith("__"):
            raise NotCapturable(f"{name!r} is a method of {of}, no state")
        old = vars(owner).get(name)
        if name in _STATELESS_NAMES or _is_stateless(old) or isinstance(old, gym.Env | VecEnv):
            raise NotCapturable(f"{name!r} of {of} is no state")
        setting = known and not name.startswith("_") and type(old) in (bool, int, str)
        if _put(old, value):
            continue
        if isinstance(old, _KEPT):
            raise NotCapturable(f"{of}.{name} is a {type(old).__name__} and no other value")
        new = _build(value)
        problem = difference(new, old, f"{of}.{name}") if known else None
        if setting and new != old:
            problem = f"{of}.{name} is {new!r}, and was built with {old!r}"
        if problem:
            raise NotCapturable(problem)
        vars(owner)[name] = new


def _is_stateless(value: Any) -> bool:
    if isinstance(value, (EnvSpec, *_CODE)):
        return True
    return type(value).__module__.startswith(_STATELESS_MODULES)


class _Reader:
    """Reads one attribute; remembers mutable values, of which no two may be the same."""

    def __init__(self, where: str, seen: dict[int, str] | None) -> None:
        self._where = where
        self._seen = seen

    def read(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return value
        if isinstance(value, spaces.Space):
            return {"space": _space_random(value)}
        if isinstance(value, np.random.Generator):
            return {"generator": value.bit_generator.state}
        if isinstance(value, np.random.RandomState):
            return {"random_state": value.get_state(legacy=False)}
        if isinstance(value, random.Random):
            return {"random": value.getstate()}
        self._check_alone(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return value.copy()
        if isinstance(value, np.ndarray) and value.dtype.kind in "SU":
            return {"strings": value.tolist(), "dtype": str(value.dtype)}
        if isinstance(value, _OPEN):
            return {"object": get_attributes(value, set(), self._seen)}
        if type(value) in _CONTAINERS:
            return self._container(value)
        of = f"{type(value).__module__}.{type(value).__qualname__}"
        raise NotCapturable(f"{self._where} is a {of}, whose state is not known")

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            if any(type(key) not in _PLAIN for key in value):
                raise NotCapturable(f"{self._where} is a dict with keys that are no plain values")
            return {"dict": [(key, self.read(item)) for key, item in value.items()]}
        if type(value) is list and len(value) > _LONG and {type(item) for item in value} == {float}:
            return {"floats": np.array(value)}
        items = [self.read(item) for item in value]
        if isinstance(value, deque):
            return {"deque": items, "maxlen": value.maxlen}
        return {"tuple" if isinstance(value, tuple) else "list": items}

    def _check_alone(self, value: Any) -> None:
        if self._seen is None or isinstance(value, tuple):
            return
        base = value.base if isinstance(value, np.ndarray) and value.flags.writeable else None
        if base is not None and not isinstance(base, np.ndarray):
            raise NotCapturable(f"{self._where} is a view of memory that is not numpy's")
        # Two names for one thing would be two things afterwards.
        memory = value.base if isinstance(value, np.ndarray) and value.base is not None else value
        if id(memory) in self._seen and not _is_empty(value):
            raise NotCapturable(f"{self._where} and {self._seen[id(memory)]} share their memory")
        self._seen[id(memory)] = self._where


def _is_empty(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 0


def _put(old: Any, value: Any) -> bool:
    """Bring an object to a state in place; False where a new value has to take its place."""
    if not isinstance(value, dict):
        return False
    if "space" in value and isinstance(old, spaces.Space):
        _set_space_random(old, value["space"])
    elif "generator" in value and isinstance(old, np.random.Generator):
        set_state(old.bit_generator, value["generator"])
    elif "random_state" in value and isinstance(old, np.random.RandomState):
        set_legacy_state(old, value["random_state"])
    elif "random" in value and isinstance(old, random.Random):
        set_python_state(old, *value["random"])
    elif "object" in value and isinstance(old, _OPEN):
        before = np.shape(getattr(old, "mean", ()))
        set_attributes(old, value["object"], known=True)
        _check_moments(old, before)
    elif "dict" in value and isinstance(old, dict):
        kept = {key for key, item in value["dict"] if key in old and _put(old[key], item)}
        new = {key: old[key] if key in kept else _build(item) for key, item in value["dict"]}
        old.clear()
        old.update(new)
    else:
        return False
    return True


def _check_moments(moments: Any, shape: tuple[int, ...]) -> None:
    """Refuse a mean and a variance that are none: one NaN would be in all that is normalised."""
    if not hasattr(moments, "var"):
        return
    mean, var, count = moments.mean, moments.var, moments.count
    holds = np.shape(mean) == np.shape(var) == shape and np.isfinite(mean).all() and is_number(count)
    if not (holds and np.isfinite(var).all() and np.min(var, initial=0) >= 0 and 0 <= count < math.inf):
        raise NotCapturable("a running mean or variance is not finite, is negative or of another shape")


def _build(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _build(item) for key, item in value["dict"]}
    if "floats" in value:
        return value["floats"].tolist()
    if "strings" in value:
        return _strings(value["strings"], np.dtype(value["dtype"]))
    if "list" in value:
        return [_build(item) for item in value["list"]]
    if "tuple" in value:
        return tuple(_build(item) for item in value["tuple"])
    if "deque" in value:
        return deque((_build(item) for item in value["deque"]), maxlen=value["maxlen"])
    if "generator" in value:
        # gymnasium makes an environment's generator when it is first asked for.
        bit_generator = _GENERATORS[value["generator"]["bit_generator"]]()
        set_state(bit_generator, value["generator"])
        return np.random.Generator(bit_generator)
    raise NotCapturable(f"a part of the state ({sorted(value)}) has no place in the environment")


def _strings(values: Any, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "SU" or dtype.itemsize * np.size(values) > _STRINGS:
        raise NotCapturable(
            f"an array of {dtype} is none of strings, or takes more than {_STRINGS:,} bytes"
        )
    return np.array(values, dtype=dtype)


def _space_random(space: spaces.Space) -> Any:
    state = None if space._np_random is None else space._np_random.bit_generator.state
    parts = getattr(space, "spaces", None)
    if isinstance(parts, dict):
        return [state, {key: _space_random(part) for key, part in parts.items()}]
    return [state, [_space_random(part) for part in parts] if isinstance(parts, tuple) else None]


def _set_space_random(space: spaces.Space, state: Any) -> None:
    own, parts = state
    if own is not None:
        set_state(space.np_random.bit_generator, own)
    if isinstance(parts, dict):
        for key, part in parts.items():
            _set_space_random(space.spaces[key], part)  # type: ignore[attr-defined]
    elif parts is not None:
        for inner, part in zip(space.spaces, parts, strict=True):  # type: ignore[attr-defined]
            _set_space_random(inner, part)
