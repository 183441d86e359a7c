"""Playing a saved run: episodes with its deterministic policy, and films of them."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from acktr.devices import is_available
from acktr.envs.lookup import EVALUATION_SEED, MAX_EVALUATION_ENVS
from acktr.envs.pixels import film_frames
from acktr.envs.video import Film, check_film_packages, prepare_rendering
from acktr.errors import CheckpointError, ConfigurationError
from acktr.files.durable import write_file
from acktr.learner.algorithm import ACKTR
from acktr.presets import validate
from acktr.presets.received import check_received
from acktr.run.build import build_environment, build_model
from acktr.run.callbacks import Evaluation, play
from acktr.run.directory import Run


def evaluate(
    run: Run, episodes: int = 20, *, best: bool = False, allow_import: bool = False
) -> Evaluation:
    """Play whole episodes with the deterministic policy of a saved run.

    :param run: the run
    :param episodes: how many
    :param best: use the model with the best evaluation instead of the last one
    :param allow_import: import modules and open files that its configuration names, which runs their
        code: it may be somebody else's
    :return: undiscounted, unclipped returns, and lengths
    :raises CheckpointError: if the run's files cannot be used
    :raises ConfigurationError: if ``episodes`` is below 1, or the environment cannot be built
    """
    if episodes < 1:
        raise ConfigurationError(f"episodes is {episodes}: at least 1 is needed.")
    n_envs = min(episodes, MAX_EVALUATION_ENVS)
    model, env = load_player(run, best, allow_import, n_envs=n_envs)
    with contextlib.closing(env):
        return play(model, env, episodes)


def record(
    run: Run,
    out: Path | None = None,
    *,
    best: bool = False,
    episodes: int = 1,
    seed: int | None = None,
    camera: str | None = None,
    allow_import: bool = False,
) -> tuple[Path, Evaluation]:
    """Film episodes of a saved run with the deterministic policy, one after another in one film.

    :param run: the run
    :param out: the mp4 file; by default ``episode.mp4`` in the run directory
    :param best: use the model with the best evaluation instead of the last one
    :param episodes: how many
    :param seed: another one gives other episodes; by default the run's own
    :param camera: of a MuJoCo model, by its name or number, or "free"; by default one that keeps the
        body in the picture, see :func:`acktr.envs.cameras.choose_camera`
    :param allow_import: as for :func:`evaluate`
    :return: the file, and the episodes' returns and lengths
    :raises CheckpointError: if the run's files cannot be used
    :raises ConfigurationError: if the environment cannot be rendered here, has no such camera, or
        ``episodes`` is below 1
    """
    if episodes < 1:
        raise ConfigurationError(f"episodes is {episodes}: at least 1 is needed.")
    out = run.path / "episode.mp4" if out is None else out
    if out.suffix != ".mp4":
        raise ConfigurationError(f"{out} is not an .mp4 file: give --out a name ending with .mp4.")
    check_film_packages()
    prepare_rendering()
    with tempfile.TemporaryDirectory() as folder:
        film_path = Path(folder, "film.mp4")
        model, env = load_player(
            run,
            best,
            allow_import,
            n_envs=1,
            seed=seed,
            wrapper=lambda env: Film(film_frames(env, camera=camera), film_path, episodes),
            render_mode="rgb_array",
        )
        with contextlib.closing(env):
            evaluation = play(model, env, episodes)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_file(out, film_path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{out} cannot be written: {error.strerror}.") from error
    return out, evaluation


def load_player(
    run: Run,
    best: bool,
    allow_import: bool = False,
    *,
    n_envs: int,
    seed: int | None = None,
    device: str | None = None,
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
    **env_kwargs: Any,
) -> tuple[ACKTR, VecEnv]:
    """Rebuild the model of a run from its configuration and put the saved parameters into it.

    :param run: the run
    :param best: the model with the best evaluation instead of the last one
    :param allow_import: as for :func:`evaluate`
    :param n_envs: environments to build
    :param seed: of the model and of its environments; by default the run's
    :param device: where to compute; by default where it was trained, if that is here
    :param wrapper: as for :func:`acktr.run.build.build_environment`, and so ``env_kwargs``
    :return: the model, and its environments, which whoever calls this closes
    :raises CheckpointError: if the run's files cannot be used
    :raises ConfigurationError: if the environment cannot be built
    """
    path = run.model_path(best)
    if not path.is_file():
        raise CheckpointError(
            f"{run.path} has no {path.name}: "
            + ("no evaluation was made, leave out --best." if best else "training saved no model.")
        )
    try:
        settings = run.read_configuration()
        check_received(settings, f"{run.path}/config.yaml", allow_import=allow_import)
        configuration = validate(settings, allow_import=allow_import)
    except ConfigurationError as error:
        raise CheckpointError(f"{run.path}/config.yaml cannot be used: {error}") from error
    if device is not None or not is_available(configuration.device):
        # Trained elsewhere: what it has learned can be played anywhere.
        configuration = configuration.model_copy(update={"device": device or "auto"})
    if seed is not None:
        configuration = validate({**configuration.model_dump(), "seed": seed})
    env = build_environment(configuration, n_envs=n_envs, training=False, wrapper=wrapper, **env_kwargs)
    try:
        model = build_model(configuration, env, configuration.seed + EVALUATION_SEED)
        run.load_model(model, best)
    except BaseException:
        env.close()
        raise
    return model, env
