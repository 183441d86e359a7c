"""The component ``run`` of a checkpoint: what a training run remembers besides the learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from acktr.errors import DamagedCheckpointError

Count = Annotated[int, Field(ge=0, lt=2**63)]
_SECONDS = 2.0**33  # centuries


def _is_logged(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str | np.generic):
        raise ValueError("nothing that is logged")
    return value


Logged = Annotated[Any, AfterValidator(_is_logged)]


class _Strict(BaseModel):
    # More than these is left alone: a newer acktr may remember more.
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _Table(_Strict):
    # Checkpoints from before tables could be mended do not have them all.
    rows: Count = 0
    steps: Count = 0


class _Episodes(_Table):
    count: Count
    last_returns: list[FiniteFloat]


class _Evaluations(_Table):
    n_calls: Count
    best_mean_reward: float
    last_mean_reward: float
    evaluations_timesteps: list[Count]
    evaluations_results: list[list[float]]
    evaluations_length: list[list[Count]]


class _Logged(_Strict):
    name_to_value: dict[str, Logged]
    name_to_count: dict[str, Count]
    name_to_excluded: dict[str, str | tuple[str, ...] | None]


class _Run(_Strict):
    configuration: dict[str, Any]
    seconds: Annotated[float, Field(ge=0, lt=_SECONDS)]
    episodes: _Episodes
    evaluations: _Evaluations
    logger: _Logged
    progress_rows: Count
    progress_columns: list[str] | None = None


def check_run(state: Any, info: Mapping[str, Any], where: str) -> None:
    """Refuse what is no state of a run, before anything is done with it.

    :param state: the component
    :param info: what the manifest tells
    :param where: names the checkpoint
    :raises DamagedCheckpointError: naming what is wrong
    """
    problem = None
    try:
        _Run.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("run", *first["loc"])))
        problem = f"{path}: {first['msg']}".lower()
    reasons, updates = info.get("reasons", []), info.get("updates")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        problem = "reasons in its manifest"
    if type(updates) is not int or updates < 0:
        problem = "updates in its manifest"
    if not isinstance(info.get("versions", {}), Mapping):
        problem = "versions in its manifest"
    if problem:
        raise DamagedCheckpointError(f"The state of the run in {where} is none ({problem}).")
