"""The configuration of a run: every setting, typed, each with the nearest name for a misspelt one.

Settings of the run are the fields of :class:`Configuration`; the arguments of the ACKTR constructor
are added to them from its signature, so that no hyperparameter is listed twice.
"""

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import typing
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
)
from stable_baselines3.common.policies import ActorCriticPolicy

from acktr.envs.backends import check_backend
from acktr.envs.make import MAX_ENVS, MAX_FRAMES
from acktr.errors import ConfigurationError
from acktr.learner.algorithm import ACKTR
from acktr.learner.foreign import REPLACED
from acktr.learner.migrations import CRITICS, parsed
from acktr.learner.moved import GONE, MOVED, gone, new_key, with_groups
from acktr.learner.settings import Natural, valid_range
from acktr.presets.classes import check_policy
from acktr.schedules import TraceDecay, written

# What the run itself decides about the constructor's arguments.
_NOT_ARGUMENTS = {"self", "policy", "env", "seed", "device", "tensorboard_log", "_init_setup_model"}

# Settings that are mappings of their own.
GROUPS = ("normalize", "natural", "critic")

# Beyond it floats, in which schedules and pictures count, skip numbers.
Steps = Annotated[int, Field(gt=0, lt=2**53)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class Normalize(_Strict):
    """Settings of SB3's ``VecNormalize``; it is used if one of the two switches is on."""

    norm_obs: bool | Literal["auto"] = True
    """"auto": vectors of numbers, and not images or what is only counted."""
    norm_reward: bool = True
    clip_obs: PositiveFloat = 10.0
    clip_reward: PositiveFloat = 10.0
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    norm_obs_keys: list[str] | None = None


class Configuration(_Strict):
    """All settings of one run; :func:`validate` adds the algorithm's arguments as fields."""

    env_id: str
    preset: str
    # Evaluations and environments count on from it, and numpy's generators end at 2**32.
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    backend: str = "auto"
    n_timesteps: Steps
    n_envs: int = Field(8, gt=0, le=MAX_ENVS)
    policy: str | type[ActorCriticPolicy] = "auto"
    """A name ACKTR knows, "auto" (chosen by the observation space), ``module:Class``, or a class."""
    normalize: Normalize = Normalize(norm_obs=False, norm_reward=False)
    pixels: bool = False
    """Observe pictures, 42 x 42 RGB, in the place of states."""
    frame_stack: int | None = Field(None, gt=0, le=MAX_FRAMES)
    worker_timeout: PositiveFloat | None = 60.0
    """Seconds that an environment in a process of its own (backend subproc) may take to answer."""
    worker_restarts: NonNegativeInt = 0
    """So many such processes are replaced when they fail."""
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    eval_interval: NonNegativeInt | None = None
    """Steps between evaluations during training; by default 20 of them, 0 for none."""
    n_eval_episodes: Steps = 5
    n_final_eval_episodes: NonNegativeInt = 20
    checkpoint_interval: NonNegativeFloat = 300.0
    """Seconds between checkpoints; 0 for one at the end alone, and where training is stopped."""
    checkpoint_steps: Steps | None = None
    """Steps between checkpoints, besides."""
    keep_last: PositiveInt = 3
    keep_best: NonNegativeInt = 1
    """So many checkpoints with the best mean return of the last 100 episodes are kept too."""
    on_checkpoint_error: Literal["stop", "continue"] = "stop"
    """Whether to go on when a checkpoint cannot be written."""
    tracker: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Where what is logged goes besides; TensorBoard has it without, where it is installed."""

    def algorithm_arguments(self) -> dict[str, Any]:
        """Arguments for the ACKTR constructor, other than policy, env, seed and device.

        :raises ConfigurationError: a schedule's name, or a value out of its range
        """
        names = type(self).model_fields.keys() - Configuration.model_fields.keys()
        return {name: _argument(name, getattr(self, name)) for name in names}

    def evaluation_interval(self) -> int:
        """Steps between evaluations during training, 0 for none."""
        return max(self.n_timesteps // 20, 1) if self.eval_interval is None else self.eval_interval


def _argument(name: str, value: Any) -> Any:
    """Turn a setting of YAML into an argument: names into schedules, mappings into settings."""
    if isinstance(value, BaseModel):
        of_group = {key: parsed(f"{name}.{key}", part) for key, part in value if key != "kind"}
        kind = getattr(value, "kind", None)
        return (Natural if kind is None else CRITICS[kind])(**of_group)
    return parsed(name, value)


def _typed(hint: Any) -> Any:
    """Let a setting that may be a schedule be its name."""
    arguments = typing.get_args(hint)
    if any(typing.get_origin(part) is collections.abc.Callable for part in arguments):
        return hint | str
    return hint | str if TraceDecay in arguments else hint


@functools.cache
def _group(cls: type, kind: str | None) -> type[BaseModel]:
    """Turn settings that check themselves into a model of their names and types."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {} if kind is None else {"kind": (Literal[kind], kind)}
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:
            fields[field.name] = (hints[field.name], Field(default_factory=dict))
        else:
            fields[field.name] = (_typed(hints[field.name]), default)
    return create_model(cls.__name__, __base__=_Strict, **fields)


@functools.cache
def complete_model() -> type[Configuration]:
    """:class:`Configuration` with one more field for each argument of the ACKTR constructor."""
    hints = typing.get_type_hints(ACKTR.__init__)
    natural = _group(Natural, None)
    critics = [_group(cls, kind) for kind, cls in CRITICS.items()]
    groups: dict[str, Any] = {
        "natural": (natural, natural()),
        "critic": (Annotated[critics[0] | critics[1], Field(discriminator="kind")], critics[0]()),
    }
    fields: dict[str, Any] = {
        name: groups.get(name, (_typed(hints.get(name, Any)), written(parameter.default)))
        for name, parameter in inspect.signature(ACKTR.__init__).parameters.items()
        if name not in _NOT_ARGUMENTS
    }
    return create_model("CompleteConfiguration", __base__=Configuration, **fields)


def setting_names() -> list[str]:
    """Names that a preset or ``--set`` may give."""
    return [name for name in complete_model().model_fields if name not in ("env_id", "preset")]


def validate(settings: Mapping[str, Any], *, allow_import: bool = False) -> Configuration:
    """Check a mapping of settings and fill in the defaults, ``normalize_targets`` by the rewards.

    :param settings: what a preset, the command line or a run's ``config.yaml`` gives
    :param allow_import: whether a class named as ``module:Class`` may be imported, which runs the
        module's code; else the module must have been imported already
    :return: the complete configuration
    :raises ConfigurationError: for an unknown name (the nearest is named) or a wrong value
    """
    for name in settings:
        if not isinstance(name, str):  # YAML's keys may be anything
            raise unknown_setting(str(name), setting_names(), "the configuration")
    tell = functools.partial(warnings.warn, category=FutureWarning, stacklevel=4)
    configuration = complete(with_groups(settings, tell))
    arguments = configuration.algorithm_arguments()
    if arguments["critic"].normalize_targets is None:
        # Not left to the constructor, which would not know what training had from the environment of an
        # evaluation.
        wanted = {"normalize_targets": not configuration.normalize.norm_reward}
        critic = configuration.critic.model_copy(update=wanted)  # type: ignore[attr-defined]  # a field
        configuration = configuration.model_copy(update={"critic": critic})
    check_policy(configuration.policy, arguments["policy_kwargs"], allow_import=allow_import)
    check_backend(configuration.backend)
    return configuration


def complete(settings: Mapping[str, Any]) -> Configuration:
    """Check names and types of settings, and fill in the defaults.

    :raises ConfigurationError: for an unknown name or a value of another type
    """
    critic = settings.get("critic")
    if isinstance(critic, Mapping):
        settings = {**settings, "critic": {"kind": "natural", **critic}}
    try:
        return complete_model()(**settings)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error


def unknown_setting(name: str, known: Iterable[str], where: str) -> ConfigurationError:
    """Say that a setting does not exist, and where it is now, or which one was probably meant.

    :param name: the misspelt name
    :param known: the names that exist
    :param where: the file or option that gave it
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(known)}."
    if name in MOVED:
        advice = f"it is now {new_key(name)}."
        if name == "critic_norm":
            advice = "it is now critic.kind, natural or adam."
    elif name in GONE:
        advice = f"{gone(name)}."
    elif name in REPLACED:  # a setting of A2C, PPO or another algorithm
        advice = f"{REPLACED[name]}."
    return ConfigurationError(f"Unknown setting {name!r} in {where}: {advice}")


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    model: type[BaseModel] = complete_model()
    kind = path.pop(1) if path[0] == "critic" and len(path) > 1 and path[1] in CRITICS else None
    if kind is not None:
        model = _group(CRITICS[kind], None)
    elif path[0] == "natural":
        model = _group(Natural, None)
    elif path[0] == "normalize":
        model = Normalize
    if problem["type"] == "extra_forbidden":
        where = path[0] if len(path) > 1 else "the configuration"
        if kind is not None and any(
            path[-1] in _group(cls, None).model_fields for cls in CRITICS.values()
        ):
            return f"critic.{path[-1]} is no setting of the critic of kind {kind}: leave it out."
        return str(unknown_setting(path[-1], model.model_fields, where))
    # The rest of the path names the branch of a union: only a nested model has settings inside.
    name = ".".join(path[:2]) if path[0] in GROUPS else path[0]
    if problem["type"] == "missing":
        return f"The setting {name!r} is missing: give it in the preset or with --set {name}=VALUE."
    given, said, wanted = problem["input"], problem["msg"].lower(), valid_range(name)
    if problem["type"].startswith("union_tag"):
        name, given, said = "critic.kind", given["kind"], f"it must be {' or '.join(CRITICS)}"
    elif name in GROUPS:
        said = "it must be a mapping of settings"
    elif wanted:
        said = f"{said}; it {wanted}"
    return f"The setting {name} = {given!r} is not valid: {said}."
