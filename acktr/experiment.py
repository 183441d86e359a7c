"""A whole experiment: environments and model from a configuration, training, evaluation, video."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.algorithm import ACKTR
from acktr.callbacks import Evaluation, play
from acktr.checkpoint.durable import write_file
from acktr.devices import check_device, is_available
from acktr.envs import make_vec_env
from acktr.envs.lookup import evaluation_limit
from acktr.envs.pixels import film_frames
from acktr.envs.running import VecRunningNormalize
from acktr.envs.spaces import check_spaces, fitting_policy, numbers_alone
from acktr.envs.video import Film, check_film_packages, prepare_rendering
from acktr.errors import AcktrError, CheckpointError, ConfigurationError
from acktr.networks import try_networks
from acktr.options import as_discount
from acktr.presets import Configuration, Normalize, validate
from acktr.presets.classes import resolve_classes, resolve_policy
from acktr.presets.received import check_received
from acktr.runs import Run
from acktr.training import Result, follow_training, run_training

# Environments of an evaluation start from seeds that training with small seeds does not use.
_EVALUATION_SEED = 1_000_000
_MAX_EVALUATION_ENVS = 10


def build_environment(
    configuration: Configuration,
    *,
    n_envs: int | None = None,
    training: bool = True,
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
    **env_kwargs: Any,
) -> VecEnv:
    """Build the environments that a configuration asks for.

    :param configuration: the settings
    :param n_envs: how many, if not as many as the configuration says
    :param training: whether normalisation statistics move and rewards are normalised
    :param wrapper: passed on to :func:`acktr.envs.make_vec_env`
    :param env_kwargs: further arguments for ``gymnasium.make``
    :raises ConfigurationError: as :func:`acktr.envs.make_vec_env` does, or for observations that
        should be normalised and cannot be
    """
    limit = {} if training else evaluation_limit(configuration.env_id)
    env = make_vec_env(
        configuration.env_id,
        configuration.n_envs if n_envs is None else n_envs,
        configuration.seed + (0 if training else _EVALUATION_SEED),
        backend=configuration.backend if training else _evaluation_backend(configuration),
        env_kwargs={**limit, **configuration.env_kwargs, **env_kwargs},
        wrapper=wrapper,
        pixels=configuration.pixels,
        frame_stack=configuration.frame_stack,
        worker_timeout=configuration.worker_timeout,
        worker_restarts=configuration.worker_restarts if training else 0,
    )
    settings = choose_normalization(configuration.normalize, env.observation_space)
    if settings.norm_obs or settings.norm_reward:
        try:
            env = VecRunningNormalize(
                env,
                training=training,
                gamma=as_discount(configuration.algorithm_arguments()["gamma"])(1.0),
                **{**settings.model_dump(), "norm_reward": settings.norm_reward and training},
            )
        except ValueError as error:
            raise ConfigurationError(
                f"The observations of {configuration.env_id} cannot be normalised ({error}): "
                "use --set normalize.norm_obs=false."
            ) from error
    # SB3 puts image channels first; training and evaluation must be wrapped in the same way.
    return ACKTR._wrap_env(env)


def _evaluation_backend(configuration: Configuration) -> str:
    # An evaluation has few environments and must not depend on worker processes, nor on the engine
    # that training had; but where training was asked not to use a native one, it uses none.
    return "gymnasium" if configuration.backend in ("gymnasium", "subproc") else "auto"


def build_model(configuration: Configuration, env: VecEnv, seed: int | None = None) -> ACKTR:
    """Build the model that a configuration asks for.

    :param configuration: the settings
    :param env: what :func:`build_environment` returned
    :param seed: seeds weights, actions and environments, if not the seed of the configuration
    :raises ConfigurationError: if ACKTR or its policy refuse an argument
    """
    arguments = configuration.algorithm_arguments()
    arguments["policy_kwargs"] = resolve_classes(arguments["policy_kwargs"]) or None
    policy = choose_policy(configuration, env.observation_space)
    # Once more with the wrappers' spaces, which the constructor sees: its messages lack the id.
    check_spaces(
        configuration.env_id,
        env.observation_space,
        env.action_space,
        resolve_policy(policy),
        arguments["policy_kwargs"],
    )
    try:
        model = ACKTR(
            resolve_policy(policy),
            env,
            seed=configuration.seed if seed is None else seed,
            device=configuration.device,
            **arguments,
        )
        try_networks(model.policy)
    except AcktrError:
        raise
    except Exception as error:
        # What policies and torch raise for arguments with right names and wrong values is up to them.
        kind = "" if isinstance(error, AssertionError | TypeError | ValueError) else type(error).__name__
        raise ConfigurationError(
            f"ACKTR with {policy} cannot be built for {configuration.env_id}: "
            f"{' '.join(f'{kind} {error}'.split())}"
        ) from error
    return model


def choose_policy(configuration: Configuration, observation_space: spaces.Space) -> str:
    """Turn the policy "auto" into the name of one that fits the observations."""
    return fitting_policy(observation_space) if configuration.policy == "auto" else configuration.policy


def choose_normalization(settings: Normalize, observation_space: spaces.Space) -> Normalize:
    """Turn ``norm_obs: auto`` into whether, and which, observations are normalised."""
    if settings.norm_obs != "auto":
        return settings
    chosen = numbers_alone(observation_space)
    if settings.norm_obs_keys is not None:
        chosen = {"norm_obs": True}
    return settings.model_copy(update=chosen)


class Experiment:
    """Environments and model of one run, built and checked before anything is written.

    :param configuration: the settings
    :raises ConfigurationError: if they cannot be built
    """

    def __init__(self, configuration: Configuration) -> None:
        check_device(configuration.device)  # ACKTR may take another, and the run would not say which
        n_eval_envs = min(configuration.n_eval_episodes, _MAX_EVALUATION_ENVS)
        with contextlib.ExitStack() as opened:
            # Each rank steps environments of its own.
            seed = distributed.own_seed(configuration.seed, configuration.n_envs)
            self.env = build_environment(configuration.model_copy(update={"seed": seed}))
            opened.callback(self.env.close)
            self.eval_env = build_environment(configuration, training=False, n_envs=n_eval_envs)
            opened.callback(self.eval_env.close)
            # What "auto" stood for belongs into the configuration that the run keeps.
            self.configuration = configuration.model_copy(
                update={
                    "policy": choose_policy(configuration, self.env.observation_space),
                    "backend": self.env.backend,  # type: ignore[attr-defined]
                }
            )
            self.model = build_model(self.configuration, self.env)
            # Nothing was refused: from here on close() does it.
            opened.pop_all()

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
        self.eval_env.close()

    def train(
        self,
        run: Run,
        *,
        callbacks: Sequence[BaseCallback] = (),
        should_stop: Callable[[], bool] = lambda: False,
        resume: bool = False,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> Result:
        """Train to the end and leave everything in the run directory.

        :param run: the run directory
        :param callbacks: further SB3 callbacks
        :param should_stop: asked between two updates; when true, training ends, a checkpoint and the
            model are saved, and the final evaluation is left out
        :param resume: go on from the newest valid checkpoint of the directory, if there is one
        :param tell: called with a sentence about what is resumed, and whether exactly
        :raises ConfigurationError: another process trains in the directory, or it holds a run already
        :raises CheckpointError: no checkpoint can be used, or one could not be written
        :raises DivergenceError: if a value is not finite; the model before it is saved
        """
        return run_training(
            self.model,
            self.eval_env,
            self.configuration,
            run,
            callbacks=callbacks,
            should_stop=should_stop,
            resume=resume,
            tell=tell,
        )

    def follow(self, should_stop: Callable[[], bool]) -> None:
        """Train on a rank other than the first, whose :meth:`train` leaves the run directory.

        :param should_stop: asked between two updates
        """
        follow_training(self.model, self.configuration, should_stop)


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
    n_envs = min(episodes, _MAX_EVALUATION_ENVS)
    model, env = _load(run, best, allow_import, n_envs=n_envs)
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
        model, env = _load(
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


def _load(
    run: Run,
    best: bool,
    allow_import: bool = False,
    *,
    n_envs: int,
    seed: int | None = None,
    wrapper: Callable[[gym.Env], gym.Env] | None = None,
    **env_kwargs: Any,
) -> tuple[ACKTR, VecEnv]:
    """Rebuild the model of a run from its configuration and put the saved parameters into it."""
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
    if not is_available(configuration.device):
        # Trained elsewhere: what it has learned can be played anywhere.
        configuration = configuration.model_copy(update={"device": "auto"})
    if seed is not None:
        configuration = validate({**configuration.model_dump(), "seed": seed})
    env = build_environment(configuration, n_envs=n_envs, training=False, wrapper=wrapper, **env_kwargs)
    try:
        model = build_model(configuration, env, configuration.seed + _EVALUATION_SEED)
        run.load_model(model, best)
    except BaseException:
        env.close()
        raise
    return model, env
