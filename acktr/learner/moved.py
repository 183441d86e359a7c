"""New places of the settings of 0.1.0: to refuse them by name, and to read the files that have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from acktr.errors import ConfigurationError
from acktr.kfac.options import grouped

# Name in 0.1.0: group, and the name in it.
MOVED: Mapping[str, tuple[str, str]] = {
    **{
        name: ("natural", name)
        for name in (
            "damping",
            "cg_iterations",
            "sub_sampling_factor",
            "kl_feedback",
            "corrected_learning_rate",
            "precision",
            "cuda_graphs",
            "kfac_kwargs",
        )
    },
    "vf_coef": ("critic", "vf_coef"),
    "critic_norm": ("critic", "kind"),
    "critic_std": ("critic", "std"),
    "normalize_value_targets": ("critic", "normalize_targets"),
    "critic_learning_rate": ("critic", "learning_rate"),
    "critic_damping": ("critic", "damping"),
    "critic_trust_region": ("critic", "trust_region"),
    "n_critic_updates": ("critic", "n_updates"),
    "critic_batch_size": ("critic", "batch_size"),
    "critic_kfac_kwargs": ("critic", "kfac_kwargs"),
    "momentum": ("natural", "kfac_kwargs.momentum"),
    "weight_decay": ("natural", "kfac_kwargs.weight_decay"),
}
_KINDS = {"gauss-newton": "natural", "euclidean": "adam"}
OF_BOTH_CRITICS = ("learning_rate", "n_updates", "batch_size", "std", "normalize_targets")

# Settings that are gone: whether a value made no difference to what was learned, and why they went.
GONE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "overlap": (
        lambda x: True,
        "it changed nothing that was learned",
    ),
    "n_actor_updates": (lambda x: x == 1, "no task learned more from several steps"),
    "use_sde": (lambda x: not x, "gSDE's Fisher is not that of a Gaussian in the mean"),
}


def place(name: str) -> str | None:
    """Say in Python where a setting of 0.1.0 is now; ``None`` for what has not moved."""
    if name == "critic_norm":
        return "critic_norm is now critic=NaturalCritic(...) or critic=AdamCritic(...)"
    if name not in MOVED:
        return None
    group, inner = MOVED[name]
    outer, _, key = inner.partition(".")
    value = f"{{{key!r}: ...}}" if key else "..."
    of = "Natural" if group == "natural" else "NaturalCritic"
    either = ", or that of AdamCritic" if group == "critic" and outer in OF_BOTH_CRITICS else ""
    return f"{name} is now {group}={of}({outer}={value}){either}"


def gone(name: str) -> str | None:
    """Say why a setting of 0.1.0 is gone; ``None`` for what is not."""
    return f"{name} is gone, {GONE[name][1]}" if name in GONE else None


def new_key(key: str) -> str | None:
    """Return the dotted key in YAML that a dotted key of 0.1.0 has now; ``None`` if it has not moved."""
    name, dot, rest = key.partition(".")
    if name not in MOVED:
        return None
    return f"{'.'.join(MOVED[name])}{dot}{rest}"


def current_settings(flat: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Turn settings of 0.1.0 into the present ones.

    :param flat: complete or not; what has not moved stays
    :param where: names them in messages
    :return: the settings, and a sentence for each that is gone and was not at its default
    :raises ConfigurationError: one is gone that made a difference
    """
    if flat.keys().isdisjoint({*MOVED, *GONE}):
        return with_groups(flat), []  # those of now
    settings = {name: value for name, value in flat.items() if name not in MOVED and name not in GONE}
    notes = []
    for name, (made_no_difference, why) in GONE.items():
        if name not in flat:
            continue
        if not made_no_difference(flat[name]):
            raise ConfigurationError(
                f"{name}={flat[name]!r} in {where} is gone ({why}): go on with the acktr that made it."
            )
        if name == "overlap" and flat[name]:
            notes.append(f"overlap in {where} is gone and was left out: {why}.")
    groups = {group: dict(settings.pop(group, None) or {}) for group in ("natural", "critic")}
    for name, (group, key) in MOVED.items():
        if name in flat and "." not in key:
            groups[group][key] = flat[name]
    natural, critic = groups["natural"], groups["critic"]
    _move_kfac_kwargs(flat, natural, critic)
    if critic.get("kind") in _KINDS:
        critic["kind"] = _KINDS[critic["kind"]]
    if critic.get("learning_rate", 0) is None:
        del critic["learning_rate"]  # that of the kind
    if critic.get("kind") == "adam":
        critic = {key: critic[key] for key in ("kind", *OF_BOTH_CRITICS) if key in critic}
    return with_groups(
        {
            **settings,
            **({"natural": natural} if natural else {}),
            **({"critic": critic} if critic else {}),
        }
    ), notes


def with_groups(
    settings: Mapping[str, Any], tell: Callable[[str], None] = lambda sentence: None
) -> dict[str, Any]:
    """Return settings whose arguments of KFAC are in its groups, which they were not in 0.1.0.

    :param settings: by name, ``natural`` and ``critic`` as mappings
    :param tell: called with a sentence about those that were in none
    """
    found = dict(settings)
    for name in ("natural", "critic"):
        of_name = found.get(name)
        if isinstance(of_name, Mapping) and isinstance(of_name.get("kfac_kwargs"), Mapping):
            kwargs = dict(of_name["kfac_kwargs"])
            own = {key: kwargs.pop(key) for key in ("cg_iterations",) if key in kwargs}  # is refused
            kwargs, clauses = grouped(kwargs)
            found[name] = {**of_name, "kfac_kwargs": {**kwargs, **own}}
            if clauses:
                tell(f"{name}.kfac_kwargs: {', '.join(clauses)}.")
    return found


def _move_kfac_kwargs(flat: Mapping[str, Any], natural: dict[str, Any], critic: dict[str, Any]) -> None:
    """Bring momentum and weight decay to K-FAC's arguments, and the critic's iterations out of them."""
    for group in (natural, critic):
        if "kfac_kwargs" in group:
            group["kfac_kwargs"] = dict(group["kfac_kwargs"] or {})
            if not group["kfac_kwargs"].get("length_floor", True):
                del group["kfac_kwargs"]["length_floor"]  # as it was without
    if "cg_iterations" in critic.get("kfac_kwargs", {}):
        critic["cg_iterations"] = critic["kfac_kwargs"].pop("cg_iterations")
    for name in ("momentum", "weight_decay"):
        if flat.get(name):
            natural.setdefault("kfac_kwargs", {})[name] = flat[name]
    if flat.get("momentum"):  # which was the actor's alone
        critic.setdefault("kfac_kwargs", {}).setdefault("momentum", 0.0)
