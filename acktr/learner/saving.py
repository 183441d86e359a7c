"""``save``, ``load`` and ``set_parameters`` of an SB3 algorithm, without pickle."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import get_system_info

from acktr.errors import (
    CheckpointMismatchError,
    DamagedCheckpointError,
)
from acktr.files.allowed import allow, earlier_modules
from acktr.files.codec import Absent
from acktr.files.model_file import (
    DATA,
    NORMALIZATION,
    ModelFile,
    ModelPath,
    foreign_refusal,
    is_foreign,
    read_model,
    shown,
    write_model,
)
from acktr.learner.adopting import adopt
from acktr.learner.claims import (
    NEEDED,
    build,
    check_optimizer,
    check_parts,
    constructor_arguments,
)
from acktr.learner.fit import check_architecture, check_spaces
from acktr.learner.foreign import REPLACED, own_arguments
from acktr.learner.migrations import DERIVED_OBJECTS, current_data, is_ours
from acktr.learner.parts import Parts
from acktr.learner.settings import AdamCritic, Critic, Natural, NaturalCritic
from acktr.networks import extractors, policies, recurrent
from acktr.networks.value_head import is_normalized
from acktr.rollout import storage
from acktr.schedules import Horizon, Late, Linear, TraceDecay

_Self = TypeVar("_Self", bound="SafeAlgorithm")

# What a file may name besides classes of torch's and SB3's.
allow(
    modules=(extractors, policies, recurrent, storage),
    settings=(Natural, NaturalCritic, AdamCritic, Linear, Late, Horizon, TraceDecay),
    earlier={
        "acktr.policies": "acktr.networks.policies",
        "acktr.extractors": "acktr.networks.extractors",
        "acktr.storage": "acktr.rollout.storage",
        "acktr.rollout": "acktr.rollout.storage",
    },
)

PARTS = "parts"
# What SB3's loop counts and remembers, and goes on with.
COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
    "_episode_num",
    "_n_updates",
    "start_time",
)
MEMORY = "_last_lstm_states"  # what its policy remembers; the name is sb3-contrib's
# Where its environments are.
EPISODES = (
    "_last_obs",
    "_last_episode_starts",
    "_last_original_obs",
    MEMORY,
    "ep_info_buffer",
    "ep_success_buffer",
)
_MADE_ANEW = {"policy", "lr_schedule", "house"}  # of parameters and settings
_DESCRIPTION = ("policy_class", "observation_space", "action_space", "n_envs", "_stats_window_size")


class SafeAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm whose files hold JSON and tensors, and run nothing when they are read."""

    parts: Parts
    house: set[str]  # names of all attributes that are not the user's own
    remembered: ClassVar[tuple[str, ...]] = (*COUNTERS, *EPISODES)  # names of those that it goes on with

    @property
    def described(self) -> list[str]:
        """Names of the attributes that a learner is built by."""
        return [*_DESCRIPTION, *_settings(type(self))]

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the state of each part, and attributes of the user's own, by name."""
        names = [*COUNTERS, *(name for name in vars(self) if name not in self.house)]
        parts = {name: part.state_dict() for name, part in self.parts.owners().items()}
        return {**{name: getattr(self, name) for name in names}, PARTS: parts}

    def _excluded_save_params(self) -> list[str]:
        # Of SB3's own format, which is not written here: it pickles whatever is not left out.
        return sorted(self.house - {*self.described, *self.remembered})

    def load_parts(self, state: Mapping[str, Any], where: str) -> None:
        """Give each part its state back.

        :param state: by name of the part
        :param where: names the file
        :raises DamagedCheckpointError: it is of other kinds than the parts'; nothing was changed
        """
        check_parts(self.parts.owners(), state, where)
        for name, part in self.parts.owners().items():
            part.load_state_dict(state[name])

    def save(
        self,
        path: ModelPath,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        *,
        normalization: Mapping[str, Any] | None = None,
    ) -> None:
        """Save arguments, the state of each part and all parameters, whole or not at all.

        So are attributes of your own.

        What is neither data nor a class of torch's, SB3's or acktr's, such as a lambda, is only named,
        with a warning: give it again to :meth:`load`.

        :param path: to which ``.zip`` is added if it has no suffix, or a file open for writing
        :param exclude: names of attributes to leave out
        :param include: names of further attributes to keep
        :param normalization: statistics to keep in the same file, see
            :func:`acktr.envs.normalization.normalization_content`; loading a model leaves them alone
        :raises CheckpointWriteError: it could not be written; an earlier file is as it was
        """
        exclude, include = set(exclude or ()) - set(include or ()), set(include or ()) - _MADE_ANEW
        names = [*self.described, *EPISODES, *include]
        data = {name: vars(self)[name] for name in names if name in vars(self)} | self.state_dict()
        data = {name: value for name, value in data.items() if name not in exclude}
        components: dict[str, Any] = {DATA: data, **self.get_parameters()}
        if normalization is not None:
            components[NORMALIZATION] = normalization
        missing = write_model(path, components)
        if missing:
            listed = ", ".join(f"{name.removeprefix('data: ')} ({of})" for name, of in missing.items())
            warnings.warn(
                f"Saved without {listed}: load needs custom_objects with it.", UserWarning, stacklevel=2
            )

    @classmethod
    def load(
        cls: type[_Self],
        path: ModelPath,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> _Self:
        """Load a model; nothing in the file is executed.

        A file of SB3's A2C or PPO, or of sb3-contrib's TRPO, gives its policy, its discount factor and
        its counters; all other settings are those of a new model, because theirs are of another
        optimiser.

        :param path: with or without ``.zip``, or a file open for reading
        :param env: to go on learning in; must have the saved spaces
        :param device: where to compute
        :param custom_objects: in the place of stored attributes, and of those that could not be stored;
            a dotted path reaches into a mapping: ``{"policy_kwargs.features_extractor_class": MyCNN}``;
            what the model does not have is left out
        :param print_system_info: of the machine that saved it, and of this one
        :param force_reset: begin new episodes before going on to learn
        :param trust: unpickle a file of SB3's own, which may run any code
        :param kwargs: arguments of the constructor, or other attributes, to change
        :raises ConfigurationError: one of ``kwargs`` is no such thing, or out of its range
        :raises CheckpointMismatchError: the environment has other spaces, or parameters do not fit
        :raises CheckpointError: of the kind that tells why else it cannot be used
        """
        if is_foreign(path):
            if not trust:
                raise foreign_refusal(shown(path))
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            # What is computed anew need not be unpickled.
            objects = {**dict.fromkeys(DERIVED_OBJECTS), **(custom_objects or {})}
            with earlier_modules():
                said, parameters, _ = load_from_zip_file(
                    path, device=device, custom_objects=objects, print_system_info=print_system_info
                )
            if "n_steps" not in (said or {}):
                raise DamagedCheckpointError(f"The data of {path} are none of an on-policy algorithm.")
            return cls._from_pickles(
                str(path), said or {}, parameters or {}, custom_objects or {}, kwargs, env, device
            )
        file = read_model(path)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            print(file.system_info)
        data, parameters = _decode(cls, file, custom_objects or {}, kwargs)
        kwargs = cls._known_changes(kwargs, data)
        if "policy_kwargs" in kwargs:
            given, saved = kwargs.pop("policy_kwargs") or {}, data["policy_kwargs"]
            if given.get("log_std_init", "auto") == "auto":  # the noise is the file's anyway
                kept = {name: saved[name] for name in ("log_std_init",) if name in saved}
                given = {**given, **kept}
            if saved != given:
                raise CheckpointMismatchError(
                    f"{file.where} has the policy_kwargs {saved}, not {given}: leave them out."
                )
        if env is not None:
            env = cls._wrap_env(env, data.get("verbose", 0))
            check_spaces(file.where, data, env)
            data["n_envs"] = env.num_envs
            if force_reset:
                data["_last_obs"] = None
        given = {*kwargs, *(custom_objects or {})}
        data = _completed({**data, **kwargs}, parameters)
        model = build(cls, file.where, env, device, data, given, parameters)
        model._put_parameters(parameters, True, device, file.where)
        return model

    @classmethod
    def _from_pickles(
        cls: type[_Self],
        where: str,
        said: dict[str, Any],
        parameters: TensorDict,
        objects: Mapping[str, Any],
        changes: Mapping[str, Any],
        env: GymEnv | None,
        device: torch.device | str,
    ) -> _Self:
        """Build a model from a file of SB3's format: ACKTR's, or with another algorithm's policy."""
        changes = cls._known_changes(changes, said)
        if not is_ours(said):
            return adopt(cls, where, said, {**_own_objects(objects), **changes}, parameters, env, device)
        data = _completed({**current_data(said, where), **changes}, parameters)
        if env is not None:
            env = cls._wrap_env(env, data.get("verbose", 0))
            check_spaces(where, data, env)
            data.update(n_envs=env.num_envs, _last_obs=None)
        model = build(cls, where, env, device, data, {*changes, *objects}, parameters)
        model._put_parameters(parameters, True, device, where)
        return model

    @classmethod
    def _known_changes(cls, changes: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse what is neither an argument nor an attribute, and what is another algorithm's."""
        known = {*_arguments(cls), *(data.keys() - REPLACED.keys())}
        return own_arguments(changes, known, cls.__name__)

    def _check_arguments(self) -> None:
        """Check what the constructor checks, of attributes that a file has given."""

    def set_parameters(
        self,
        load_path_or_dict: ModelPath | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
        *,
        trust: bool = False,
    ) -> None:
        """Put in the parameters of a saved model, or a dict of them (see ``get_parameters``).

        :param load_path_or_dict: a path, an open file, or a dict
        :param exact_match: whether every parameter must be there
        :param device: ignored: parameters go where the model is
        :param trust: read a file of SB3's own
        :raises CheckpointMismatchError: they do not fit; nothing was changed
        :raises CheckpointError: of the kind that tells why else the file cannot be used
        """
        if isinstance(load_path_or_dict, dict):
            self._put_parameters(load_path_or_dict, exact_match, device, "The dict of parameters")
        elif not is_foreign(load_path_or_dict):
            file = read_model(load_path_or_dict)
            names = {name.rsplit(".", 1)[0] for name in file.files} - {DATA, NORMALIZATION}
            self._put_parameters(file.decode(names), exact_match, device, file.where)
        elif trust:
            path = load_path_or_dict
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            _, parameters, _ = load_from_zip_file(path, device=device, load_data=False)
            found: dict[str, Any] = parameters or {}
            if "curvature" not in found.get("policy.optimizer", {}):  # another algorithm's
                found = {"policy": found.get("policy", {})}
                check_architecture(self, found["policy"], str(path))
                exact_match = False
            self._put_parameters(found, exact_match, device, str(path))
        else:
            raise foreign_refusal(shown(load_path_or_dict))

    def _put_parameters(
        self, parameters: TensorDict, exact_match: bool, device: torch.device | str, where: str
    ) -> None:
        """Check everything, then change everything, or nothing."""
        policy = parameters.get("policy")
        if exact_match and policy is not None:
            check_architecture(self, policy, where)
        for name, state in parameters.items():
            own = recursive_getattr(self, name, None)
            if isinstance(own, torch.optim.Optimizer):
                check_optimizer(own, state, where)
        before = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(parameters, exact_match, device)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            # SB3 names the type of one module's parameters.
            super().set_parameters(before, True, device)  # type: ignore[arg-type]
            problem = " ".join(str(error).split())
            raise CheckpointMismatchError(
                f"{where} does not fit this model, which is as it was: {problem}"
            ) from error


def _decode(
    cls: type, file: ModelFile, custom_objects: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], TensorDict]:
    given = dict(custom_objects)
    for path in file.manifest.info.get("missing", {}):
        # What is changed anyway need not have been stored.
        name = str(path).removeprefix("data: ").split(".")[0]
        given.update({name: changes[name]} if name in changes else {})
    try:
        components = file.decode(given={"data": given})
    except Absent as error:
        name = str(error).split(" ")[0]
        raise CheckpointMismatchError(
            f"{file.where} was saved without {error}: pass custom_objects={{{name!r}: ...}}."
        ) from error
    data = components.pop(DATA, None)
    components.pop(NORMALIZATION, None)
    if not isinstance(data, dict) or any(name not in data for name in NEEDED):
        raise DamagedCheckpointError(f"The data of {file.where} lack one of {', '.join(NEEDED)}.")
    # Given where nothing was stored. What no model has is left out, as SB3 does.
    known = (constructor_arguments(cls) | data.keys()) - REPLACED.keys()
    data.update({name: value for name, value in given.items() if name in known})
    return data, components


def _completed(data: dict[str, Any], parameters: TensorDict) -> dict[str, Any]:
    """Let a critic that does not say what it predicts go on with what it did."""
    critic = data.get("critic")
    if isinstance(critic, Critic) and critic.normalize_targets is None:
        normalized = is_normalized(parameters.get("policy"))
        return {**data, "critic": replace(critic, normalize_targets=normalized)}
    return data


def _own_objects(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is no part of this algorithm: scripts for PPO give ``clip_range`` at each load."""
    return {n: value for n, value in given.items() if n not in REPLACED}


def _arguments(cls: type) -> set[str]:
    """Name the arguments of an algorithm's constructor, and of those that it hands others on to."""
    bases = [
        base for base in cls.__mro__ if issubclass(base, SafeAlgorithm) and "__init__" in vars(base)
    ]
    return {name for base in bases for name in inspect.signature(base.__init__).parameters}


def _settings(cls: type) -> list[str]:
    """Name the arguments that a model keeps as attributes."""
    return sorted(_arguments(cls) - {"self", "policy", "env", "device", "_init_setup_model"})
