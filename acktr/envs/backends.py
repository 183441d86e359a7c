"""The engines that step environments: what each can do, and which of them "auto" stands for."""

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from acktr.envs.ale import SETTINGS as ALE_SETTINGS
from acktr.envs.envpool import CHEAP_IDS, ENVPOOL_IDS
from acktr.envs.lookup import find_spec, is_atari, is_installed
from acktr.envs.together import is_together
from acktr.errors import ConfigurationError

ANY_ENVIRONMENT = ("gymnasium", "subproc")
# By package, pip extra, and the first Python that there are wheels for; below it the extra is empty.
NATIVE = {
    "envpool": ("envpool", "acktr[envpool]", (3, 11)),
    "ale": ("ale_py", "acktr[atari]", (3, 10)),
}
BACKENDS = ("auto", *ANY_ENVIRONMENT, *NATIVE)

# With fewer environments a step is over before EnvPool's threads have woken up.
_ENVPOOL_PAYS_FROM = 8
_PYTHON = sys.version_info[:2]
_GYMNASIUM_MODULES = ("gymnasium.envs.classic_control", "gymnasium.envs.mujoco")


def check_backend(backend: str) -> None:
    """Refuse a name that is no backend, before the environment is known.

    :raises ConfigurationError: naming those that exist
    """
    if backend not in BACKENDS:
        raise ConfigurationError(_refusal(backend, "does not exist", BACKENDS))


def choose_backend(
    backend: str,
    env_id: str,
    n_envs: int,
    *,
    env_kwargs: dict[str, Any] | None = None,
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
) -> str:
    """Turn "auto" into the fastest backend that is right, and refuse one that cannot do what is asked.

    :param backend: one of :data:`BACKENDS`
    :param env_id: as for :func:`acktr.envs.make_vec_env`, and so are the others
    :return: one of :data:`BACKENDS` but "auto"
    :raises ConfigurationError: for an unknown backend, one that does not have the environment, whose
        package is not installed, or that does not take the wrapper or the arguments
    """
    spec = find_spec(env_id)
    if backend not in BACKENDS:
        raise ConfigurationError(_refusal(backend, "does not exist", _having(spec)))
    if wrapper is not None and is_together(spec):
        raise ConfigurationError(f"{spec.id} makes no environment alone that could be wrapped.")
    if backend == "auto":
        candidates = [name for name in _having(spec) if name in NATIVE and _pays(name, spec, n_envs)]
        able = [name for name in candidates if _obstacle(name, env_kwargs or {}, wrapper) is None]
        return able[0] if able else "gymnasium"
    if backend not in _having(spec):
        raise ConfigurationError(_refusal(backend, f"does not have {spec.id}", _having(spec)))
    obstacle = _obstacle(backend, env_kwargs or {}, wrapper) if backend in NATIVE else None
    if obstacle is not None:
        raise ConfigurationError(f"The backend {backend!r} {obstacle}.")
    return backend


def _having(spec: EnvSpec) -> tuple[str, ...]:
    """Name the backends that have an environment, whether installed or not."""
    if is_together(spec):
        return ("auto", "gymnasium")
    # An id may have been registered anew, or with wrappers, which no engine knows of.
    plain = not spec.additional_wrappers
    if is_atari(spec):
        game_alone = plain and "game" in spec.kwargs and spec.max_episode_steps is None
        known = spec.kwargs.keys() <= {"game", "frameskip", "obs_type", *ALE_SETTINGS}
        natives = ["ale"] if game_alone and known else []
    else:
        own = str(spec.entry_point).startswith(_GYMNASIUM_MODULES) and not spec.kwargs
        natives = ["envpool"] if plain and own and spec.id in ENVPOOL_IDS else []
    return ("auto", *ANY_ENVIRONMENT, *natives)


def _pays(backend: str, spec: EnvSpec, n_envs: int) -> bool:
    # Measured on one core: see docs/environments.md. ale-py's games gain from one on.
    return backend == "ale" or (n_envs >= _ENVPOOL_PAYS_FROM and spec.id not in CHEAP_IDS)


def _obstacle(
    backend: str, env_kwargs: dict[str, Any], wrapper: Callable[[gym.Env], gym.Env] | None
) -> str | None:
    """Tell why a native engine cannot do what is asked, as the end of a sentence."""
    module, requirement, first = NATIVE[backend]
    elsewhere = 'use backend="gymnasium" or "subproc"'
    if not is_installed(module) and first > _PYTHON:
        own, least = (".".join(map(str, version)) for version in (_PYTHON, first))
        return f"needs {module}, which has no wheels for Python {own}, only from {least} on: {elsewhere}"
    if not is_installed(module):
        return f'needs {module}, which is not installed: run `pip install "{requirement}"`'
    if wrapper is not None:
        return f"cannot wrap single environments: {elsewhere}"
    taken = {"frameskip", *ALE_SETTINGS} if backend == "ale" else set()
    refused = sorted(env_kwargs.keys() - taken)
    if refused:
        return f"does not take the env_kwargs {', '.join(refused)}: {elsewhere}"
    return None


def _refusal(backend: str, problem: str, choices: tuple[str, ...]) -> str:
    return f"The backend {backend!r} {problem}: choose from {', '.join(choices)}."
