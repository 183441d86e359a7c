"""Peers of ACKTR as the Zoo builds them: A2C, PPO and SAC of SB3, the others of sb3-contrib."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import nn

from acktr.envs.lookup import evaluation_limit, family, find_spec, is_atari, is_installed
from acktr.envs.masks import has_masks
from acktr.envs.pixels import FRAME_STACK, make_pixel_env, pixel_arguments
from acktr.envs.spaces import fitting_policy, numbers_alone
from acktr.envs.together import TogetherVecEnv, is_together
from acktr.errors import ConfigurationError
from acktr.presets.classes import resolve_classes
from acktr.schedules import parse

OFF_POLICY = ("sac", "tqc")
PEERS = ("a2c", "ppo", "trpo", "ppo_mask", "ppo_lstm", *OFF_POLICY)
MASKED = "ppo_mask"  # sb3-contrib's MaskablePPO, by the name of its module
RECURRENT = "ppo_lstm"  # its RecurrentPPO, by the Zoo's name
_OF_CONTRIB = ("trpo", MASKED, RECURRENT, "tqc")
_SCHEDULES = ("learning_rate", "clip_range")
_NOT_ARGUMENTS = (
    "n_timesteps",
    "n_envs",
    "normalize",
    "frame_stack",
    "pixels",
    "policy",
    "zoo_entry",
    "channels_last",
)


def check_installed(algo: str) -> None:
    """Refuse an algorithm of sb3-contrib's where that is not installed.

    :raises ConfigurationError: with the pip line
    """
    if algo in _OF_CONTRIB and not is_installed("sb3_contrib"):
        raise ConfigurationError(
            f"{algo} needs sb3-contrib, which is not installed: "
            f'run `pip install "acktr[compare]"`, or leave {algo} out.'
        )


def peer_settings(
    algo: str, env_id: str, n_timesteps: int, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the Zoo's settings for a task, and under ``zoo_entry`` the id they are written under.

    :param algo: one of :data:`PEERS`
    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param n_timesteps: environment steps, in place of the Zoo's
    :param overrides: settings that replace the Zoo's; ``pixels`` for pictures in the place of states,
        ``zoo_entry`` for those under another id, or ``default`` for Stable-Baselines3's own,
        ``channels_last`` for convolutions in the memory format that CPUs are faster with: the same
        numbers but for rounding
    :raises ConfigurationError: if there is no such environment or entry
    """
    entries, overrides = _data()[algo], overrides or {}
    # The Zoo's settings for a task are tuned to its states.
    found = "default" if overrides.get("pixels") else _find_entry(entries, env_id)
    entry = overrides.get("zoo_entry", found)
    if entry not in entries:
        raise ConfigurationError(
            f"The Zoo has no settings {entry!r} for {algo}: zoo_entry is one of {', '.join(entries)}."
        )
    # What the Zoo does not know is normalised, as MuJoCo's tasks are, but for off-policy methods.
    unknown = found == "default" and family(env_id) is None and algo not in OFF_POLICY
    normalize = {"normalize": "auto"} if unknown else {}
    return {"zoo_entry": entry, **entries[entry], **normalize, **overrides, "n_timesteps": n_timesteps}


