"""Facts that an environment id gives before anything is built: its family, what must be installed."""

import difflib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from acktr.errors import ConfigurationError

MAX_EVALUATION_STEPS = 27_000  # of an episode: as many as a game of Atari may have
# ale-py registers its ids only when it is imported, so an Atari id is known by its form.
_ATARI_ID = re.compile(r"ALE/.+|.+(NoFrameskip|Deterministic)-v[04]")


@dataclass(frozen=True)
class _Origin:
    """Where environments come from.

    :param package: prefix of the module that holds the environment classes
    :param family: the preset family, ``None`` if there is none
    :param modules: what must be importable to build them
    :param requirement: what ``pip install`` must be given to get these modules
    """

    package: str
    family: str | None
    modules: tuple[str, ...]
    requirement: str


_ORIGINS = (
    _Origin("gymnasium.envs.classic_control", "classic", (), "gymnasium"),
    _Origin("gymnasium.envs.mujoco", "mujoco", ("mujoco",), "acktr[mujoco]"),
    _Origin("ale_py", "atari", ("ale_py", "cv2"), "acktr[atari]"),
    _Origin("gymnasium.envs.box2d", None, ("Box2D",), "gymnasium[box2d]"),
    _Origin("gymnasium.envs.phys2d", None, ("jax",), "gymnasium[jax]"),
    _Origin("gymnasium.envs.tabular", None, ("jax",), "gymnasium[jax]"),
)
_ATARI = next(origin for origin in _ORIGINS if origin.family == "atari")


def is_installed(module: str) -> bool:
    """Tell whether ``module`` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def import_module(name: str, what: str, *, allow_import: bool) -> ModuleType:
    """Import a module that a setting names; whoever may write the setting may run code with it.

    :param name: of the module
    :param what: names the module, such as "the setting policy"
    :param allow_import: whether its code may run; that of a module imported before has run already
    :raises ConfigurationError: it may not be imported, or cannot be
    """
    if name in sys.modules:
        return sys.modules[name]
    if not allow_import:
        raise ConfigurationError(
            f"The module {name!r} of {what} would be imported, which runs its code: if you trust it, "
            "pass --allow-import, in Python allow_import=True, or import it yourself."
        )
    try:
        return importlib.import_module(name)
    # What happens while a module is executed is up to it, an exit too.
    except (Exception, SystemExit) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"The module {name!r} of {what} cannot be imported ({problem}): check its name, install or "
            "mend it."
        ) from error


def find_spec(env_id: str) -> EnvSpec:
    """Find the registered specification of an environment.

    :param env_id: an id of gymnasium's registry, or ``module:id`` to import ``module`` first
    :return: the specification, of an environment whose packages are all installed
    :raises ConfigurationError: if the id is unknown (the nearest are named) or a package that it
        needs is not installed (the pip line is given)
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, f"the environment {env_id!r}", allow_import=True)
    if _ATARI_ID.fullmatch(name):
        _require(name, _ATARI)
    _register_atari()
    spec = gym.registry.get(name)
    if spec is None or _is_tombstone(spec):
        raise ConfigurationError(_unknown(name))
    origin = _origin(spec)
    if origin is not None:
        _require(name, origin)
    return spec


def family(env_id: str) -> str | None:
    """Name the preset family of an environment: classic, mujoco, atari, or ``None``.

    :param env_id: an id that :func:`find_spec` accepts
    :raises ConfigurationError: as :func:`find_spec` does
    """
    origin = _origin(find_spec(env_id))
    return None if origin is None else origin.family


def is_atari(spec: EnvSpec) -> bool:
    """Tell whether a specification is one of ale-py's games."""
    return _origin(spec) is _ATARI


# Environments of an evaluation start from seeds that training with small seeds does not use.
EVALUATION_SEED = 1_000_000
MAX_EVALUATION_ENVS = 10


def evaluation_limit(env_id: str) -> dict[str, int]:
    """Return arguments for ``gymnasium.make`` by which an evaluation ends.

    Where nothing ends an episode, a deterministic policy would play for ever.

    :param env_id: an id that :func:`find_spec` accepts
    """
    spec = find_spec(env_id)
    limited = spec.max_episode_steps is not None or is_atari(spec)
    return {} if limited else {"max_episode_steps": MAX_EVALUATION_STEPS}


def _origin(spec: EnvSpec) -> _Origin | None:
    entry_point = spec.entry_point
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return next((origin for origin in _ORIGINS if module.startswith(origin.package)), None)


def _register_atari() -> None:
    if is_installed("ale_py"):
        importlib.import_module("ale_py")


def _require(env_id: str, origin: _Origin) -> None:
    missing = [module for module in origin.modules if not is_installed(module)]
    if missing:
        raise ConfigurationError(
            f"{env_id} needs {' and '.join(missing)}, which is not installed: "
            f'run `pip install "{origin.requirement}"`.'
        )


def _unknown(env_id: str) -> str:
    alive = [spec.id for spec in gym.registry.values() if not _is_tombstone(spec)]
    lowered = {known.lower(): known for known in alive}
    matches = difflib.get_close_matches(env_id.lower(), lowered, n=3, cutoff=0.75)
    nearest = [lowered[key] for key in matches]
    message = f"There is no environment {env_id!r}"
    if nearest:
        return f"{message}: the nearest are {', '.join(nearest)}."
    if not is_installed("ale_py"):
        return f'{message} (Atari games come with `pip install "acktr[atari]"`): check the id.'
    return f"{message}: check the id, or give module:id to import the module that registers it."


def _is_tombstone(spec: EnvSpec) -> bool:
    """Tell whether an id only raises an error: gymnasium keeps those of MuJoCo v2 and v3 so."""
    return getattr(spec.entry_point, "__name__", "").startswith("_raise_")
