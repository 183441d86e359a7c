"""A policy that another algorithm has trained, in a model of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.vec_env.patch_gym import _convert_space

from acktr.errors import CheckpointMismatchError, ConfigurationError, DamagedCheckpointError
from acktr.learner.claims import NEEDED, build
from acktr.learner.fit import check_architecture, check_spaces

# What of another algorithm's file means the same here.
_SHARED = (
    *NEEDED,
    *("n_envs", "gamma", "verbose", "seed", "tensorboard_log"),
    *("num_timesteps", "ep_info_buffer", "ep_success_buffer"),
)
_NOT_OF_A_NETWORK = ("optimizer_class", "optimizer_kwargs", "device")


def adopt(
    cls: Any,
    where: str,
    said: Mapping[str, Any],
    changes: Mapping[str, Any],
    parameters: TensorDict,
    env: GymEnv | None,
    device: torch.device | str,
) -> Any:
    """Build a model with the policy of an A2C, PPO or TRPO.

    :param cls: of the model
    :param where: names the file
    :param said: attributes by name
    :param changes: what the caller gives
    :param parameters: what the file holds, by name
    :param env: to go on learning in
    :param device: where to compute
    :raises CheckpointError: the policy does not fit
    """
    if any(name not in said for name in NEEDED) or "policy" not in parameters:
        raise DamagedCheckpointError(f"The data of {where} lack one of {', '.join(NEEDED)}.")
    data = {name: said[name] for name in _SHARED if name in said}
    for name in ("observation_space", "action_space"):
        data[name] = _convert_space(data[name])  # those of gym become gymnasium's
    of_policy = dict(data["policy_kwargs"] or {})
    data["policy_kwargs"] = {n: x for n, x in of_policy.items() if n not in _NOT_OF_A_NETWORK}
    if said.get("use_sde"):
        data["policy_kwargs"]["use_sde"] = True  # which is refused by name
    data.update(changes)
    if env is not None:
        env = cls._wrap_env(env, data.get("verbose", 0))
        check_spaces(where, data, env)
        data["n_envs"] = env.num_envs  # type: ignore[union-attr]  # wrapped
    try:
        given = {*data, *changes} - ({"tensorboard_log"} - changes.keys())
        model = build(cls, where, env, device, data, given, parameters)
    except ConfigurationError as error:
        raise CheckpointMismatchError(f"{where} is of another algorithm: {error}") from error
    check_architecture(model, parameters["policy"], where)
    model._put_parameters({"policy": parameters["policy"]}, False, device, where)
    return model
