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
from acktr.files.bundle import Packed, encode_part, pack_component
from acktr.files.codec import Encoded, Unstorable
from acktr.learner.claims import check_observations, check_parts, check_state
from acktr.learner.fit import check_architecture
from acktr.learner.saving import EPISODES, MEMORY, PARTS, SafeAlgorithm

# Of what a learner goes on with, that of each process.
_DEQUES = ("ep_info_buffer", "ep_success_buffer")
_RANK = {"environment", "evaluation", "normalization", "attributes", "random"}
# Counters that the clock, or who trains on, sets anew.
_NOT_STATE = ("start_time", "_total_timesteps")

Components = dict[str, Any]


def capture_learner(
    model: SafeAlgorithm, evaluation: VecEnv | None = None
) -> tuple[Components, list[str]]:
    """Take the state of a learner and its environments, together with all other ranks.

    :param model: between two updates
    :param evaluation: the environments of evaluations, if there are any
    :return: components by name, each encoded once and from now on independent of the learner, and the
        reasons why going on from them is not exact, if there are any
    """
    reasons: list[str] = []
    components: Components = {
        name.replace("policy.", ""): pack_component(name, part)
        for name, part in model.get_parameters().items()
    }
    components["learner"] = _pack_learner(model, reasons)
    own = _pack_rank(model, evaluation, reasons)
    for rank, data in enumerate(distributed.gather(_to_bytes(own, reasons))):
        components[f"rank-{rank}"], of_rank = _from_bytes(data)
        if rank:
            reasons += [f"rank {rank}: {reason}" for reason in of_rank]
    return components, reasons


def _pack_learner(model: SafeAlgorithm, reasons: list[str]) -> Packed:
    """Pack counters and the state of the parts; attributes of the user's own as far as they are data."""
    state: dict[str, Any] = {n: x for n, x in model.state_dict().items() if n not in _NOT_STATE}
    for name in [name for name in state if name not in (*model.remembered, PARTS)]:
        try:
            state[name] = encode_part(state[name], name)
        except Unstorable as error:
            del state[name]
            reasons.append(f"the attribute {name} of {type(model).__name__} is no data ({error})")
    return pack_component("learner", state)


def _pack_rank(model: SafeAlgorithm, evaluation: VecEnv | None, reasons: list[str]) -> Packed:
    assert model.env is not None
    normalize = model.get_vec_normalize_env()
    state = {
        "environment": _capture(model.env, "environment", "the environments", reasons),
        "evaluation": None
        if evaluation is None
        else _capture(evaluation, "evaluation", "the environments of evaluations", reasons),
        "normalization": None if normalize is None else normalization_state(normalize),
        "attributes": {name: getattr(model, name) for name in EPISODES},
        "random": random_state(model.action_space),
    }
    return pack_component("rank", state)


def _to_bytes(packed: Packed, reasons: list[str]) -> bytes:
    """Turn the state of a rank into bytes that can travel."""
    head = json.dumps([len(packed.json), reasons]).encode()
    return len(head).to_bytes(8, "little") + head + packed.json + packed.tensors


def _from_bytes(data: bytes) -> tuple[Packed, list[str]]:
    start = 8 + int.from_bytes(data[:8], "little")
    length, reasons = json.loads(data[8:start])
    return Packed(data[start : start + length], data[start + length :], {}), reasons


def trees(components: Mapping[str, Any]) -> Components:
    """Return components as trees, whether they were packed or read."""
    return {n: c.tree(n) if isinstance(c, Packed) else c for n, c in components.items()}


def check_learner(model: SafeAlgorithm, components: Mapping[str, Any], where: str) -> None:
    """Refuse a state of another learner before anything is changed.

    :param model: built as the one that was saved
    :param components: what :func:`capture_learner` returned
    :param where: names them in messages
    :raises CheckpointMismatchError: another architecture
    :raises DamagedCheckpointError: a component is missing
    """
    components = trees(components)
    needed = {*(name.replace("policy.", "") for name in model._get_torch_save_params()[0])}
    for name in ("learner", "rank-0", *sorted(needed)):
        if name not in components:
            raise DamagedCheckpointError(f"{where} has no component {name!r}.")
    check_architecture(model, components["policy"], where)
    if not all(bool(x.isfinite().all()) for x in components["policy"].values()):
        raise DamagedCheckpointError(f"The parameters in {where} are not finite.")
    learner = components["learner"]
    if not isinstance(learner, Mapping):
        raise DamagedCheckpointError(f"The attributes in {where} are no mapping.")
    check_state(model, _counters(model, learner), (), where)
    check_parts(model.parts.owners(), learner.get(PARTS), where)
    for name in {"rank-0", f"rank-{distributed.rank()}"} & components.keys():
        own = components[name]
        if (
            not isinstance(own, Mapping)
            or _RANK - own.keys()
            or not isinstance(own["attributes"], Mapping)
        ):
            raise DamagedCheckpointError(f"{name} of {where} lacks a part, or is none.")
        attributes = own["attributes"]
        if set(EPISODES) - {MEMORY} - attributes.keys():
            raise DamagedCheckpointError(f"{name} of {where} lacks an attribute.")
        check_state(model, {key: attributes[key] for key in _DEQUES}, (), where)


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
    components = trees(components)
    check_learner(model, components, where)
    names = model._get_torch_save_params()[0]
    parameters = {name: components[name.replace("policy.", "")] for name in names}
    model._put_parameters(parameters, True, model.device, where)
    vars(model).update(_counters(model, components["learner"]))
    model.load_parts(components["learner"][PARTS], where)
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
        for name in EPISODES:
            setattr(model, name, own["attributes"].get(name))  # older ones had no memory
    else:
        _begin_anew(model, own)
    if evaluation is not None and own["evaluation"] is not None:
        _restore(evaluation, own["evaluation"], problems)
    # Last: whatever came before may have drawn.
    set_random_state(own["random"], model.action_space)
    return problems


def _counters(model: SafeAlgorithm, learner: Mapping[str, Any]) -> dict[str, Any]:
    """Return counters, and attributes of the user's own that this learner has too."""
    names = model.state_dict().keys() - {PARTS, *_NOT_STATE}
    return {name: value for name, value in learner.items() if name in names}


def _capture(env: VecEnv, name: str, what: str, reasons: list[str]) -> Encoded | None:
    try:
        return encode_part(capture(env), name)
    except (NotCapturable, Unstorable) as error:
        reasons.append(f"{what} begin anew: {error}")
        return None


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
    for name in _DEQUES:
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
