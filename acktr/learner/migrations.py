"""Migration of saved learners from the layout of 0.1.0 to the present one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from acktr.files.allowed import READERS
from acktr.files.bundle import MIGRATIONS
from acktr.kfac.options import grouped
from acktr.learner.moved import GONE, MOVED, current_settings, with_groups
from acktr.learner.settings import AdamCritic, Natural, NaturalCritic
from acktr.schedules import parse

CRITICS = {"natural": NaturalCritic, "adam": AdamCritic}
_SCHEDULES = ("learning_rate", "target_kl", "std_scale", "gamma", "gae_lambda")
# Attribute in 0.1.0: part, name in its state, and what it was before the attribute existed.
_OF_PARTS: Mapping[str, tuple[str, str, Any]] = {
    "endings": ("discount", "endings", (False, False)),
    "time_limit": ("discount", "time_limit", None),
    "advantage_variance": ("advantage_scale", "variance", 0.0),
    "advantage_count": ("advantage_scale", "count", 0),
    "bellman_std": ("value_scale", "bellman_std", 1.0),
    "noise_scale": ("noise", "scale", None),
    "kl_scale": ("trust_region", "scale", 1.0),
    "kl_rescales": ("trust_region", "rescales", 0),
}
# Attributes that were kept, and that settings or the device decide. These are no plain values:
DERIVED_OBJECTS = (
    *("lr_schedule", "target_kl_schedule", "gamma_schedule", "std_scale_schedule"),
    *("corrected_lr_schedule", "critic_lr_schedule", "rollout_buffer_class", "rollout_buffer_kwargs"),
)
_DERIVED = (
    *DERIVED_OBJECTS,
    *("used_precision", "defer_checks"),
    *("use_sde", "sde_sample_freq", "max_grad_norm", "action_noise"),
)
# Settings that are gone, of which a model keeps what it has learned.
_OF_THE_PAST = ("n_actor_updates",)


def is_ours(data: Mapping[str, Any]) -> bool:
    """Whether attributes are those of an ACKTR, and of no other algorithm."""
    return "kfac_kwargs" in data or "natural" in data


def current_data(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Turn the attributes of a saved learner into the present layout.

    :param data: arguments and attributes by name, of 0.1.0 or of now
    :param where: names the file
    :raises ConfigurationError: a setting that is gone made a difference
    """
    data = {name: _with_groups(value) for name, value in data.items()}
    if "parts" in data:
        return _with_search(data)
    state: dict[str, dict[str, Any]] = {}
    for name, (part, key, before) in _OF_PARTS.items():
        value = data.get(name, before)
        # Pickled models have tuples as lists.
        state.setdefault(part, {})[key] = tuple(value) if isinstance(value, list) else value
    state["value_scale"]["begun"] = bool(data.get("_n_updates"))
    left_out = {*_OF_PARTS, *_DERIVED, *MOVED, *GONE}
    kept = {name: value for name, value in data.items() if name not in left_out}
    return _with_search({**kept, **_settings(data, where), "parts": state})


def _with_groups(value: Any) -> Any:
    """Bring arguments of KFAC into groups, in settings that were pickled, and so not checked."""
    if not isinstance(value, Natural | NaturalCritic):
        return value
    return dataclasses.replace(value, kfac_kwargs=grouped(value.kfac_kwargs)[0])


def _with_search(data: Mapping[str, Any]) -> dict[str, Any]:
    """Add to attributes what noise has since it searches, which it did not."""
    parts = data["parts"]
    noise = {"searches": False, "told": 0, "episodes": 0, **parts["noise"]}
    return {**data, "parts": {**parts, "noise": noise}}


def _settings(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Build the settings of a model; none of what is no model but a checkpoint's state."""
    if "natural" in data or "kfac_kwargs" not in data:
        return {}
    # Models from before it existed predicted returns as they are.
    flat = {"normalize_value_targets": False, **data}
    for name in _OF_THE_PAST:
        value = flat.pop(name, None)
        made_no_difference, why = GONE[name]
        if value is not None and not made_no_difference(value):
            warnings.warn(
                f"{where} was trained with {name}={value!r}, which is gone ({why}): it keeps what it "
                "has learned, and goes on without.",
                UserWarning,
                stacklevel=2,
            )
    nested, _ = current_settings(flat, where)
    natural, critic = nested.get("natural", {}), nested.get("critic", {})
    settings = {name: parsed(name, nested[name]) for name in _SCHEDULES if name in nested}
    kind = CRITICS[critic.pop("kind", "natural")]
    return {
        **settings,
        "natural": Natural(**{name: parsed(f"natural.{name}", x) for name, x in natural.items()}),
        "critic": kind(**{name: parsed(f"critic.{name}", x) for name, x in critic.items()}),
    }


def parsed(name: str, value: Any) -> Any:
    """Return the schedule that a string names; what no schedule may stand for stays as it is.

    :param name: of the setting, with its group
    :param value: as YAML, or as 0.1.0, has it
    """
    is_schedule = name in _SCHEDULES or name.endswith("learning_rate")
    return parse(name, value) if is_schedule and isinstance(value, str) else value


def _components_of_version_1(components: dict[str, Any], where: str) -> dict[str, Any]:
    """Migrate a saved model, whose attributes are ``data``, or a checkpoint, whose are ``learner``."""
    migrated = dict(components)
    for name in ("data", "learner"):
        if isinstance(components.get(name), Mapping):
            migrated[name] = current_data(components[name], where)
    run = components.get("run")
    if isinstance(run, Mapping) and isinstance(run.get("configuration"), Mapping):
        settings, _ = current_settings(run["configuration"], where)
        migrated["run"] = {**run, "configuration": settings}
    return migrated


def _components_of_version_2(components: dict[str, Any], where: str) -> dict[str, Any]:
    """Migrate what was saved before noise searched."""
    kept = (name for name in ("data", "learner") if isinstance(components.get(name), Mapping))
    return {**components, **{name: _with_search(components[name]) for name in kept}}


def _reader(kind: type) -> Callable[..., Any]:
    """Return what builds settings of a file, which may name arguments of KFAC as 0.1.0 did."""

    def read(**values: Any) -> Any:
        ((_, settings),) = with_groups({"natural": values}).items()
        return kind(**settings)

    return read


READERS.update({kind.__name__: _reader(kind) for kind in (Natural, NaturalCritic)})
MIGRATIONS.update({1: _components_of_version_1, 2: _components_of_version_2})
