"""Everything that the next update of a learner depends on, taken between two updates and put back.

It is taken where a rollout begins: the last update is done, no environment is in the middle of a step,
and nothing of the rollout storage will be read again.

What belongs to one process (its environments, its random numbers) lies in a component of its own,
``rank-0``, ``rank-1``, ...; parameters, optimisers and the statistics of normalisation are the
same for all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.envs.generators import set_legacy_state, set_python_state, set_state
from acktr.envs.normalization import normalization_state, set_normalization_state
from acktr.envs.state import NotCapturable, capture, restore
from acktr.errors import DamagedCheckpointError
from acktr.files.bundle import MANIFEST, check_size, pack, read_manifest, unpack
from acktr.files.codec import Unstorable
from acktr.learner.claims import check_observations, check_state, constructor_arguments
from acktr.learner.fit import check_architecture
from acktr.learner.saving import (
    DERIVED,
    SafeAlgorithm,
)

# Attributes that each process has for itself.
_OWN = ("_last_obs", "_last_episode_starts", "_last_original_obs", "ep_info_buffer", "ep_success_buffer")
_EPISODES = ("ep_info_buffer", "ep_success_buffer")
_RANK = {"environment", "evaluation", "normalization", "attributes", "random"}
# Attributes that the settings, the device or the clock decide.
_NOT_STATE = {
    "start_time",
    *DERIVED,
    "policy_class",
    "action_noise",
    "n_envs",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "observation_space",
    "action_space",
    "used_precision",
    "_stats_window_size",
    "_total_timesteps",
}

Components = dict[str, Any]


def capture_learner(
    model: SafeAlgorithm, evaluation: VecEnv | None = None
) -> tuple[Components, list[str]]:
    """Take the state of a learner and its environments, together with all other ranks.

    :param model: between two updates
    :param evaluation: the environments of evaluations, if there are any
    :return: trees by name, and the reasons why going on from them is not exact, if there are any
    """
    reasons: list[str] = []
    left_out = _left_out(model)
    state = {name: value for name, value in vars(model).items() if name not in left_out}
    for name in list(state):
        try:
            check_size(state[name])
        except Unstorable as error:
            del state[name]
            reasons.append(f"the attribute {name} of {type(model).__name__} is no data ({error})")
    components: Components = {
        name.replace("policy.", ""): part for name, part in model.get_parameters().items()
    }
    assert model.env is not None
    normalize = model.get_vec_normalize_env()
    components["learner"] = state
    own = {
        "environment": _capture(model.env, "the environments", reasons),
        "evaluation": None
        if evaluation is None
        else _capture(evaluation, "the environments of evaluations", reasons),
        "normalization": None if normalize is None else normalization_state(normalize),
        "attributes": {name: getattr(model, name) for name in _OWN},
        "random": random_state(model.action_space),
    }
    for rank, files in enumerate(distributed.gather(_to_bytes({"state": own, "reasons": reasons}))):
        of_rank = _from_bytes(files, f"rank {rank}")
        components[f"rank-{rank}"] = of_rank["state"]
        if rank:
            reasons += [f"rank {rank}: {reason}" for reason in of_rank["reasons"]]
    return components, reasons


def _to_bytes(tree: Any) -> bytes:
    """Turn a tree into bytes that can travel: the files of a bundle, one after the other."""
    files = pack("checkpoint", {"rank": tree}, {})
    head = json.dumps({name: len(data) for name, data in files.items()}).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(files.values())


def _from_bytes(data: bytes, where: str) -> Any:
    start = 8 + int.from_bytes(data[:8], "little")
    files = {}
    for name, length in json.loads(data[8:start]).items():
        files[name] = data[start : start + length]
        start += length
    manifest = read_manifest(files.pop(MANIFEST), "checkpoint", where)
    return unpack(files, manifest, where)["rank"]


def check_learner(model: SafeAlgorithm, components: Mapping[str, Any], where: str) -> None:
    """Refuse a state of another learner before anything is changed.

    :param model: built as the one that was saved
    :param components: what :func:`capture_learner` returned
    :param where: names them in messages
    :raises CheckpointMismatchError: another architecture
    :raises DamagedCheckpointError: a component is missing
    """
    needed = {*(name.replace("policy.", "") for name in model._get_torch_save_params()[0])}
    for name in ("learner", "rank-0", *sorted(needed)):
        if name not in components:
            raise DamagedCheckpointError(f"{where} has no component {name!r}.")
    check_architecture(model, components["policy"], where)
    if not all(bool(x.isfinite().all()) for x in components["policy"].values()):
        raise DamagedCheckpointError(f"The parameters in {where} are not finite.")
    learner, excluded = components["learner"], _left_out(model)
    if not isinstance(learner, Mapping):
        raise DamagedCheckpointError(f"The attributes in {where} are no mapping.")
    kept = {name: value for name, value in learner.items() if name in vars(model).keys() - excluded}
    check_state(model, kept, (), where)
    for name in {"rank-0", f"rank-{distributed.rank()}"} & components.keys():
        own = components[name]
        if (
            not isinstance(own, Mapping)
            or _RANK - own.keys()
            or not isinstance(own["attributes"], Mapping)
        ):
            raise DamagedCheckpointError(f"{name} of {where} lacks a part, or is none.")
        attributes = own["attributes"]
        if set(_OWN) - attributes.keys():
            raise DamagedCheckpointError(f"{name} of {where} lacks an attribute.")
        check_state(model, {key: attributes[key] for key in _EPISODES}, (), where)


def restore_learner(
    model: SafeAlgorithm, components: Mapping[str, Any], where: str, evaluation: VecEnv | None = None
) -> list[str]:
    """Bring a learner and its environments to a state.

    :param model: built as the one that was saved, and not yet used
    :param components: what :func:`capture_learner` returned
    :param where: names them in messages
    :param evaluation: the environments of evaluations, if there are any
    :return: what could not be restored, so that going on is not exact; empty if all was
    :raises CheckpointError: the state is of another learner
    """
    check_learner(model, components, where)
    names = model._get_torch_save_params()[0]
    parameters = {name: components[name.replace("policy.", "")] for name in names}
    model._put_parameters(parameters, True, model.device, where)
    states = vars(model).keys() - _left_out(model)
    for name, value in components["learner"].items():
        if name in states:
            setattr(model, name, value)
    made_by = sum(name.startswith("rank-") for name in components)
    assert model.env is not None
    if made_by != distributed.size():
        # Who draws what is no longer as it was: all begin new episodes with what all have learned, and
        # draw other numbers than at the beginning.
        if model.seed is not None:
            model.set_random_seed(model.seed + model.num_timesteps)
        _begin_anew(model, components["rank-0"])
        return [f"it was made by {made_by} processes and this is {distributed.size()}"]
    own = components[f"rank-{distributed.rank()}"]
    problems: list[str] = []
    check_observations(model, own["attributes"], model.env.num_envs, where)
    if own["environment"] is not None and _restore(model.env, own["environment"], problems):
        for name in _OWN:
            setattr(model, name, own["attributes"][name])
    else:
        _begin_anew(model, own)
    if evaluation is not None and own["evaluation"] is not None:
        _restore(evaluation, own["evaluation"], problems)
    # Last: whatever came before may have drawn.
    set_random_state(own["random"], model.action_space)
    return problems


def _left_out(model: SafeAlgorithm) -> set[str]:
    excluded = {*model._excluded_save_params(), *_NOT_STATE, *_OWN}
    return excluded | constructor_arguments(type(model))


def _capture(env: VecEnv, what: str, reasons: list[str]) -> Any:
    try:
        state = capture(env)
        check_size(state)
    except (NotCapturable, Unstorable) as error:
        reasons.append(f"{what} begin anew: {error}")
        return None
    return state


def _restore(env: VecEnv, state: Any, problems: list[str]) -> bool:
    try:
        restore(env, state)
    except (NotCapturable, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problems.append(f"their state does not fit here ({error})")
        return False
    return True


def _begin_anew(model: SafeAlgorithm, own: Mapping[str, Any]) -> None:
    """Begin new episodes; what was averaged over the old ones stays."""
    assert model.env is not None
    normalize = model.get_vec_normalize_env()
    if normalize is not None and own["normalization"] is not None:
        set_normalization_state(normalize, own["normalization"])
    model._last_obs = model.env.reset()  # type: ignore[assignment]  # SB3: no tuples
    model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
    if normalize is not None:
        model._last_original_obs = normalize.get_original_obs()
    for name in _EPISODES:
        setattr(model, name, own["attributes"][name])


def random_state(action_space: spaces.Space) -> dict[str, Any]:
    """Return the state of all generators that a learner draws from."""
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # whoever draws from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "actions": action_space.np_random.bit_generator.state,
    }


def set_random_state(state: Mapping[str, Any], action_space: spaces.Space) -> None:
    """Undo :func:`random_state`.

    :raises ValueError: also TypeError and the like: a generator has no such state
    """
    set_python_state(random, *state["python"])
    set_legacy_state(np.random, state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) <= torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    set_state(action_space.np_random.bit_generator, state["actions"])
