"""The observation and action spaces that ACKTR can work with, and one sentence for any other."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from acktr.errors import ConfigurationError

_OBSERVATIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
MIN_IMAGE_SIDE = 36  # in pixels: of less the convolutions of ``PaperCNN`` leave nothing
_ACTIONS = "Box, Discrete, MultiDiscrete and MultiBinary"


def check_spaces(env_id: str, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Refuse what ACKTR cannot learn from.

    :param env_id: names the environment in the message
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of these
    :param action_space: Box with finite bounds, Discrete, MultiDiscrete or MultiBinary
    :raises ConfigurationError: for any other space
    """
    problem = _action_problem(action_space) or _observation_problem(observation_space)
    if problem:
        raise ConfigurationError(f"{env_id} {problem}.")


def fits_convolutions(space: spaces.Space) -> bool:
    """Tell whether observations are images, channels first or last, that are large enough for a CNN."""
    return is_image_space(space) and sorted(space.shape or ())[1] >= MIN_IMAGE_SIDE


def numbers_alone(space: spaces.Space, kind: type = np.number) -> dict[str, Any]:
    """Return arguments for ``VecNormalize`` that leave images, and what is counted, as they are.

    :param space: of the observations
    :param kind: of the numbers that are normalised, such as ``np.floating``
    """
    if isinstance(space, spaces.Dict):
        keys = [key for key, part in space.items() if _is_vector(part, kind)]
        return {"norm_obs": bool(keys), "norm_obs_keys": keys}
    return {"norm_obs": _is_vector(space, kind)}


def _is_vector(space: spaces.Space, kind: type) -> bool:
    numbers = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, kind)
    return bool(numbers) and not fits_convolutions(space)


def _action_problem(space: spaces.Space) -> str | None:
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            return f"has a Box action space of {space.dtype}: ACKTR needs floating-point actions"
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            return "has unbounded actions: give each a finite range with RescaleAction or ClipAction"
        return None
    if isinstance(space, spaces.Discrete):
        if space.start != 0:
            return f"counts its actions from {space.start}: ACKTR needs them to start at 0"
        return None
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1:
            return f"has a MultiDiscrete action space of {space.nvec.ndim} dimensions: flatten it"
        return None
    if isinstance(space, spaces.MultiBinary):
        if not isinstance(space.n, (int, np.integer)):
            return f"has a MultiBinary action space of shape {space.shape}: flatten it"
        return None
    return f"has a {type(space).__name__} action space: ACKTR supports {_ACTIONS}"


def _observation_problem(space: spaces.Space) -> str | None:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            if not isinstance(inner, _OBSERVATIONS):
                return (
                    f"has a {type(inner).__name__} space under the observation key {key!r}: "
                    "ACKTR supports a flat Dict of Box, Discrete, MultiDiscrete and MultiBinary"
                )
        return None
    if isinstance(space, _OBSERVATIONS):
        return None
    return (
        f"has a {type(space).__name__} observation space: wrap it with gymnasium's "
        "FlattenObservation, or with one that returns a Box or a Dict"
    )