def build_model(algo: str, env_id: str, settings: Mapping[str, Any], seed: int) -> BaseAlgorithm:
    """Build a peer with its environments.

    :param settings: what :func:`peer_settings` returned
    :param seed: seeds weights, actions and environments
    :raises ConfigurationError: if sb3-contrib is missing, or an argument is refused
    """
    check_installed(algo)
    env = build_env(env_id, settings, settings.get("n_envs", 1), seed)
    if algo == MASKED and not has_masks(env):
        env.close()
        raise ConfigurationError(
            f"{MASKED} learns with masks, and {env_id} has no action_masks(): leave {MASKED} out."
        )
    policy = _fitting_policy(settings["policy"], env.observation_space)
    if algo == RECURRENT and "Lstm" not in policy:
        policy = policy.replace("Policy", "LstmPolicy")
    arguments = {key: value for key, value in settings.items() if key not in _NOT_ARGUMENTS}
    for key in _SCHEDULES:
        if isinstance(arguments.get(key), str):
            arguments[key] = parse(key, arguments[key])
    if "policy_kwargs" in arguments:
        arguments["policy_kwargs"] = _with_classes(arguments["policy_kwargs"])
    # Small networks gain nothing from an accelerator, and SB3 warns of one.
    device = "auto" if policy.startswith("Cnn") else "cpu"
    try:
        model = _class(algo)(policy, env, seed=seed, device=device, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        env.close()
        raise ConfigurationError(
            f"{algo} cannot be built for {env_id}: {' '.join(str(error).split())}"
        ) from error
    if settings.get("channels_last"):
        nn.utils.convert_conv2d_weight_memory_format(model.policy, torch.channels_last)
    return model


def build_env(
    env_id: str, settings: Mapping[str, Any], n_envs: int, seed: int, *, training: bool = True
) -> VecEnv:
    """Build the environments that settings ask for, wrapped in the Zoo's order.

    :param settings: what :func:`peer_settings` returned
    :param n_envs: how many
    :param seed: environment i starts from ``seed + i``
    :param training: whether statistics move and rewards are normalised
    """
    spec = find_spec(env_id)
    atari = is_atari(spec)
    pixels = settings.get("pixels", False)
    # AtariWrapper skips frames itself.
    env_kwargs = {"frameskip": 1} if atari else pixel_arguments({}) if pixels else {}
    env_kwargs |= {} if training else evaluation_limit(env_id)
    env: VecEnv
    if is_together(spec):
        env = TogetherVecEnv(spec, n_envs, env_kwargs)
        env.seed(seed)
    else:
        env = make_vec_env(
            lambda **kwargs: make_pixel_env(spec, kwargs) if pixels else gym.make(spec, **kwargs),
            n_envs,
            seed,
            wrapper_class=AtariWrapper if atari else None,
            env_kwargs=env_kwargs,
        )
    normalize = settings.get("normalize", False)
    if normalize == "auto":
        # SB3's rollout keeps bytes and integers as such: normalised they would lose their fractions.
        normalize = numbers_alone(env.observation_space, np.floating)
    if normalize:
        arguments = dict(normalize) if isinstance(normalize, Mapping) else {}
        arguments["gamma"] = settings.get("gamma", 0.99)
        arguments["norm_reward"] = arguments.get("norm_reward", True) and training
        env = VecNormalize(env, training=training, **arguments)
    depth = settings.get("frame_stack", 4 if atari else FRAME_STACK if pixels else 1)
    if depth > 1:
        env = VecFrameStack(env, depth)
    # SB3 puts image channels first; training and evaluation must be wrapped in the same way.
    return BaseAlgorithm._wrap_env(env)


@cache
def _data() -> dict[str, Any]:
    text = resources.files("acktr.compare").joinpath("peers.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def _find_entry(entries: Mapping[str, Any], env_id: str) -> str:
    """Name the entry: of the id, of another version of it (the highest), of its family, or default."""
    name = find_spec(env_id).id
    if name in entries:
        return name
    stem = re.sub(r"-v\d+$", "", name)
    versions = [key for key in entries if re.fullmatch(re.escape(stem) + r"-v\d+", key)]
    if versions:
        return max(versions, key=lambda key: int(key.rpartition("-v")[2]))
    fallback = _data()["families"].get(family(env_id))
    return fallback if fallback in entries else "default"


def _fitting_policy(policy: str, observation_space: spaces.Space) -> str:
    """Take the policy for images or dictionaries where the Zoo's default cannot read them well."""
    fitting = fitting_policy(observation_space)
    return policy if fitting == "MlpPolicy" else fitting


def _class(algo: str) -> type[BaseAlgorithm]:
    classes: dict[str, type[BaseAlgorithm]] = {"a2c": A2C, "ppo": PPO, "sac": SAC}
    if algo in _OF_CONTRIB:
        from sb3_contrib import TQC, TRPO, MaskablePPO, RecurrentPPO

        classes |= {"trpo": TRPO, "tqc": TQC, MASKED: MaskablePPO, RECURRENT: RecurrentPPO}
    return classes[algo]


def _with_classes(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = resolve_classes(policy_kwargs)
    if kwargs.get("optimizer_class") == "RMSpropTFLike":
        kwargs["optimizer_class"] = RMSpropTFLike
    return kwargs
