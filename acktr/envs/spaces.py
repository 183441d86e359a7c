"""The observation and action spaces that ACKTR can work with, and one sentence for any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common import policies as sb3
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from acktr.envs.adapter import Adapter
from acktr.errors import ConfigurationError
from acktr.networks import policies
from acktr.networks.extractors import MIN_IMAGE_SIDE, ImageNetwork, MixedExtractor, SmallCNN, is_large
from acktr.networks.recurrent import POLICIES, RecurrentPolicy

_OBSERVATIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_SUPPORTED = "Box, Discrete, MultiDiscrete and MultiBinary"
# The networks that policies read observations with, by the class whose constructor says so.
_READERS: dict[type | None, type[nn.Module]] = {
    policies.MlpPolicy: FlattenExtractor,
    policies.CnnPolicy: SmallCNN,
    policies.MultiInputPolicy: MixedExtractor,
    sb3.ActorCriticCnnPolicy: NatureCNN,
    sb3.MultiInputActorCriticPolicy: CombinedExtractor,
    sb3.ActorCriticPolicy: FlattenExtractor,
}
_LARGE_ALONE = (policies.PaperCNN, NatureCNN)
_OF_ONES_OWN = (
    "or a network of your own, --set policy_kwargs.features_extractor_class=module:Class "
    "--allow-import, in Python policy_kwargs=dict(features_extractor_class=...)"
)


def check_spaces(
    env_id: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    policy: str | type | None = None,
    policy_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse spaces that ACKTR cannot learn from.

    :param env_id: names the environment in the message
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of these
    :param action_space: Box of floats with finite bounds, Discrete, MultiDiscrete or MultiBinary
    :param policy: that is to read the observations: a name or a class; ``None`` if it is not known yet
    :param policy_kwargs: for the policy, classes and not their names
    :raises ConfigurationError: for any other space, or one that the policy does not read
    """
    problem = _action_problem(action_space) or _observation_problem(observation_space)
    if problem is None and policy is not None:
        problem = _policy_problem(observation_space, policy, policy_kwargs or {})
    if problem:
        raise ConfigurationError(f"{env_id} {problem}.")


def check_stack(env_id: str, observation_space: spaces.Space) -> None:
    """Refuse to stack observations that have no axis to stack along.

    :param env_id: names the environment in the message
    :param observation_space: of one environment
    :raises ConfigurationError: naming what cannot be stacked
    """
    parts = (
        observation_space.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    )
    for part in parts:
        if not (isinstance(part, spaces.Box) and part.shape):
            raise ConfigurationError(
                f"{env_id} observes a {describe(part)}, which cannot be stacked: leave out frame_stack."
            )


def adapt(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    policy: type,
    policy_kwargs: Mapping[str, Any],
) -> Adapter:
    """Return what stands between the spaces of an environment and those of a policy.

    :param observation_space: of the environment, which :func:`check_spaces` accepts
    :param action_space: of the environment
    :param policy: its class
    :param policy_kwargs: for the policy
    """
    reader, options = _reader(policy, policy_kwargs)
    images: tuple[int, ...] = ()
    if issubclass(reader or object, (ImageNetwork, NatureCNN)):
        images = (2, 3)
    elif issubclass(reader or object, CombinedExtractor) and options.get("normalized_image"):
        images = (3,)
    return Adapter(observation_space, action_space, images)


def fits_convolutions(space: spaces.Space) -> bool:
    """Tell whether observations are images, channels first or last, that are large enough for a CNN."""
    return is_image_space(space) and sorted(space.shape or ())[1] >= MIN_IMAGE_SIDE


def are_unread_pictures(space: spaces.Space) -> bool:
    """Tell whether observations are pictures by their shape, and not of the bytes that images have."""
    return (
        _is_image(space)
        and len(space.shape or ()) == 3
        and not is_image_space(space)
        and _is_large(space)
    )


