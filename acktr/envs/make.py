"""``make_vec_env``: a vector environment from an id, with one sentence for whatever is wrong."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env as make_sb3_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from acktr.envs.ale import AleVecEnv
from acktr.envs.backends import NATIVE, choose_backend
from acktr.envs.envpool import EnvPoolVecEnv
from acktr.envs.finite import VecCheckFinite
from acktr.envs.lookup import find_spec, how_to_install, is_atari, is_installed
from acktr.envs.masks import draw_allowed
from acktr.envs.monitor import BoundedMonitor
from acktr.envs.mujoco import hear_warnings
from acktr.envs.pixels import FRAME_STACK, make_pixel_env, pixel_arguments
from acktr.envs.resets import VecStack
from acktr.envs.serial import SerialVecEnv
from acktr.envs.spaces import check_spaces, check_stack
from acktr.envs.state import attach
from acktr.envs.together import TogetherVecEnv, is_together
from acktr.envs.workers import WorkerVecEnv, end_with_this_process, ignore_stops
from acktr.errors import AcktrError, ConfigurationError, WorkerError

ATARI_FRAME_STACK = 4
# More than any machine steps or stacks: what is beyond is a slip, or meant to fill the memory.
MAX_ENVS = 2**16
MAX_FRAMES = 2**10

_VEC_ENV: dict[str, type[DummyVecEnv] | type[SubprocVecEnv]] = {
    "gymnasium": SerialVecEnv,
    "subproc": WorkerVecEnv,
}


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    backend: str = "auto",
    env_kwargs: dict[str, Any] | None = None,
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
    pixels: bool = False,
    frame_stack: int | None = None,
    monitor_dir: str | None = None,
    worker_timeout: float | None = 60.0,
    worker_restarts: int = 0,
) -> VecEnv:
    """Build ``n_envs`` environments that step together, as Stable-Baselines3 expects them.

    Each has a ``Monitor``, and none can pass on a NaN. Atari games get SB3's ``AtariWrapper``
    (no-op start, frame skip 4 with max-pooling, episodic life, 84×84 grey, rewards clipped to their
    sign) above the ``Monitor``, so that the scores it reports are those of whole, unclipped games.

    :param env_id: an id of gymnasium's registry, or ``module:id`` to import ``module`` first
    :param n_envs: how many environments; an id that makes several at a time may round up
    :param seed: environment i starts from ``seed + i``; ``None`` leaves them unseeded
    :param backend: "gymnasium" steps them one after another in this process, "subproc" each in a
        process of its own, "envpool" (MuJoCo, classic control) and "ale" (Atari) in native threads;
        "auto" takes the fastest that is right. The attribute ``backend`` of what is returned tells
    :param env_kwargs: arguments for ``gymnasium.make``; "ale" takes some of them, "envpool" none
    :param wrapper: wraps each environment below its ``Monitor``, thus changes what counts as score;
        native engines take none
    :param pixels: observe pictures of 42×42 RGB in the place of states (see :mod:`acktr.envs.pixels`);
        native engines draw none
    :param frame_stack: how many observations to stack; by default 4 for Atari, 2 with pixels, else none
    :param monitor_dir: a directory for SB3's monitor files; by default none are written
    :param worker_timeout: seconds that a process of "subproc" may take for a step or a reset before it
        counts as hanging; ``None`` for no limit
    :param worker_restarts: so many failed processes of "subproc" are replaced, see
        :class:`acktr.envs.workers.WorkerVecEnv`
    :return: the vector environment
    :raises acktr.errors.WorkerError: a process of "subproc" fails; later too, at any call
    :raises ConfigurationError: for an unknown id, a package that is not installed, an unknown
        backend or one that cannot do what is asked, ``n_envs`` below 1 or above :data:`MAX_ENVS`,
        or spaces that ACKTR does not support
    """
    if n_envs < 1:
        raise ConfigurationError(f"n_envs is {n_envs}: at least 1 environment is needed.")
    if n_envs > MAX_ENVS:
        raise ConfigurationError(f"n_envs is {n_envs}: at most {MAX_ENVS:,} environments are built.")
    if frame_stack is not None and frame_stack < 1:
        raise ConfigurationError(f"frame_stack is {frame_stack}: it must be at least 1.")
    if frame_stack is not None and frame_stack > MAX_FRAMES:
        raise ConfigurationError(f"frame_stack is {frame_stack}: it may be {MAX_FRAMES:,} at most.")
    spec = find_spec(env_id)
    atari = is_atari(spec)
    env_kwargs = _atari_kwargs(spec, env_kwargs or {}) if atari else (env_kwargs or {})
    if pixels and atari:
        raise ConfigurationError(f"{spec.id} observes its screen already: leave out pixels.")
    if pixels and backend in NATIVE:
        raise ConfigurationError(
            f'The backend {backend!r} draws no pixels: use backend="gymnasium" or "subproc".'
        )
    if pixels:
        env_kwargs = pixel_arguments(env_kwargs)
    if pixels and is_together(spec):
        raise ConfigurationError(f"{spec.id} makes no environment alone that could be drawn.")
    chosen = choose_backend(backend, env_id, n_envs, env_kwargs=env_kwargs, wrapper=wrapper)

    if worker_restarts and chosen != "subproc":
        raise ConfigurationError(
            f"worker_restarts is {worker_restarts}, but the backend {chosen!r} has no worker processes: "
            'leave it out, or use backend="subproc".'
        )
    workers = {"timeout": worker_timeout, "restarts": worker_restarts} if chosen == "subproc" else {}

    env: VecEnv
    if chosen in NATIVE:
        env = _make_native(chosen, spec, n_envs, seed, env_kwargs, monitor_dir)
    elif is_together(spec):
        env = _make_together(spec, n_envs, seed, env_kwargs, monitor_dir)
    else:
        env = _make_single(chosen, spec, n_envs, seed, env_kwargs, monitor_dir, wrapper, workers, pixels)
    depth = frame_stack or (ATARI_FRAME_STACK if atari else FRAME_STACK if pixels else 1)
    if depth > 1:
        try:
            check_stack(spec.id, env.observation_space)
        except ConfigurationError:
            env.close()
            raise
    env.backend = chosen  # type: ignore[attr-defined]  # what "auto" stood for
    env = VecCheckFinite(env)
    return VecStack(env, depth) if depth > 1 else env


def try_environment(env_id: str, env_kwargs: dict[str, Any] | None = None) -> spaces.Space:
    """Build an environment, begin an episode and make a step, to see whether it can be used.

    :param env_id: as for :func:`make_vec_env`
    :param env_kwargs: arguments for ``gymnasium.make``
    :return: its observation space
    :raises ConfigurationError: as :func:`make_vec_env` does, or the environment raises an error, or
        returns what its spaces do not say
    """
    spec, env_kwargs = find_spec(env_id), env_kwargs or {}
    env: VecEnv
    if is_together(spec):
        env = _make_together(spec, 1, 0, env_kwargs)
    else:
        built = _build(spec, None, env_kwargs)
        built.action_space.seed(0)
        env = SerialVecEnv([lambda: BoundedMonitor(Monitor(built))])
    method = "reset"
    with contextlib.closing(env):
        try:
            env.reset()
            method = "step"
            env.step(draw_allowed(env, np.random.default_rng(0)))
        except Exception as error:
            cause = error.__cause__ or error
            problem = f"its {method} raises {_with_place(cause)}"
            if isinstance(cause, WorkerError):
                problem = f"it {str(cause).removeprefix('Environment 0 ').rstrip('.')}"
            raise ConfigurationError(
                f"{env_id} cannot be used: {problem}; gymnasium.utils.env_checker.check_env tells what "
                "else an environment must do."
            ) from error
    return env.observation_space


def _make_native(
    chosen: str,
    spec: EnvSpec,
    n_envs: int,
    seed: int | None,
    env_kwargs: dict[str, Any],
    monitor_dir: str | None,
) -> VecEnv:
    env: VecEnv
    if chosen == "ale":
        env = AleVecEnv(spec, n_envs, env_kwargs, monitor_dir)
    else:
        # Spaces are gymnasium's, so that models move between backends.
        model = _build(spec, None, {})
        env = EnvPoolVecEnv(model, n_envs, monitor_dir)
        model.close()
    env.seed(seed)
    env.action_space.seed(seed)
    return env


def _make_together(
    spec: EnvSpec,
    n_envs: int,
    seed: int | None,
    env_kwargs: dict[str, Any],
    monitor_dir: str | None = None,
) -> VecEnv:
    with _building(spec):
        env = TogetherVecEnv(spec, n_envs, env_kwargs, monitor_dir)
    env.seed(seed)
    env.action_space.seed(seed)
    _check_or_close(spec, env)
    return env


def _make_single(
    chosen: str,
    spec: EnvSpec,
    n_envs: int,
    seed: int | None,
    env_kwargs: dict[str, Any],
    monitor_dir: str | None,
    wrapper: Callable[[gym.Env], gym.Env] | None,
    workers: dict[str, Any],
    pixels: bool,
) -> VecEnv:
    def build(**kwargs: Any) -> gym.Env:
        if chosen == "subproc":
            ignore_stops()
        return _build(spec, wrapper, kwargs, pixels)

    def finish(env: gym.Env) -> gym.Env:
        assert isinstance(env, Monitor)
        env = BoundedMonitor(env)
        return attach(AtariWrapper(env) if is_atari(spec) else env)

    if chosen == "subproc":
        # What a child process raises reaches the parent as a bare EOFError: try it here first.
        probe = _build(spec, wrapper, env_kwargs, pixels)
        probe.close()
    env = make_sb3_vec_env(
        build,
        n_envs=n_envs,
        seed=seed,
        monitor_dir=monitor_dir,
        wrapper_class=finish,
        env_kwargs=env_kwargs,
        vec_env_cls=_VEC_ENV[chosen],
        vec_env_kwargs=workers,
    )
    if isinstance(env, SubprocVecEnv):
        end_with_this_process(env)
    return env


def _build(
    spec: EnvSpec,
    wrapper: Callable[[gym.Env], gym.Env] | None,
    env_kwargs: dict[str, Any],
    pixels: bool = False,
) -> gym.Env:
    with _building(spec):
        # The specification, not the id: a child process may not have registered the id.
        if pixels:
            env = make_pixel_env(spec, env_kwargs)
        else:
            hear_warnings(spec)
            env = gym.make(spec, **env_kwargs)
    if wrapper is not None:
        env = wrapper(env)
    _check_or_close(spec, env)  # before any vector environment allocates for them
    return env


def _check_or_close(spec: EnvSpec, env: gym.Env | VecEnv) -> None:
    try:
        check_spaces(spec.id, env.observation_space, env.action_space)
    except ConfigurationError:
        env.close()
        raise


@contextlib.contextmanager
def _building(spec: EnvSpec) -> Iterator[None]:
    try:
        yield
    except AcktrError:
        raise
    except (Exception, SystemExit) as error:
        # What an environment raises of an argument that is not to its liking is up to it.
        raise ConfigurationError(_why_not_built(spec.id, error)) from error


def _atari_kwargs(spec: EnvSpec, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    # AtariWrapper skips and max-pools frames itself: the game must deliver every one of them.
    settings = {**spec.kwargs, "frameskip": 1, **env_kwargs}
    if settings.get("obs_type", "rgb") == "ram" or "-ram" in spec.id:
        raise ConfigurationError(f"{spec.id} observes the RAM: use the id that observes the screen.")
    if settings["frameskip"] != 1:
        raise ConfigurationError(
            f"{spec.id} with frameskip={settings['frameskip']}: leave it at 1, "
            "the preprocessing skips 4 frames itself."
        )
    return {**env_kwargs, "frameskip": 1}


def _why_not_built(env_id: str, error: BaseException) -> str:
    """Tell in a sentence what went wrong, and what to do where that can be known."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and not is_installed(missing.partition(".")[0]):
        return f"{env_id} needs {missing}, which is not installed: {how_to_install(missing)}."
    if isinstance(error, TypeError):
        return (
            f"{env_id} cannot be built: {_first_line(error)}; its arguments are given as "
            "--set env_kwargs.NAME=VALUE, in Python env_kwargs={...}."
        )
    return f"{env_id} cannot be built: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    if not lines:
        return f"{_with_place(error)}."
    # Of these the text is a sentence; of a KeyError it is the key.
    return (
        lines[0]
        if isinstance(error, (gym.error.Error, ImportError, TypeError))
        else f"{kind}: {lines[0]}"
    )


def _with_place(error: BaseException) -> str:
    """Name an error, its first line if it has any, and where it was raised."""
    said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} (line {frames[-1].lineno} of {frames[-1].filename})" if frames else said
