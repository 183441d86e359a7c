"""Facts that an environment id gives before anything is built: its family, what must be installed."""

import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from acktr.errors import ConfigurationError

MAX_EVALUATION_STEPS = 27_000  # of an episode: as many as a game of Atari may have


@dataclass(frozen=True)
class _Origin:
    """Where environments come from.

    :param package: prefix of the module that holds the environment classes
    :param family: the preset family, ``None`` if there is none
    :param modules: what must be importable to build them
    :param requirement: what ``pip install`` must be given to get these modules
    :param ids: the form of ids that are registered only when the first of the modules is imported
    """

    package: str
    family: str | None
    modules: tuple[str, ...]
    requirement: str
    ids: str | None = None


_ORIGINS = (
    _Origin("gymnasium.envs.classic_control", "classic", (), "gymnasium"),
    _Origin("gymnasium.envs.mujoco", "mujoco", ("mujoco",), "acktr[mujoco]"),
    _Origin(
        "ale_py",
        "atari",
        ("ale_py", "cv2"),
        "acktr[atari]",
        r"ALE/.+|.+(NoFrameskip|Deterministic)-v[04]",
    ),
    _Origin("gymnasium.envs.box2d", None, ("Box2D",), "gymnasium[box2d]"),
    _Origin("gymnasium.envs.phys2d", None, ("jax",), "gymnasium[jax]"),
    _Origin("gymnasium.envs.tabular", None, ("jax",), "gymnasium[jax]"),
    # The release of dm_control that takes the same MuJoCo as gymnasium's tasks.
    _Origin("shimmy", None, ("shimmy", "dm_control"), "acktr[general]", r"dm_control/.+"),
    _Origin("minigrid", None, ("minigrid",), "minigrid", r"(MiniGrid|BabyAI)-.+"),
    _Origin("minatar", None, ("minatar",), "minatar", r"MinAtar/.+"),
    _Origin(
        "gymnasium_robotics",
        None,
        ("gymnasium_robotics",),
        "gymnasium-robotics",
        r"(AdroitHand|AntMaze_|Fetch(PickAndPlace|Push|Reach|Slide)|FrankaKitchen-|Hand(Manipulate|Reach)|"
        r"PointMaze_).+",
    ),
    _Origin(
        "highway_env",
        None,
        ("highway_env",),
        "highway-env",
        r"(highway|intersection|merge|parking|racetrack|roundabout)-.+",
    ),
    _Origin("metaworld", None, ("metaworld",), "metaworld", r"Meta-World/.+"),
    _Origin(
        "panda_gym",
        None,
        ("panda_gym",),
        "panda-gym",
        r"Panda(Flip|PickAndPlace|Push|Reach|Slide|Stack).+",
    ),
)
_ATARI = next(origin for origin in _ORIGINS if origin.family == "atari")


def is_installed(module: str) -> bool:
    """Tell whether ``module`` can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def how_to_install(module: str) -> str:
    """Tell how to get a module: by the pip line, where it is one of the known origins'."""
    found = next((origin.requirement for origin in _ORIGINS if module in origin.modules), None)
    return f'run `pip install "{found}"`' if found else "install the package that brings it"


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
        advice = "check its name, install or mend it"
        top = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top and _lies_here(top):
            advice = "it lies in this directory, where Python does not look unless PYTHONPATH=. is set"
        raise ConfigurationError(
            f"The module {name!r} of {what} cannot be imported ({_one_line(error)}): {advice}."
        ) from error


def _lies_here(module: str) -> bool:
    return os.path.isfile(f"{module}.py") or os.path.isfile(os.path.join(module, "__init__.py"))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def find_spec(env_id: str) -> EnvSpec:
    """Find the registered specification of an environment.

    :param env_id: an id of gymnasium's registry, or ``module:id`` to import ``module`` first
    :return: the specification, of an environment whose packages are all installed
    :raises ConfigurationError: if the id is unknown (the nearest are named, or the module that registers
        it) or a package that it needs is not installed (the pip line is given)
    """
    module, _, name = env_id.rpartition(":")
    importer = _importer(name)
    if importer is not None and name not in gym.registry and module in ("", importer.modules[0]):
        _require(name, importer)
    if module:
        import_module(module, f"the environment {env_id!r}", allow_import=True)
        if name not in gym.registry:
            _call_registration(module)
    _register_atari()
    spec = gym.registry.get(name)
    if spec is None or _is_tombstone(spec):
        raise ConfigurationError(_unknown(name, module))
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


def _importer(env_id: str) -> _Origin | None:
    """Return the origin whose import registers ids of this form."""
    return next((x for x in _ORIGINS if x.ids is not None and re.fullmatch(x.ids, env_id)), None)


def _register_atari() -> None:
    if is_installed("ale_py"):
        importlib.import_module("ale_py")


def _call_registration(module: str) -> None:
    """Call what a package names in its metadata for gymnasium, where importing it registers nothing.

    Gymnasium did so itself before 1.0; MinAtar has not changed since.

    :param module: whose package is meant
    :raises ConfigurationError: it raises an error
    """
    package = module.partition(".")[0]
    for entry in importlib.metadata.entry_points(group="gymnasium.envs"):
        if re.split("[.:]", entry.value)[0] == package:
            try:
                entry.load()()
            except Exception as error:
                raise ConfigurationError(
                    f"{entry.value} cannot register the environments of {package} ({_one_line(error)}): "
                    "install another version of it, or mend it."
                ) from error


def _require(env_id: str, origin: _Origin) -> None:
    missing = [module for module in origin.modules if not is_installed(module)]
    if missing:
        imported = origin.ids is None or origin is _ATARI
        then = "" if imported else f", and give {origin.modules[0]}:{env_id}"
        raise ConfigurationError(
            f"{env_id} needs {' and '.join(missing)}, which is not installed: "
            f'run `pip install "{origin.requirement}"`{then}.'
        )


def _unknown(env_id: str, module: str) -> str:
    importer = _importer(env_id)
    if importer is not None and importer.modules[0] not in sys.modules:
        name = importer.modules[0]
        return f"{env_id} is registered when {name} is imported: give {name}:{env_id}."
    alive = [spec.id for spec in gym.registry.values() if not _is_tombstone(spec)]
    lowered = {known.lower(): known for known in alive}
    matches = difflib.get_close_matches(env_id.lower(), lowered, n=3, cutoff=0.75)
    message = f"There is no environment {env_id!r}"
    if nearest := [lowered[key] for key in matches]:
        return f"{message}: the nearest are {', '.join(nearest)}."
    if isinstance(vars(sys.modules[module]).get(env_id) if module else None, type):
        return (
            f"{env_id} of {module} is a class and not an id: register it there, as in "
            f'gymnasium.register("{env_id}-v0", {env_id}), and give {module}:{env_id}-v0.'
        )
    if module:
        return f"{message} in {module}: check the id, or register it there with gymnasium.register."
    games = "" if is_installed("ale_py") else ' (Atari games come with `pip install "acktr[atari]"`)'
    return f"{message}{games}: check the id, or give module:id to import the module that registers it."


def _is_tombstone(spec: EnvSpec) -> bool:
    """Tell whether an id only raises an error: gymnasium keeps those of MuJoCo v2 and v3 so."""
    return getattr(spec.entry_point, "__name__", "").startswith("_raise_")
