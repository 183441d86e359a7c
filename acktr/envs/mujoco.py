"""Gymnasium's MuJoCo environments: their state, with what a step leaves behind, and its warnings."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from acktr.envs.attributes import NotCapturable

# Attributes of the environment that are not looked at: the model is what the environment was built of.
HANDLED = {"model", "data", "mujoco_renderer", "init_qpos", "init_qvel"}


_LOG = logging.getLogger(__name__)


def hear_warnings(spec: EnvSpec) -> None:
    """Let MuJoCo warn through Python's ``logging``, if an environment uses it and nobody else listens.

    By itself it writes ``MUJOCO_LOG.TXT`` into the working directory, and says of gymnasium's models
    that the file is out of date for MuJoCo 4, about which a user can do nothing.

    :param spec: of an environment that is about to be made; what defines it is imported here
    """
    if isinstance(spec.entry_point, str):
        load_env_creator(spec.entry_point)
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_hear)


def _hear(message: str) -> None:
    # Never raises, as warnings may: an exception in here ends the process.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _LOG.log(level, "MuJoCo: %s", message)


def is_mujoco(env: Any) -> bool:
    """Whether an environment has MuJoCo's model and data (without importing MuJoCo)."""
    data = getattr(env, "__dict__", {}).get("data")
    return type(data).__module__.startswith("mujoco") and type(data).__name__ == "MjData"


def get_state(env: Any) -> dict[str, Any]:
    """Return the simulator's state.

    What integration starts from is not all: some environments read, before a step, where bodies were at
    the end of the last one, which MuJoCo computed from the state *before* its last sub-step. So every
    array of numbers is taken whose size does not depend on the contacts of the moment.

    :param env: one for which :func:`is_mujoco` holds
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, integration, kind)
    names = _derived(env.model)
    derived = np.concatenate([getattr(env.data, name).ravel() for name in names])
    return {"integration": integration, "derived": derived, "names": list(names)}


def set_state(env: Any, state: dict[str, Any]) -> None:
    """Undo :func:`get_state`.

    :raises NotCapturable: the state is of another model, or of another version of MuJoCo
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    names = _derived(env.model)
    sizes = [getattr(env.data, name).size for name in names]
    integration, derived = (np.asarray(state[key], np.float64) for key in ("integration", "derived"))
    if (
        list(names) != state["names"]
        or integration.shape != (mujoco.mj_stateSize(env.model, kind),)
        or derived.shape != (sum(sizes),)
    ):
        raise NotCapturable("the state is of another model, or of another version of MuJoCo")
    mujoco.mj_setState(env.model, env.data, integration, kind)
    # Integers, which are indices, MuJoCo computes itself: none is taken from a file.
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, integration, kind)
    for name, values in zip(names, np.split(derived, np.cumsum(sizes)[:-1]), strict=True):
        array = getattr(env.data, name)
        array[...] = values.reshape(array.shape)


@functools.lru_cache(maxsize=64)
def _derived(model: Any) -> tuple[str, ...]:
    """Name the arrays of numbers of a model's data whose sizes the model alone decides."""
    import mujoco

    fresh, other = mujoco.MjData(model), mujoco.MjData(model)
    # With contacts, forces and the like have other sizes than without.
    mujoco.mj_forward(model, other)
    names = []
    for name in sorted(set(dir(fresh))):
        value = None if name.startswith("_") else getattr(fresh, name)
        if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size:
            variable = name.startswith(("efc_", "iefc_", "efm_", "plugin"))
            if not variable and getattr(other, name).shape == value.shape:
                names.append(name)
    return tuple(names)
