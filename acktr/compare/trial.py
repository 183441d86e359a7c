"""Trials: an algorithm, an environment, settings, and the figures that came out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acktr.compare import peers
from acktr.compare.curve import LearningCurve
from acktr.errors import ConfigurationError
from acktr.kfac.options import EARLIER, GROUPS

if TYPE_CHECKING:
    from acktr.presets import Configuration

ALGORITHMS = ("acktr", *peers.PEERS)
# ACKTR's settings that are not the same for all tasks and machines though the preset is, and what only
# says who launches the same updates.
_NOT_HASHED = ("env_id", "seed", "preset", "device", "tracker", "natural.cuda_graphs")
# Settings that came after results, and the value that means what was before: it is left out, so that
# those results stay the results of their settings.
_CAME_LATER: Mapping[str, Any] = {
    "natural.corrected_learning_rate": None,
    "noise_color": 0.0,
    "std_scale": 1.0,
    "use_masking": True,
}


@dataclass(frozen=True)
class Trial:
    """A training to be made.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param algo: one of :data:`ALGORITHMS`
    :param seed: seeds everything
    :param n_timesteps: environment steps
    :param label: names the algorithm with its settings in tables and pictures
    :param settings: changes to ACKTR's preset (a dotted key reaches into a mapping), or to the Zoo's
        settings of a peer
    :param preset: of ACKTR, if not that of the environment's family
    :param eval_episodes: played with the deterministic policy at the end; 0 for none
    """

    env_id: str
    algo: str
    seed: int
    n_timesteps: int
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    eval_episodes: int = 20

    @property
    def key(self) -> str:
        """A name for files, which no other trial of a store has."""
        return file_name(self.env_id, self.label, str(self.seed))


def file_name(*parts: str) -> str:
    """Return a name for files that is made of the parts."""
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in "_".join(parts))


@dataclass(frozen=True)
class Outcome:
    """The figures of one training.

    :param scores: values for the columns of the store's table
    :param curve: the points of the learning curve
    """

    scores: dict[str, Any]
    curve: LearningCurve


def check_algorithm(algo: str, choices: Sequence[str] = ALGORITHMS) -> None:
    """Refuse an algorithm that is unknown, or whose package is not installed.

    :param algo: its name
    :param choices: for the message
    :raises ConfigurationError: naming the known ones, or with the pip line
    """
    if algo not in ALGORITHMS:
        raise ConfigurationError(f"There is no algorithm {algo!r}: choose from {', '.join(choices)}.")
    peers.check_installed(algo)


def complete_settings(trial: Trial) -> dict[str, Any]:
    """Return every setting that a trial trains with, as plain values.

    :raises ConfigurationError: for an unknown algorithm, environment or setting
    """
    check_algorithm(trial.algo)
    if trial.algo == "acktr":
        return comparable(configuration(trial).model_dump(mode="json"))
    return peers.peer_settings(trial.algo, trial.env_id, trial.n_timesteps, trial.settings)


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of ACKTR's complete settings those that no result depends on."""
    kept = {name: dict(x) if isinstance(x, Mapping) else x for name, x in settings.items()}
    for key in (*_NOT_HASHED, *_CAME_LATER):
        *groups, name = key.split(".")
        group = kept[groups[0]] if groups else kept
        if key in _NOT_HASHED or group[name] == _CAME_LATER[key]:
            del group[name]
    for group in (kept["natural"], kept["critic"]):
        if "kfac_kwargs" in group:
            group["kfac_kwargs"] = _by_earlier_names(group["kfac_kwargs"])
        if "damping" in group and group["damping"] is None and not _remembers(str(kept["policy"])):
            group["damping"] = 0.1  # the default of before it was left open
    return kept


def _by_earlier_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Name arguments of KFAC as they were named before they had groups, as results have them."""
    names = {place: name for name, place in EARLIER.items()} | {
        ("curvature", "approximation"): "inverse"
    }
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in GROUPS:
            found[name] = value
            continue
        for key, inner in value.items():
            found[names.get((name, key), key)] = inner
    return found


def _remembers(policy: str) -> bool:
    return "Lstm" in policy or "Gru" in policy


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return ten hexadecimal digits that name settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def configuration(trial: Trial) -> "Configuration":
    """Return the configuration that ACKTR trains with.

    :raises ConfigurationError: for an unknown environment or setting
    """
    # Imported here: a peer's training needs nothing of ACKTR.
    from acktr.presets import resolve

    # Evaluations during training would count as time of learning; they change nothing else.
    settings = {**trial.settings, "eval_interval": 0, "n_final_eval_episodes": trial.eval_episodes}
    return resolve(
        trial.env_id,
        preset=trial.preset,
        overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
        options={"n_timesteps": trial.n_timesteps, "seed": trial.seed},
    ).configuration
