"""Comparison of a file's contents with the model and the environment that they are to go into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from acktr.errors import CheckpointMismatchError, DamagedCheckpointError


def check_architecture(model: OnPolicyAlgorithm, state: Any, where: str) -> None:
    """Compare parameters with those of a model's policy, before any is changed.

    :param model: of whose policy they are to be
    :param state: as ``get_parameters`` has them, or as the policy's own ``state_dict``
    :param where: names it in the message
    :raises CheckpointMismatchError: lists what differs
    """
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise DamagedCheckpointError(f"The parameters of {where} are no tensors by name.")
    plain = model.policy.state_dict()
    fitting = plain if plain.keys() == state.keys() else model.get_parameters()["policy"]
    own = {name: tuple(x.shape) for name, x in fitting.items()}
    saved = {name: tuple(x.shape) for name, x in state.items()}
    differences = [
        f"{name} is {saved.get(name, 'absent')} in the file and {own.get(name, 'absent')} in the model"
        for name in dict.fromkeys([*own, *saved])
        if own.get(name) != saved.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise CheckpointMismatchError(
            f"{where} is of another architecture, nothing was changed: "
            f"{'; '.join(differences[:8])}{more}."
        )


def check_spaces(where: str, data: Mapping[str, Any], env: Any) -> None:
    """Refuse an environment of other spaces than a saved model's.

    :param where: names the file
    :param data: the model's attributes by name
    :param env: the environment
    :raises CheckpointMismatchError: shows both
    """
    for name in ("observation_space", "action_space"):
        saved, own = data[name], getattr(env, name)
        if saved != own:
            raise CheckpointMismatchError(
                f"{where} has the {name} {_describe(saved)}, the environment has {_describe(own)}: give "
                "the environment that the model was trained on."
            )


def _describe(space: Any) -> str:
    if isinstance(space, spaces.Box):
        low, high = float(np.min(space.low)), float(np.max(space.high))
        return f"Box({low:g}, {high:g}, {space.shape}, {space.dtype})"
    return str(space)
