"""Suites as data: ``NAME.yaml`` says which algorithms learn which tasks, with which seeds.

``algorithms`` maps the label that tables and figures use to what it stands for. An algorithm may have
settings of its own (``set``: changes to ACKTR's preset or to the Zoo's settings of a peer, a dotted key
reaches into a mapping; ``set_on``: more of them on one task) and other ``envs``, ``seeds`` and ``steps``
than the suite. The ``set`` of the suite is what all of ACKTR's labels begin with. ``batches`` names
pairs of labels whose ``set`` differ in ``n_steps`` alone, the smaller batch first. ``speeds`` names
pairs whose steps per second are compared, the one in question first. ``compare_seconds: false`` leaves
out what would compare seconds: the runs have had different cores. ``held_out`` names tasks on which
no setting may be chosen. ``ours`` is the label of ACKTR that the others are compared with, ``reference``
what a normalised score of 1 is: the best of the ``peers``, or of ``all``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from acktr.compare.trial import Trial
from acktr.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Algorithm(_Strict):
    """What a label stands for; what is not given is the suite's, and the label names ``algo``."""

    algo: str | None = None
    set: dict[str, Any] = {}
    set_on: dict[str, dict[str, Any]] = {}
    preset: str | None = None
    envs: list[str] | None = None
    seeds: list[NonNegativeInt] | None = None
    steps: PositiveInt | None = None


class Suite(_Strict):
    """Tasks × algorithms × seeds × steps, with a title and a text for the page of results."""

    title: str
    about: str
    steps: PositiveInt | dict[str, PositiveInt]  # of all tasks, or of each
    seeds: list[NonNegativeInt]
    envs: list[str]
    held_out: list[str] = []
    eval_episodes: NonNegativeInt = 20
    set: dict[str, Any] = {}
    # By label. No commas: --only separates with them.
    algorithms: dict[Annotated[str, Field(pattern=r"^[^,]+$")], Algorithm]
    batches: list[tuple[str, str]] = []
    speeds: list[tuple[str, str]] = []
    compare_seconds: bool = True
    ours: str = "acktr"
    reference: Literal["peers", "all"] = "peers"

    def trials(self) -> list[Trial]:
        """Return all trainings: first all of the first seed, one algorithm after another."""
        rows = []
        for label, algorithm in self.algorithms.items():
            for env in self.envs if algorithm.envs is None else algorithm.envs:
                for i, seed in enumerate(self.seeds if algorithm.seeds is None else algorithm.seeds):
                    steps = algorithm.steps or self._steps(env)
                    algo = algorithm.algo or label
                    common = self.set if algo == "acktr" else {}
                    trial = Trial(
                        env,
                        algo,
                        seed,
                        steps,
                        label,
                        {**common, **algorithm.set, **algorithm.set_on.get(env, {})},
                        algorithm.preset,
                        self.eval_episodes,
                    )
                    rows.append((i, trial))
        # Stable: within a seed the order stays.
        return [trial for _, trial in sorted(rows, key=lambda row: row[0])]

    @model_validator(mode="after")
    def _every_task_has_steps(self) -> "Suite":
        for label, algorithm in self.algorithms.items():
            for env in self.envs if algorithm.envs is None else algorithm.envs:
                if not algorithm.steps and isinstance(self.steps, dict) and env not in self.steps:
                    raise ValueError(f"steps does not name {env}, which {label} learns")
        return self

    @model_validator(mode="after")
    def _ours_is_a_label(self) -> "Suite":
        if "ours" in self.model_fields_set and self.ours not in self.algorithms:
            raise ValueError(f"ours is {self.ours!r}, which is not among algorithms")
        return self

    @model_validator(mode="after")
    def _held_out_are_tasks(self) -> "Suite":
        if missing := sorted(set(self.held_out) - set(self.envs)):
            raise ValueError(f"held_out names {missing[0]}, which is not among envs")
        return self

    @model_validator(mode="after")
    def _settings_of_a_task_have_their_task(self) -> "Suite":
        for label, algorithm in self.algorithms.items():
            envs = self.envs if algorithm.envs is None else algorithm.envs
            if missing := sorted(algorithm.set_on.keys() - set(envs)):
                raise ValueError(f"set_on names {missing[0]}, which {label} does not learn")
        return self

    @model_validator(mode="after")
    def _pairs_have_their_labels(self) -> "Suite":
        for name, pairs in (("batches", self.batches), ("speeds", self.speeds)):
            if missing := [label for pair in pairs for label in pair if label not in self.algorithms]:
                raise ValueError(f"{name} names {missing[0]!r}, which is not among algorithms")
        return self

    @model_validator(mode="after")
    def _pairs_differ_in_their_batch(self) -> "Suite":
        for pair in self.batches:
            small, large = ((label, self.algorithms[label]) for label in pair)
            sizes = [one.set.get("n_steps") for _, one in (small, large)]
            rests = [
                one.model_copy(update={"algo": one.algo or label, "set": {**one.set, "n_steps": None}})
                for label, one in (small, large)
            ]
            if None in sizes or not sizes[0] < sizes[1] or rests[0] != rests[1]:
                raise ValueError(f"{' and '.join(pair)} must differ in n_steps alone, the smaller first")
        return self

    def batch_ratio(self, small: str, large: str) -> float:
        """Return how many times as large the second batch of a pair is."""
        first, second = (self.algorithms[label].set["n_steps"] for label in (small, large))
        return float(second / first)

    def _steps(self, env: str) -> int:
        return self.steps[env] if isinstance(self.steps, dict) else self.steps


def names() -> list[str]:
    """Return the names of all suites."""
    return sorted(path.stem for path in ROOT.glob("*.yaml"))


def load(name: str) -> Suite:
    """Read a suite.

    :param name: of ``benchmarks/suites/NAME.yaml``
    :raises ConfigurationError: if there is none of that name, or it is not a suite
    """
    if name not in names():
        raise ConfigurationError(f"There is no suite {name!r}: choose from {', '.join(names())}.")
    path = ROOT / f"{name}.yaml"
    try:
        return Suite(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (TypeError, ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path.name} is not a suite: {' '.join(str(error).split())}"
        ) from error
