"""The complete state of vector environments, as plain values, so that a run can go on from there.

:func:`capture` goes through the stack from the outermost wrapper inwards and takes every attribute that
is data. An attribute that is neither data nor known to hold no state makes the whole
:class:`NotCapturable`, and the attribute is named: better no state than one that looks complete.

An environment with state elsewhere offers two methods, which are then asked instead:

* ``get_state()`` returns dicts, lists, tuples, numbers, strings, bytes and numpy arrays;
* ``set_state(state)`` goes back to it, after a ``reset``.
"""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from acktr.envs import mujoco
from acktr.envs.attributes import NotCapturable, get_attributes, set_attributes
from acktr.envs.finite import VecCheckFinite
from acktr.envs.kinds import is_whole
from acktr.envs.monitor import ACCOUNT, BoundedMonitor
from acktr.envs.resets import VecStack
from acktr.envs.running import VecRunningNormalize
from acktr.errors import AcktrError

__all__ = ["NotCapturable", "capture", "capture_single", "restore", "restore_single"]

# What make_vec_env adds to each environment: workers are asked by name.
CAPTURE, RESTORE = "capture_state", "restore_state"

# Wrappers whose attributes keep their kinds. A subclass is not its base: it may have others.
_KNOWN = {VecNormalize, VecRunningNormalize, VecFrameStack, VecStack, VecTransposeImage, VecCheckFinite}

State = dict[str, Any]


def capture(env: VecEnv) -> State:
    """Return the state of vector environments between two steps.

    :param env: wrappers and all
    :raises NotCapturable: says which part does not give its state away
    """
    layers = []
    while isinstance(env, VecEnvWrapper):
        layers.append(get_attributes(env, {"venv", "class_attributes", "metadata", "reset_infos"}))
        env = env.venv
    return {"wrappers": layers, "environments": _capture_innermost(env)}


def restore(env: VecEnv, state: State) -> None:
    """Bring environments, built in the same way, to a state.

    :param env: wrappers and all; reset first
    :param state: what :func:`capture` returned
    :raises NotCapturable: the state is of other environments
    """
    env.reset()
    for layer in state["wrappers"]:
        if not isinstance(env, VecEnvWrapper):
            raise NotCapturable("the state has more wrappers than the environments")
        set_attributes(env, layer, known=type(env) in _KNOWN)
        env = env.venv
    if isinstance(env, VecEnvWrapper):
        raise NotCapturable("the environments have more wrappers than the state")
    _restore_innermost(env, state["environments"])


def _capture_innermost(env: VecEnv) -> Any:
    # Seeds wait for the next reset: evaluations begin with one.
    return {"seeds": list(env._seeds), "state": _capture_plain(env)}


def _capture_plain(env: VecEnv) -> Any:
    if _offers_state(env):
        return _own_state(env)
    if isinstance(env, DummyVecEnv):
        return [capture_single(single) for single in env.envs]
    if isinstance(env, SubprocVecEnv):
        if not env.has_attr(CAPTURE):
            raise NotCapturable("the workers were not built by make_vec_env")
        states = env.env_method(CAPTURE)
        for state in states:
            if isinstance(state, str):  # the reason why there is none
                raise NotCapturable(state)
        return states
    backend = getattr(env, "backend", None)
    engine = f"the backend {backend!r}" if backend else type(env).__name__
    raise NotCapturable(f"{engine} does not give its state away")


def _restore_innermost(env: VecEnv, state: Any) -> None:
    if isinstance(state, list):  # from when environments could be stepped in two halves
        state = _joined(state)
    _restore_plain(env, state["state"])
    seeds = list(state["seeds"])
    if len(seeds) != env.num_envs or not all(x is None or is_whole(x, least=0) for x in seeds):
        raise NotCapturable(f"the seeds that wait for a reset are none of {env.num_envs} environments")
    env._seeds = seeds


def _joined(halves: list[State]) -> State:
    """Put the states of two halves together, where each environment has one of its own."""
    if not all(isinstance(half["state"], list) for half in halves):
        raise NotCapturable("an engine that stepped a half of the environments cannot step all")
    return {key: [own for half in halves for own in half[key]] for key in ("seeds", "state")}


def _restore_plain(env: VecEnv, state: Any) -> None:
    if _offers_state(env):
        env.set_state(state)  # type: ignore[attr-defined]
    elif isinstance(env, DummyVecEnv):
        for single, own in zip(env.envs, state, strict=True):
            restore_single(single, own)
    elif isinstance(env, SubprocVecEnv):
        for index, own in enumerate(state):
            (problem,) = env.env_method(RESTORE, own, indices=[index])
            if problem:
                raise NotCapturable(problem)
    else:
        raise NotCapturable(f"{type(env).__name__} takes no state")


