"""From an environment id to a configuration: preset, section, ``--set``, options, in that order.

A preset file holds a ``default`` section and sections for single environments, which change only
what they name. Values of ``--set`` are YAML; a dotted key reaches into a mapping.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from acktr.envs import lookup
from acktr.envs.make import try_environment
from acktr.envs.spaces import are_unread_pictures, describe, fits_convolutions
from acktr.errors import ConfigurationError
from acktr.files.reading import parse_yaml, read_yaml
from acktr.learner.migrations import CRITICS
from acktr.learner.moved import OF_BOTH_CRITICS, current_settings
from acktr.learner.settings import Natural
from acktr.networks.recurrent import POLICIES, RecurrentPolicy
from acktr.presets.received import check_received
from acktr.presets.schema import GROUPS, Configuration, setting_names, unknown_setting, validate
from acktr.schedules import written

FAMILIES = ("classic", "mujoco", "atari", "pixels")
PUBLISHED = "paper"  # a preset for all families, with a section for each that differs
DEFAULTS = "defaults"  # of what belongs to no family: the constructor's
IMAGE_FALLBACK = "images"  # a section of the preset for Atari


# Of a preset, what whole sequences cannot have, or the weights of a memory have another measure of.
WITHOUT_MEMORY = {
    "natural": ("damping", "cg_iterations", "sub_sampling_factor"),
    "critic": ("damping", "batch_size"),
}
MEMORIES = frozenset(name for name, cls in POLICIES.items() if issubclass(cls, RecurrentPolicy))


class Resolution(NamedTuple):
    """A configuration, and what the user should be told about how it came about."""

    configuration: Configuration
    notes: list[str]


def resolve(
    env_id: str,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    allow_import: bool = False,
) -> Resolution:
    """Find the preset of an environment and apply what the user changed.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param preset: a family, a section of one, or the path of a YAML file, which a run's
        ``config.yaml`` is too; by default the family that the id belongs to, or ``pixels`` with the
        override ``pixels=true``; for an id of no family one that fits what the environment observes,
        for which one is built
    :param overrides: ``key=value`` strings, each for one setting
    :param settings: what they say too, as values of Python; a mapping changes what it names, while
        ``Natural``, ``NaturalCritic`` and ``AdamCritic`` say all of their group
    :param options: settings that win over all others; those that are ``None`` are left out
    :param allow_import: as for :func:`acktr.presets.validate`
    :return: the configuration and notes for the user
    :raises ConfigurationError: for an unknown environment, preset or setting, a wrong value, or an
        environment of no family that cannot be used
    """
    family = lookup.family(env_id)
    given = _plain_settings(settings or {})
    for override in overrides:
        _apply(given, override)
    preset = preset or ("pixels" if given.get("pixels") is True else family)
    notes = []
    tried = preset is None
    if preset is None:
        observed = try_environment(env_id, given.get("env_kwargs"))
        preset = IMAGE_FALLBACK if fits_convolutions(observed) else DEFAULTS
        notes.append(
            f"{env_id} belongs to no preset family: using the preset {preset!r} (--preset chooses "
            "another)."
        )
        if "policy" not in given and are_unread_pictures(observed):
            notes.append(
                f"{env_id} observes a {describe(observed)}, which is flattened, for it is not of bytes "
                "from 0 to 255: --set policy=CnnPolicy reads it as an image."
            )
    sections, section, name = _find(preset, env_id, given.get("pixels") is True, allow_import)
    merged = _merge(sections.get("default", {}), sections.get(section, {}))
    if given.get("policy") in MEMORIES and preset != PUBLISHED:
        merged, left_out = _for_memory(merged)
        left = [name for name in left_out if not _is_given(given, name)]
        if left:
            notes.append(
                f"{given['policy']} remembers: {', '.join(left)} of the preset are left out, which are "
                "for policies that do not (--set gives them)."
            )
    whole = {name for name, value in (settings or {}).items() if dataclasses.is_dataclass(value)}
    merged = {name: value for name, value in merged.items() if name not in whole}
    merged = _merge(merged, _plain_settings(settings or {}))
    for override in _kind_first(overrides):
        _apply(merged, override)
    merged.update({k: v for k, v in (options or {}).items() if v is not None})
    merged.update(env_id=env_id, preset=name)
    configuration = validate(merged, allow_import=allow_import)
    if family is None and not (tried or configuration.pixels):
        try_environment(env_id, configuration.env_kwargs)  # nobody here has seen it
    return Resolution(configuration, notes)


def _for_memory(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a preset for a policy that remembers, and the names of what is gone."""
    kept, gone = dict(settings), []
    for group, names in WITHOUT_MEMORY.items():
        of_group = settings.get(group) or {}
        # How many minibatches there were says nothing of passes over whole rollouts.
        more = ("n_updates",) if of_group.get("batch_size") else ()
        gone += [f"{group}.{name}" for name in (*names, *more) if name in of_group]
        kept[group] = {k: v for k, v in of_group.items() if k not in (*names, *more)}
    return kept, gone


