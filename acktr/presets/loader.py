"""From an environment id to a configuration: preset, section, ``--set``, options, in that order.

A preset file holds a ``default`` section and sections for single environments, which change only
what they name. Values of ``--set`` are YAML; a dotted key reaches into a mapping.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from acktr.envs import lookup
from acktr.envs.make import observes_images
from acktr.errors import ConfigurationError
from acktr.gone import renewed
from acktr.presets.received import check_received
from acktr.presets.schema import Configuration, setting_names, unknown_setting, validate
from acktr.reading import parse_yaml, read_yaml

FAMILIES = ("classic", "mujoco", "atari", "pixels")
FALLBACK, IMAGE_FALLBACK = "other", "images"  # sections of the presets for MuJoCo and Atari


class Resolution(NamedTuple):
    """A configuration, and what the user should be told about how it came about."""

    configuration: Configuration
    notes: list[str]


def resolve(
    env_id: str,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    allow_import: bool = False,
) -> Resolution:
    """Find the preset of an environment and apply what the user changed.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param preset: a family, a section of one, or the path of a YAML file; by default the family
        that the id belongs to, or ``pixels`` with the override ``pixels=true``; for an id of no
        family one that fits what the environment observes, for which one is built
    :param overrides: ``key=value`` strings, each for one setting
    :param options: settings that win over all others; those that are ``None`` are left out
    :param allow_import: as for :func:`acktr.presets.validate`
    :return: the configuration and notes for the user
    :raises ConfigurationError: for an unknown environment, preset or setting, or a wrong value
    """
    family = lookup.family(env_id)
    given: dict[str, Any] = {}
    for override in overrides:
        _apply(given, override)
    preset = preset or ("pixels" if given.get("pixels") is True else family)
    notes = []
    if preset is None:
        images = observes_images(env_id, given.get("env_kwargs"))
        preset = IMAGE_FALLBACK if images else FALLBACK
        notes.append(
            f"{env_id} belongs to no preset family: using the preset {preset!r} (--preset chooses "
            "another)."
        )
    sections, section, name = _find(preset, env_id)
    settings = _merge(sections.get("default", {}), sections.get(section, {}))
    for override in overrides:
        _apply(settings, override)
    settings.update({k: v for k, v in (options or {}).items() if v is not None})
    settings.update(env_id=env_id, preset=name)
    return Resolution(validate(settings, allow_import=allow_import), notes)


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
    saved = renewed(saved)
    settings = dict(saved)
    for override in overrides:
        _apply(settings, override)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    # What "auto" stood for is in the saved settings.
    settings.update({key: value for key, value in given.items() if (key, value) != ("backend", "auto")})
    settings["env_id"] = env_id
    if preset is not None:
        settings["preset"] = _find(preset, env_id)[2]
    typed: dict[str, Any] = {"env_id": env_id}
    for override in overrides:
        _apply(typed, override)
    check_received(settings, "the run's config.yaml", allow_import=allow_import, typed=typed)
    before, now = (validate(part, allow_import=allow_import) for part in (saved, settings))
    differing = [
        f"{key} is {new!r} and was {old!r}"
        for key, old in before.model_dump().items()
        if key not in CHANGEABLE and (new := now.model_dump()[key]) != old
    ]
    if differing:
        raise ConfigurationError(
            f"The run cannot be resumed with other settings ({'; '.join(differing)}): leave them out, "
            "or begin a new run without --resume."
        )
    return now


def _find(preset: str, env_id: str) -> tuple[dict[str, Any], str, str]:
    """Return the sections of a preset file, the section that applies, and a name for both."""
    if preset in FAMILIES:
        sections, section = _load_family(preset), env_id
    elif preset.endswith((".yaml", ".yml")) or os.path.isfile(preset):
        sections, section = _load_file(preset), env_id
    else:
        owners = {key: family for family in FAMILIES for key in _load_family(family)}
        owners.pop("default", None)
        if preset not in owners:
            choices = [*FAMILIES, *owners]
            nearest = difflib.get_close_matches(preset, choices, n=1) or choices
            raise ConfigurationError(
                f"There is no preset {preset!r}: use {' or '.join(nearest)}, or a YAML file's path."
            )
        sections, section, preset = _load_family(owners[preset]), preset, owners[preset]
    return sections, section, f"{preset}: {section if section in sections else 'default'}"


def _load_family(family: str) -> dict[str, Any]:
    text = resources.files("acktr.presets").joinpath(f"{family}.yaml").read_text(encoding="utf-8")
    return _check_sections(_parse(text, f"{family}.yaml"), f"{family}.yaml")


def _load_file(path: str) -> dict[str, Any]:
    try:
        sections = read_yaml(path)
    except OSError as error:
        raise ConfigurationError(
            f"The preset file {path} cannot be read ({error.strerror or error}): give another with "
            "--preset."
        ) from error
    except ValueError as error:
        raise _no_yaml(path, error) from error
    return _check_sections(sections, path)


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
    target[keys[-1]] = _parse(text, f"--set {override!r}")
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
        merged[key] = _merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise _no_yaml(where, error) from error


def _no_yaml(where: str, error: ValueError) -> ConfigurationError:
    return ConfigurationError(f"{where} is not valid YAML, or not of settings: {error}.")