def fitting_policy(space: spaces.Space) -> str:
    """Name the policy for observations; images too small for the usual networks are flattened."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if fits_convolutions(space) else "MlpPolicy"


def numbers_alone(space: spaces.Space, kind: type = np.number) -> dict[str, Any]:
    """Return arguments for ``VecNormalize`` that leave images and counts as they are.

    :param space: of the observations
    :param kind: of the numbers that are normalised, such as ``np.floating``
    """
    if isinstance(space, spaces.Dict):
        keys = [key for key, part in space.items() if _is_vector(part, kind)]
        return {"norm_obs": bool(keys), "norm_obs_keys": keys}
    return {"norm_obs": _is_vector(space, kind)}


def describe(space: spaces.Space) -> str:
    """Name a space and its shape, without the bounds of each number."""
    kind = type(space).__name__
    return f"{kind} of shape {space.shape}" if isinstance(space, spaces.Box) else kind


def _is_vector(space: spaces.Space, kind: type) -> bool:
    numbers = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, kind)
    return bool(numbers) and not fits_convolutions(space)


def _action_problem(space: spaces.Space) -> str | None:
    if not isinstance(space, _OBSERVATIONS):
        return (
            f"has a {type(space).__name__} action space: ACKTR supports {_SUPPORTED}, so put its parts "
            "into one of them with a wrapper (gymnasium.ActionWrapper)"
        )
    if not np.prod(space.shape or (1,)):
        return f"has an action space of shape {space.shape}: there is nothing to decide"
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            return (
                f"has a Box action space of {space.dtype}: ACKTR needs floating-point actions, so make "
                "it MultiDiscrete, or round floats in a wrapper (gymnasium's TransformAction)"
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            return "has unbounded actions: give each a finite range with RescaleAction or ClipAction"
    return None


def _observation_problem(space: spaces.Space) -> str | None:
    if isinstance(space, spaces.Dict):
        return _dict_problem(space)
    if isinstance(space, _OBSERVATIONS):
        if not np.prod(space.shape or (1,)):
            return f"has an observation space of shape {space.shape}: there is nothing to observe"
        return None
    advice = "a wrapper that returns a Box or a Dict of them"
    if _flattens(space):
        advice = f"gymnasium's FlattenObservation, or with {advice}"
    return f"has a {type(space).__name__} observation space: wrap it with {advice}"


def _dict_problem(space: spaces.Dict) -> str | None:
    for key, inner in space.spaces.items():
        if not isinstance(inner, _OBSERVATIONS):
            flatten = ", or flatten all with FlattenObservation" if _flattens(space) else ""
            return (
                f"has a {type(inner).__name__} under the observation key {key!r}: ACKTR supports a flat "
                f"Dict of {_SUPPORTED}, so leave the key out with gymnasium's wrapper FilterObservation"
                f"{flatten}"
            )
    if not any(np.prod(inner.shape or (1,)) for inner in space.spaces.values()):
        return "has a Dict observation space without a number in it: there is nothing to observe"
    images = [inner for inner in space.spaces.values() if is_image_space(inner)]
    first = {is_image_space_channels_first(inner) for inner in images if isinstance(inner, spaces.Box)}
    if len(first) > 1:
        return (
            "has images with channels first and others with channels last in its Dict: give all of them "
            "one order"
        )
    return None


def _flattens(space: spaces.Space) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # a space of somebody's own
        return False


def _reader(
    policy: str | type, policy_kwargs: Mapping[str, Any]
) -> tuple[type[nn.Module] | None, Mapping[str, Any]]:
    """Return the network that a policy reads observations with, and its arguments.

    ``None`` for a policy whose constructor or ``extract_features`` is its own: it may choose any. A
    :class:`SmallCNN` stands for one of :class:`~acktr.networks.policies.CnnPolicy`'s choice.
    """
    kind = POLICIES.get(policy) if isinstance(policy, str) else policy
    given = policy_kwargs.get("features_extractor_class")
    options = policy_kwargs.get("features_extractor_kwargs") or {}
    if kind is None or _owner(kind, "extract_features") not in _READERS:
        return None, options
    if given is not None:
        return (given if isinstance(given, type) else None), options
    return _READERS.get(_owner(kind, "__init__")), options


def _owner(kind: type, name: str) -> type | None:
    # A memory reads features, and not observations.
    bases = (base for base in kind.__mro__ if base is not RecurrentPolicy)
    return next((base for base in bases if name in vars(base)), None)


def _policy_problem(
    space: spaces.Space, policy: str | type, policy_kwargs: Mapping[str, Any]
) -> str | None:
    reader, options = _reader(policy, policy_kwargs)
    if reader is None:
        return None
    normalized = bool(options.get("normalized_image"))
    problem = None
    if issubclass(reader, (ImageNetwork, NatureCNN)):
        if _is_image(space) and reader in _LARGE_ALONE and not _is_large(space):
            return _size_problem(space, reader)
        problem = _image_problem(space, reader, normalized)
    elif issubclass(reader, CombinedExtractor) and isinstance(space, spaces.Dict):
        return _keys_problem(space, reader, normalized)
    elif issubclass(reader, CombinedExtractor) or (
        reader is FlattenExtractor and isinstance(space, spaces.Dict)
    ):
        problem = f"which {policy if isinstance(policy, str) else policy.__name__} cannot read"
    if problem is None:
        return None
    better = fitting_policy(space)
    return f"observes a {describe(space)}, {problem}: use --set policy={better}, in Python {better!r}"


def _image_problem(space: spaces.Space, reader: type[nn.Module], normalized: bool) -> str | None:
    """Tell why a CNN cannot read observations, as the continuation of a sentence."""
    if not _is_image(space):
        return "and a CNN reads images, of (height, width, channels) or (channels, height, width)"
    if reader is NatureCNN and not (normalized or is_image_space(space)):
        return (
            "and NatureCNN reads bytes from 0 to 255 of three dimensions, or any numbers with "
            "features_extractor_kwargs=dict(normalized_image=True)"
        )
    return None


def _size_problem(space: spaces.Space, reader: type[nn.Module]) -> str:
    return (
        f"observes a {describe(space)}, and {reader.__name__} needs images of {MIN_IMAGE_SIDE} x "
        f"{MIN_IMAGE_SIDE} and more: use --set policy=CnnPolicy, in Python 'CnnPolicy', without a "
        f"features_extractor_class, which takes a network that fits, {_OF_ONES_OWN}"
    )


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) in (2, 3)


def _is_large(image: spaces.Space) -> bool:
    if isinstance(image, spaces.Box) and is_image_space(image):
        return is_large(image) if is_image_space_channels_first(image) else fits_convolutions(image)
    return is_large(Adapter(image, spaces.Discrete(1), (2, 3)).observation_space)


def _keys_problem(space: spaces.Dict, reader: type[nn.Module], normalized: bool) -> str | None:
    for key, part in space.spaces.items():
        if not isinstance(key, str) or not key or "." in key or hasattr(nn.ModuleDict(), key):
            return (
                f"has the observation key {key!r}, which torch does not take for the name of a module: "
                "rename it in a wrapper (gymnasium.ObservationWrapper)"
            )
        image = isinstance(part, spaces.Box) and is_image_space(part, normalized_image=normalized)
        if reader is CombinedExtractor and image and not _is_large(part):
            return (
                f"has images of {part.shape} under the observation key {key!r}, and CombinedExtractor "
                f'needs those of {MIN_IMAGE_SIDE} x {MIN_IMAGE_SIDE} and more: use "MultiInputPolicy" '
                f"without a features_extractor_class, which takes a network that fits, {_OF_ONES_OWN}"
            )
    return None
