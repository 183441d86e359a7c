"""Environments and model from a configuration."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from acktr.envs import make_vec_env
from acktr.envs.lookup import EVALUATION_SEED, evaluation_limit
from acktr.envs.running import VecRunningNormalize
from acktr.envs.spaces import check_spaces, fitting_policy, numbers_alone
from acktr.errors import AcktrError, ConfigurationError
from acktr.learner.algorithm import ACKTR
from acktr.networks.checks import try_networks
from acktr.networks.recurrent import POLICIES
from acktr.presets import Configuration, Normalize, resolve
from acktr.presets.classes import resolve_classes, resolve_policy
from acktr.schedules import as_discount


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
        configuration.seed + (0 if training else EVALUATION_SEED),
        backend=configuration.backend if training else _evaluation_backend(configuration),
        env_kwargs={**limit, **configuration.env_kwargs, **env_kwargs},
        wrapper=wrapper,
        pixels=configuration.pixels,
        frame_stack=configuration.frame_stack,
        worker_timeout=configuration.worker_timeout,
        worker_restarts=configuration.worker_restarts if training else 0,
    )
    try:
        # SB3 puts image channels first; training and evaluation must be wrapped in the same way.
        return ACKTR._wrap_env(_normalized(configuration, env, training))
    except BaseException:
        env.close()
        raise


def _normalized(configuration: Configuration, env: VecEnv, training: bool) -> VecEnv:
    settings = choose_normalization(configuration.normalize, env.observation_space)
    if not (settings.norm_obs or settings.norm_reward):
        return env
    gamma = as_discount(configuration.algorithm_arguments()["gamma"])(1.0)
    kwargs = {**settings.model_dump(), "norm_reward": settings.norm_reward and training}
    try:
        return VecRunningNormalize(env, training=training, gamma=gamma, **kwargs)
    except ValueError as error:
        raise ConfigurationError(
            f"The observations of {configuration.env_id} cannot be normalised ({error}): "
            "use --set normalize.norm_obs=false."
        ) from error


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
            f"ACKTR with {policy if isinstance(policy, str) else policy.__name__} cannot be built for "
            f"{configuration.env_id}: "
            f"{' '.join(f'{kind} {error}'.split())}"
        ) from error
    return model


def choose_policy(
    configuration: Configuration, observation_space: spaces.Space
) -> str | type[ActorCriticPolicy]:
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


def choose_threads(configuration: Configuration) -> None:
    """Let torch compute with one thread where networks are small, unless ``OMP_NUM_THREADS`` says more.

    They gain nothing from threads, which beside another busy process make them up to fifty times slower,
    and with one of them a seed gives the same run on machines with more or fewer cores.

    :param configuration: the settings
    """
    small = {"auto", *(name for name in POLICIES if not name.startswith("Cnn"))}
    if configuration.policy in small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def make(
    env_id: str,
    *,
    preset: str | None = None,
    seed: int = 0,
    n_envs: int | None = None,
    device: str = "auto",
    allow_import: bool = False,
    **settings: Any,
) -> ACKTR:
    """Build ACKTR with the environments, the normalisation and the settings of ``acktr train``.

    ``make("HalfCheetah-v5").learn(1_000_000)`` learns what ``acktr train HalfCheetah-v5`` does, to the
    digit; for that torch has one thread from now on, as there (:func:`choose_threads`). The environments
    are ``model.env``.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param preset: as ``--preset``; by default that of the environment's family
    :param seed: of everything random
    :param n_envs: environments that step together; by default the preset's
    :param device: where to compute
    :param allow_import: whether names of classes in settings may import modules
    :param settings: changes to the preset, as ``--set`` has them; where that takes names and mappings,
        schedules, classes, ``Natural``, ``NaturalCritic`` and ``AdamCritic`` may stand too
    :raises ConfigurationError: for an unknown environment, preset or setting, or a wrong value
    """
    if not isinstance(env_id, str):
        raise ConfigurationError(
            f"make takes the id of an environment, not {type(env_id).__name__}: give environments of "
            "your own to ACKTR, as in ACKTR('MlpPolicy', env)."
        )
    options = {"seed": seed, "n_envs": n_envs, "device": device}
    configuration, notes = resolve(
        env_id, preset=preset, settings=settings, options=options, allow_import=allow_import
    )
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    choose_threads(configuration)
    env = build_environment(configuration)
    try:
        return build_model(configuration, env)
    except BaseException:
        env.close()
        raise
