"""Limits on what a file says of a learner: its own names, values of their kinds, sizes it pays for."""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from acktr.envs.kinds import difference, is_number, is_whole
from acktr.errors import (
    AcktrError,
    ConfigurationError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from acktr.networks.checks import try_networks

_Algorithm = TypeVar("_Algorithm", bound="OnPolicyAlgorithm")


class Learner(Protocol):
    """Anything that knows the names it has."""

    @property
    def house(self) -> set[str]:
        """Names of all attributes that are not the user's own."""

    @property
    def remembered(self) -> tuple[str, ...]:
        """Names of those that it goes on with."""


MAX_ROLLOUT = 2**31  # bytes of the storage that the numbers of steps and environments ask for
_SLACK = 2**20  # bytes of parameters that a model may have and its file has not
# What it writes and where is up to who loads it.
_DESTINATIONS = frozenset({"tensorboard_log"})
NEEDED = ("policy_class", "policy_kwargs", "observation_space", "action_space")
_POSITIVE = {"trust_region.scale", "value_scale.bellman_std", "noise.scale", "discount.time_limit"}


def own_names(
    model: Learner, data: Mapping[str, Any], given: Collection[str], where: str
) -> dict[str, Any]:
    """Return those attributes of a file that a learner remembers: its counters, and the user's own.

    :param model: built
    :param data: the attributes by name
    :param given: names whose values are the caller's and not the file's
    :param where: names the file
    :raises UnsafeCheckpointError: a name that would take the place of a method or the like
    """
    remembered = {*model.remembered, *given}
    kept = {name: data[name] for name in data if name in remembered or name not in model.house}
    # What an older version kept, this one may compute.
    kept = {n: x for n, x in kept.items() if not isinstance(getattr(type(model), n, None), property)}
    for name in kept.keys() - remembered:
        if hasattr(type(model), name) or not name.isidentifier() or name.startswith("__"):
            raise UnsafeCheckpointError(
                f"{where} has an attribute {name[:80]!r}, which is a part of {type(model).__name__} and "
                "nothing that a file may set: not loaded."
            )
    return kept


def check_state(
    model: OnPolicyAlgorithm, state: Mapping[str, Any], arguments: Collection[str], where: str
) -> None:
    """Refuse attributes of other kinds than a learner's.

    :param model: constructed as the one that was saved
    :param state: attributes by name
    :param arguments: names that the constructor checks, or the caller has given
    :param where: names the file
    :raises DamagedCheckpointError: naming the attribute
    """
    for name, value in state.items():
        if name in arguments:
            continue
        problem = _problem(name, value, vars(model).get(name))
        if problem:
            raise DamagedCheckpointError(f"The attributes in {where} are none of a learner: {problem}.")


def _problem(name: str, value: Any, own: Any) -> str | None:
    if name in ("ep_info_buffer", "ep_success_buffer"):
        return None if value is None or _are_episodes(name, value) else f"{name} holds no episodes"
    progress = name == "_current_progress_remaining"  # has been a little below 0
    return difference(value, own, name) or (None if progress else _sign(value, own, name))


def check_parts(parts: Mapping[str, Any], state: Any, where: str) -> None:
    """Refuse states of other kinds than those of a learner's parts.

    :param parts: by name
    :param state: theirs to be, by name
    :param where: names the file
    :raises DamagedCheckpointError: naming what differs
    """
    own = {name: part.state_dict() for name, part in parts.items()}
    problem = difference(state, own, "parts")
    for part in own if problem is None else ():
        for key, value in state[part].items():
            name = f"{part}.{key}"
            if name in _POSITIVE and value is not None:
                holds = is_number(value) and 0 < value < math.inf
                problem = problem or (None if holds else f"{name} is no positive number")
            problem = problem or _sign(value, own[part][key], name)
    if problem:
        raise DamagedCheckpointError(f"The state in {where} is none of a learner: {problem}.")


def _sign(value: Any, own: Any, name: str) -> str | None:
    if name == "betas":  # of Adam, which divides by 1 - beta
        return None if all(0 <= beta < 1 for beta in value) else f"{name} is {value!r:.80}"
    below = is_number(own) and is_number(value) and value < 0 <= own
    return f"{name} is {value!r}, below 0" if below else None


def _are_episodes(name: str, value: Any) -> bool:
    if not isinstance(value, deque):
        return False
    if name == "ep_success_buffer":
        return all(is_number(x) or isinstance(x, bool | np.bool_) for x in value)
    return all(isinstance(x, dict) and is_number(x.get("r")) and is_number(x.get("l")) for x in value)


def check_optimizer(optimizer: Optimizer, state: Any, where: str) -> None:
    """Refuse the state of an optimiser whose settings and counters are of other kinds than its own.

    :param optimizer: it is to go into
    :param state: its ``state_dict`` to be
    :param where: names the file
    :raises DamagedCheckpointError: naming what differs
    """
    problem = _optimizer_problem(optimizer, state)
    if problem:
        raise DamagedCheckpointError(f"An optimiser in {where} is none of this model: {problem}.")


def _optimizer_problem(optimizer: Optimizer, state: Any) -> str | None:
    own = optimizer.state_dict()
    if not isinstance(state, Mapping) or not isinstance(state.get("param_groups"), list | tuple):
        return "it has no groups of parameters"
    pairs = [(state["param_groups"], own["param_groups"])]
    if len(state["param_groups"]) != len(own["param_groups"]):
        return "it has other groups of parameters"
    compared = [*zip(*pairs[0], strict=True), (state.get("counters", {}), own.get("counters", {}))]
    calls = "curvature_calls"  # of K-FAC
    compared.append(({calls: state[calls]} if calls in state else {}, {calls: own.get(calls)}))
    for saved, ours in compared:
        if not isinstance(saved, Mapping):
            return f"{saved!r:.80} stands in the place of settings"
        for name in ours.keys() & saved.keys():
            if name == "target_kl" and saved[name] is None:
                continue  # no bound of its own
            problem = difference(saved[name], ours[name], name) or _sign(saved[name], ours[name], name)
            if problem:
                return problem
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    of_params = state.get("state", {})
    if not isinstance(of_params, Mapping) or not of_params.keys() <= set(range(len(shapes))):
        return "it remembers other parameters"
    for index, remembered in of_params.items():
        for name, value in remembered.items() if isinstance(remembered, Mapping) else [("state", None)]:
            counts = name == "step" and (
                is_number(value) or (isinstance(value, Tensor) and not value.ndim)
            )
            if not (counts or (isinstance(value, Tensor) and value.shape == shapes[index])):
                return f"{name} of parameter {index} is not of its shape"
    return None


def check_observations(
    model: OnPolicyAlgorithm, state: Mapping[str, Any], n_envs: int, where: str
) -> None:
    """Refuse last observations that are none of a learner's environments.

    :param model: has the spaces
    :param state: ``_last_obs`` and ``_last_episode_starts``, either may be ``None``
    :param n_envs: number of environments
    :param where: names the file
    :raises DamagedCheckpointError: naming what does not fit
    """
    obs, starts = state.get("_last_obs"), state.get("_last_episode_starts")
    if obs is None:
        return  # episodes will begin anew
    space: Any = model.observation_space
    wanted: dict[str, Any] = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    found = obs if isinstance(obs, dict) else {"": obs}
    fits = found.keys() == wanted.keys() and all(
        isinstance(part, np.ndarray)
        and part.shape == (n_envs, *wanted[key].shape)
        and part.dtype.kind in "biuf"
        for key, part in found.items()
    )
    if not fits:
        raise DamagedCheckpointError(
            f"The last observations in {where} are none of {n_envs} environments."
        )
    flags = isinstance(starts, np.ndarray) and starts.shape == (n_envs,) and starts.dtype.kind in "bf"
    if starts is not None and not flags:
        raise DamagedCheckpointError(
            f"_last_episode_starts in {where} is none of {n_envs} environments."
        )


def check_classes(data: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse anything that stands in the place of a policy or a space and is none.

    :param data: the attributes by name
    :param given: names whose values are the caller's
    :raises ValueError: naming it
    """
    value = data.get("policy_class")
    if "policy_class" not in given and not (
        isinstance(value, type) and issubclass(value, ActorCriticPolicy)
    ):
        raise ValueError(f"policy_class is {value!r:.80}")
    for name in ("observation_space", "action_space"):
        if not isinstance(data[name], spaces.Space):
            raise ValueError(f"{name} is {data[name]!r:.80}")


def check_rollout(data: Mapping[str, Any], state: Any) -> None:
    """Refuse a rollout that no memory has room for.

    :param data: the attributes by name: ``n_steps``, ``n_envs`` and the spaces
    :param state: the parameters in the file, by name
    :raises ValueError: naming its size
    """
    n_steps, n_envs = data.get("n_steps") or 1, data.get("n_envs", 1)
    if not (is_whole(n_steps, 1) and is_whole(n_envs, 1)):
        raise ValueError(f"n_steps is {n_steps!r:.80} and n_envs {n_envs!r:.80}")
    space: Any = data["observation_space"]
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    each = 4 * (math.prod(data["action_space"].shape or ()) + 5)
    for part in parts:
        shape: Any = get_obs_shape(part)
        numbers = math.prod(int(x) for x in shape)
        # Bounds of a Box lie in the file; this says a number alone.
        if isinstance(part, spaces.MultiBinary) and numbers > _size(state):
            raise ValueError(
                f"observations have {numbers:,} numbers, more bytes than there are parameters"
            )
        each += numbers * (1 if is_image_space(part) else 4)
    if n_steps * n_envs * each > MAX_ROLLOUT:
        raise ValueError(
            f"{n_steps:,} steps of {n_envs:,} environments take more than {MAX_ROLLOUT:,} bytes: pass "
            "n_steps if that is meant"
        )


@contextlib.contextmanager
def parameters_within(state: Any) -> Iterator[None]:
    """Let modules be built inside ``with`` whose parameters have room in a file.

    Parameters are counted before they are filled: until then they take no memory.

    :param state: the parameters in the file, by name; a model may have twice as many bytes
    :raises ValueError: there are more
    """
    limit = 2 * _size(state) + _SLACK
    total, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal total
        if threading.get_ident() == thread and not nn.parameter.is_lazy(parameter):
            total += parameter.numel() * parameter.element_size()
            if total > limit:
                raise ValueError(f"it asks for a network of more than the {limit:,} bytes it may have")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _size(state: Any) -> int:
    tensors = state.values() if isinstance(state, Mapping) else ()
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def build(
    cls: type[_Algorithm],
    where: str,
    env: GymEnv | None,
    device: torch.device | str,
    data: dict[str, Any],
    given: set[str],
    parameters: TensorDict,
) -> _Algorithm:
    """Build what a file describes, if that is a model, and one that the file has the parameters of.

    :param cls: class of the model
    :param where: names the file
    :param env: to go on learning in
    :param device: where to compute
    :param data: the attributes by name
    :param given: names whose values are the caller's and not the file's
    :param parameters: what the file holds, by name
    :raises CheckpointError: it is none
    :raises ConfigurationError: what the caller gives is wrong
    """
    try:
        # As SB3's own load does: the constructors of algorithms have these, that of the base class not.
        model: Any = cls(  # type: ignore[call-arg]
            policy=data["policy_class"],
            env=env,  # type: ignore[arg-type]
            device=device,
            _init_setup_model=False,
        )
        data = {n: x for n, x in data.items() if n not in _DESTINATIONS or n in given}
        has_state, state = "parts" in data, data.pop("parts", None)  # who saves may leave it out
        settings = {name: data[name] for name in model.described if name in data}
        check_state(model, settings, {*given, *constructor_arguments(cls), *NEEDED}, where)
        check_classes(data, given)
        if "n_steps" not in given:
            check_rollout(data, parameters.get("policy"))
        vars(model).update(settings)
        try:
            model._check_arguments()
        except ConfigurationError as error:
            if given:
                raise
            raise DamagedCheckpointError(f"{where} holds what no model has: {error}") from error
        with parameters_within(parameters.get("policy")):
            model._setup_model()
            try_networks(model.policy)
        # Settings are in, and completed as the model was built.
        remembered = own_names(model, data, given - settings.keys(), where)
        check_state(model, remembered, {*given, *constructor_arguments(cls)}, where)
        check_observations(model, remembered, model.n_envs, where)
        vars(model).update(remembered)
        if has_state:
            model.load_parts(state, where)
    except ConfigurationError as error:
        if given:
            raise
        raise DamagedCheckpointError(f"No model can be built from {where} ({error}).") from error
    except AcktrError:
        raise
    except Exception as error:
        # What a constructor says of wrong arguments is up to torch and SB3.
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DamagedCheckpointError(f"No model can be built from {where} ({problem}).") from error
    return cast(_Algorithm, model)


def constructor_arguments(cls: type) -> set[str]:
    """Name the arguments of a class and its bases, and so the attributes that are no state."""
    signatures = [inspect.signature(base.__init__) for base in cls.__mro__]  # type: ignore[misc]  # read, not called
    return {name for signature in signatures for name in signature.parameters}