def _is_given(settings: Mapping[str, Any], name: str) -> bool:
    group, _, key = name.partition(".")
    return key in (settings.get(group) or {})


# What may change at a resume: how long to train, where, and how often to save.
CHANGEABLE = frozenset(
    {
        "n_timesteps",
        "device",
        "verbose",
        "n_final_eval_episodes",
        "checkpoint_interval",
        "checkpoint_steps",
        "keep_last",
        "keep_best",
        "on_checkpoint_error",
        "tracker",
    }
)


def resolve_resumed(
    env_id: str,
    saved: Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    allow_import: bool = False,
) -> Configuration:
    """Apply to the settings of an earlier run what the user gives anew.

    :param env_id: as given now
    :param saved: what the run's ``config.yaml`` holds
    :param preset: as for :func:`resolve`, and so are the others
    :return: the settings to go on with
    :raises ConfigurationError: what is given contradicts the run, naming every such key
    """
    settings = dict(saved)
    for override in _kind_first(overrides):
        _apply(settings, override)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    # What "auto" stood for is in the saved settings.
    settings.update({key: value for key, value in given.items() if (key, value) != ("backend", "auto")})
    settings["env_id"] = env_id
    if preset is not None:
        settings["preset"] = _find(preset, env_id, settings.get("pixels") is True, allow_import)[2]
    typed: dict[str, Any] = {"env_id": env_id}
    for override in overrides:
        _apply(typed, override)
    check_received(settings, "the run's config.yaml", allow_import=allow_import, typed=typed)
    before, now = (validate(part, allow_import=allow_import) for part in (saved, settings))
    differing = differences(before.model_dump(), now.model_dump())
    if differing:
        raise ConfigurationError(
            f"The run cannot be resumed with other settings ({'; '.join(differing)}): leave them out, "
            "or begin a new run without --resume."
        )
    return now


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ between two runs and may not at a resume, with both values.

    :param before: complete settings as plain values
    :param now: likewise
    """
    return [
        f"{key} is {new!r} and was {old!r}"
        for key, old, new in _pairs(before, now)
        if key not in CHANGEABLE and old != new
    ]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in now:
        old, new = before.get(key, now[key]), now[key]
        if key not in GROUPS:
            yield key, old, new
            continue
        for name in new:
            if name in old:  # else critics are of different kinds, which is said
                yield f"{key}.{name}", old[name], new[name]


def _find(preset: str, env_id: str, pixels: bool, allow_import: bool) -> tuple[dict[str, Any], str, str]:
    """Return the sections of a preset file, the section that applies, and a name for both.

    :param pixels: whether pictures are observed in the place of states
    :param allow_import: as for :func:`resolve`
    """
    if preset == "other":
        raise ConfigurationError(
            f"The preset 'other' is gone: use --preset {DEFAULTS}, as environments of no family do."
        )
    if preset == DEFAULTS:
        return _load_family(DEFAULTS), "default", DEFAULTS
    if preset in (*FAMILIES, PUBLISHED):
        sections, section = _load_family(preset), env_id
        if preset == PUBLISHED:
            section = "pixels" if pixels else str(lookup.family(env_id))
    elif preset.endswith((".yaml", ".yml")) or os.path.isfile(preset):
        sections, section = _load_file(preset, allow_import), env_id
    else:
        owners = {key: family for family in FAMILIES for key in _load_family(family)}
        owners.pop("default", None)
        if preset not in owners:
            choices = [*FAMILIES, DEFAULTS, PUBLISHED, *owners]
            nearest = difflib.get_close_matches(preset, choices, n=1) or choices
            raise ConfigurationError(
                f"There is no preset {preset!r}: use {' or '.join(nearest)}, or a YAML file's path."
            )
        sections, section, preset = _load_family(owners[preset]), preset, owners[preset]
    return sections, section, f"{preset}: {section if section in sections else 'default'}"


def _load_family(family: str) -> dict[str, Any]:
    text = resources.files("acktr.presets").joinpath(f"{family}.yaml").read_text(encoding="utf-8")
    return _check_sections(_parse(text, f"{family}.yaml"), f"{family}.yaml")


def _load_file(path: str, allow_import: bool) -> dict[str, Any]:
    try:
        sections = read_yaml(path)
    except OSError as error:
        raise ConfigurationError(
            f"The preset file {path} cannot be read ({error.strerror or error}): give another with "
            "--preset."
        ) from error
    except ValueError as error:
        raise _no_yaml(path, error) from error
    if isinstance(sections, dict) and "env_id" in sections:
        sections = {"default": _of_a_run(sections, path, allow_import)}
    return _check_sections(sections, path)


def _of_a_run(settings: dict[str, Any], path: str, allow_import: bool) -> dict[str, Any]:
    """Return what another run takes over of the settings of one, which may be somebody else's."""
    check_received({**settings, "env_id": ""}, path, allow_import=allow_import)
    try:
        current, _ = current_settings(settings, path)
    except (AttributeError, TypeError, ValueError) as error:  # of parts that are of other types
        raise ConfigurationError(f"The preset file {path} cannot be used: {error}") from error
    return {key: value for key, value in current.items() if key not in ("env_id", "preset")}


