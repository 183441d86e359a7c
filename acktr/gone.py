"""Settings and arguments that are gone, and what a file that still has them means now."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

# What they were where nobody gave them.
DEFAULTS: Mapping[str, Any] = {
    "overlap": False,
    "n_actor_updates": 1,
    "momentum": 0.0,
    "weight_decay": 0.0,
}
_MOVED = ("momentum", "weight_decay")

# Arguments of the constructor, and what takes their place.
REPLACED: Mapping[str, str] = {
    "n_actor_updates": "it is gone, because several steps per rollout in one trust region were worth no "
    "more than one",
    **{name: f"it is now kfac_kwargs={{{name!r}: ...}}, of actor and critic" for name in _MOVED},
}
# Settings that are none.
SETTINGS: Mapping[str, str] = {
    **REPLACED,
    "overlap": "it is gone, because environments in two halves slowed HalfCheetah down to 0.79 of its "
    "speed, and made Breakout a tenth faster",
}


def _is(value: Any, default: Any) -> bool:
    return isinstance(value, bool | int | float) and value == default


# Values that mean what ACKTR does anyway.
HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    name: functools.partial(_is, default=DEFAULTS[name]) for name in REPLACED
}


def renewed(
    settings: Mapping[str, Any], tell: Callable[[str], None] = lambda sentence: None
) -> dict[str, Any]:
    """Return the settings of a run in the words of now, whatever version they are of.

    What has no words now stays, and is refused by name where settings are checked.

    :param settings: by name
    :param tell: called with a sentence about what is ignored
    """
    now = _in_words_of_now(settings)
    if now.pop("overlap", False) is not False:
        tell("overlap is gone, and made no difference to what is learned: ignored.")
    return now


def renewed_attributes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes in the file of a model in the words of now, whatever version they are of.

    What has no words now is left out with a warning: the model has learned what it has learned.

    :param data: by name
    """
    now = _in_words_of_now(data)
    if "n_actor_updates" in now:
        warnings.warn(
            f"The model was trained with n_actor_updates={now.pop('n_actor_updates')!r:.80}, which is "
            "gone: from now on the actor takes one step per rollout.",
            UserWarning,
            stacklevel=3,
        )
    return now


def _in_words_of_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    now = {k: v for k, v in settings.items() if not (k in REPLACED and _is(v, DEFAULTS[k]))}
    for name in ("kfac_kwargs", "critic_kfac_kwargs"):
        kwargs = now.get(name)
        if isinstance(kwargs, Mapping) and _is(kwargs.get("length_floor"), 0.0):
            now[name] = {key: value for key, value in kwargs.items() if key != "length_floor"}
    both, critic = (now.get(name) for name in ("kfac_kwargs", "critic_kfac_kwargs"))
    both, critic = {} if both is None else both, {} if critic is None else critic
    if isinstance(both, Mapping) and isinstance(critic, Mapping):
        moved = {name: now.pop(name) for name in _MOVED if name in now}
        if moved:
            now["kfac_kwargs"] = {**both, **moved}
        if "momentum" in moved:  # it was the actor's alone
            now["critic_kfac_kwargs"] = {**critic, "momentum": 0.0}
    return now