def capture_single(env: gym.Env) -> list[State]:
    """Return the state of one environment, from the outermost wrapper inwards.

    :raises NotCapturable: says which part does not give its state away
    """
    layers: list[State] = []
    seen: dict[int, str] = {}
    while True:
        if mujoco.is_mujoco(env):
            layers.append({"data": mujoco.get_state(env), **_attributes(env, mujoco.HANDLED, seen)})
            return layers
        if _offers_state(env):
            # It speaks for all that lies below it.
            return [*layers, {"own": _own_state(env)}]
        layers.append(_attributes(env, set(), seen))
        if not isinstance(env, gym.Wrapper):
            return layers
        env = env.env


def restore_single(env: gym.Env, layers: list[State]) -> None:
    """Bring an environment to a state, after a reset.

    :raises NotCapturable: the state is of another environment
    """
    for layer in layers:
        if "own" in layer:
            env.set_state(layer["own"])  # type: ignore[attr-defined]
            return
        if layer["class"] != _class_name(env):
            raise NotCapturable(f"the state is of {layer['class']}, not of {_class_name(env)}")
        if type(env) is BoundedMonitor:
            _set_account(env, layer["attributes"])
        else:
            set_attributes(env, layer["attributes"])
        if "data" in layer:
            mujoco.set_state(env, layer["data"])
        env = env.env if isinstance(env, gym.Wrapper) else env


def attach(env: gym.Env) -> gym.Env:
    """Let an environment in a worker process be asked for its state by name.

    :param env: the outermost wrapper
    """

    def capture_state() -> list[State] | str:
        try:
            layers = capture_single(env)
            if "own" in layers[-1]:
                # A worker that cannot send its answer ends.
                pickle.dumps(layers[-1])
        except NotCapturable as error:
            return str(error)
        except Exception as error:  # as classes raise it that do not let themselves be pickled
            return f"the state of {_class_name(env)} cannot be sent ({_line(error)})"
        return layers

    def restore_state(layers: list[State]) -> str | None:
        try:
            restore_single(env, layers)
        except NotCapturable as error:
            return str(error)
        return None

    methods: tuple[tuple[str, Callable], ...] = ((CAPTURE, capture_state), (RESTORE, restore_state))
    for name, method in methods:
        setattr(env, name, method)
    return env


def _attributes(env: gym.Env, handled: set[str], seen: dict[int, str]) -> State:
    below = {"env"} if isinstance(env, gym.Wrapper) else set()
    skipped = {*below, *handled, CAPTURE, RESTORE}
    if type(env) is BoundedMonitor:
        skipped |= vars(env).keys() - ACCOUNT
    return {"class": _class_name(env), "attributes": get_attributes(env, skipped, seen)}


def _set_account(env: BoundedMonitor, attributes: State) -> None:
    before = dict(vars(env))
    set_attributes(env, {name: value for name, value in attributes.items() if name in ACCOUNT})
    numbers = type(env.rewards) is list and all(
        type(x) is float and math.isfinite(x) for x in env.rewards
    )
    counts = is_whole(env.summed, least=0) and is_whole(env.total_steps, least=0)
    # An episode that is over has been begun anew by now: only what never began needs a reset.
    begun = type(env.needs_reset) is bool and not (env.needs_reset and env.rewards)
    if not (numbers and counts and begun):
        vars(env).update(before)
        raise NotCapturable("what Monitor has counted is none of an episode")


def _own_state(env: Any) -> Any:
    try:
        return env.get_state()
    except AcktrError:
        raise
    except Exception as error:  # whatever somebody's method raises
        raise NotCapturable(f"{_class_name(env)}.get_state failed ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _class_name(env: gym.Env) -> str:
    # Their states are the same, and those from before there was ours are SB3's.
    kind = Monitor if type(env) is BoundedMonitor else type(env)
    return f"{kind.__module__}.{kind.__qualname__}"


def _offers_state(env: Any) -> bool:
    """Whether the class has both methods; MuJoCo's ``set_state(qpos, qvel)`` is another one."""
    getter, setter = (getattr(type(env), name, None) for name in ("get_state", "set_state"))
    if not (callable(getter) and callable(setter)):
        return False
    try:
        needed = [
            p
            for p in inspect.signature(setter).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except ValueError:
        return False
    return len(needed) == 2  # self and the state