def _check_sections(sections: Any, where: str) -> dict[str, Any]:
    known = setting_names()
    holds_sections = isinstance(sections, dict) and all(
        isinstance(name, str) and isinstance(section, dict) for name, section in sections.items()
    )
    if not holds_sections:
        raise ConfigurationError(
            f"{where} must hold sections, each a mapping of settings: "
            "'default:' and, if you like, environment ids."
        )
    for section, settings in sections.items():
        for key in settings:
            if key not in known:
                raise unknown_setting(str(key), known, f"{where}, section {section}")
        _expand_normalize(settings)
    return sections


def _apply(settings: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigurationError(f"--set {override!r} is not of the form key=value.")
    known = setting_names()
    if keys[0] not in known:
        raise unknown_setting(keys[0], known, "--set")
    target = settings
    for depth, key in enumerate(keys[:-1], start=1):
        inner = target.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigurationError(
                f"--set {override!r}: {'.'.join(keys[:depth])} is {inner!r}, not a mapping."
            )
        # A copy: the sections of a preset file stay as they are.
        target[key] = dict(inner or {})
        target = target[key]
    value = _parse(text, f"--set {override!r}")
    if keys == ["critic", "kind"]:
        settings["critic"] = _merge_critic(target, {"kind": value})
    else:
        target[keys[-1]] = value
    _expand_normalize(settings)


def _expand_normalize(settings: dict[str, Any]) -> None:
    """Write ``normalize: true`` and ``false`` as the mapping that dotted keys can reach into."""
    switch = settings.get("normalize")
    if isinstance(switch, bool):
        settings["normalize"] = {"norm_obs": switch, "norm_reward": switch}


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merge = _merge_critic if key == "critic" else _merge
        merged[key] = merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _merge_critic(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings of a critic; one of another kind keeps what both kinds have in one meaning."""
    kind = base.get("kind", "natural")
    if changes.get("kind", kind) != kind:
        base = {key: base[key] for key in OF_BOTH_CRITICS if key in base and key != "learning_rate"}
    return _merge(base, changes)


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write values of Python as YAML has them; refuse what is no setting."""
    known = setting_names()
    for name in settings:
        if name not in known:
            raise unknown_setting(name, known, "the arguments")
    plain = {name: _plain(value) for name, value in settings.items()}
    _expand_normalize(plain)
    return plain


def _plain(value: Any) -> Any:
    for kind, cls in CRITICS.items():
        if type(value) is cls:
            return {"kind": kind, **_plain_fields(value)}
    if isinstance(value, Natural):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return written(value)


def _plain_fields(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _kind_first(overrides: Sequence[str]) -> list[str]:
    """Choose the critic before anything is said of it."""
    return sorted(overrides, key=lambda override: override.partition("=")[0].strip() != "critic.kind")


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise _no_yaml(where, error) from error


def _no_yaml(where: str, error: ValueError) -> ConfigurationError:
    return ConfigurationError(f"{where} is not valid YAML, or not of settings: {error}.")
