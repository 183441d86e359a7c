"""Resuming a run: from which checkpoint, whether it may, and whether that is exact."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv

from acktr.envs.code import environment_code
from acktr.errors import (
    CheckpointError,
    CheckpointMismatchError,
    ConfigurationError,
    DamagedCheckpointError,
)
from acktr.files.bundle import decoding
from acktr.files.checkpoints import Checkpoint
from acktr.files.reading import MAX_TEXT, parse_json, read_plain
from acktr.learner.algorithm import ACKTR
from acktr.presets import Configuration
from acktr.presets.loader import differences
from acktr.presets.schema import complete
from acktr.run.directory import Run, holds_run
from acktr.run.remembered import check_run
from acktr.run.state import check_learner, restore_learner
from acktr.run.tables import read_columns
from acktr.schedules import Horizon, Linear

# Versions that rounding may depend on.
_NUMERICAL = ("python", "torch", "numpy", "gymnasium", "stable-baselines3", "mujoco", "envpool", "acktr")

Tell = Callable[[str], None]


def find_checkpoint(
    run: Run, model: ACKTR, configuration: Configuration, tell: Tell
) -> Checkpoint | None:
    """Find what a run goes on from: its newest valid checkpoint, ``None`` if it never had one.

    :param run: the run directory
    :param model: built as the configuration says
    :param configuration: what it is to go on with
    :param tell: called with a sentence about what is skipped
    :raises CheckpointError: its checkpoints are gone, or none can be used
    :raises CheckpointMismatchError: it is of another architecture, or was made with other settings
    """
    checkpoint, skipped = run.checkpoints().newest()
    for sentence in skipped:
        tell(f"Skipped: {sentence}")
    if checkpoint is None:
        _refuse_lost_checkpoints(run)
        tell(f"{run.path} has no checkpoint yet: training begins anew.")
        return None
    check_learner(model, checkpoint.components, str(checkpoint.path))
    state: Any = checkpoint.components.get("run")
    check_run(state, checkpoint.info, str(checkpoint.path))
    try:
        before = complete(state["configuration"]).model_dump(mode="json")
    except ConfigurationError as error:
        raise DamagedCheckpointError(f"The settings in {checkpoint.path} are none: {error}") from error
    differing = differences(before, configuration.model_dump(mode="json"))
    if differing:
        raise CheckpointMismatchError(
            f"{checkpoint.path} was made with other settings than {run.path / 'config.yaml'} has now "
            f"({'; '.join(differing)}): put them back, or begin a new run."
        )
    return checkpoint


def restore(
    model: ACKTR,
    evaluation_env: VecEnv | None,
    checkpoint: Checkpoint,
    configuration: Configuration,
    origin: Mapping[str, Any],
    lost: Sequence[str],
    tell: Tell,
) -> None:
    """Bring a learner and its environments to a checkpoint, and say whether all is as it was.

    :param model: built as the one that was saved
    :param evaluation_env: the environments of evaluations
    :param checkpoint: what :func:`find_checkpoint` found
    :param configuration: what it goes on with
    :param origin: what :func:`origin` returns now
    :param lost: what else is not as it was
    :param tell: called with a sentence
    :raises CheckpointError: the state cannot be read
    """
    where = str(checkpoint.path)
    with decoding(where, "the state of the learner"):
        problems = restore_learner(model, checkpoint.components, where, evaluation_env)
    with decoding(where, "the manifest"):
        reasons = [*map(str, checkpoint.info.get("reasons", [])), *problems, *lost]
        reasons += _differences(checkpoint.info, origin)
        reasons += _other_end(checkpoint.components["run"]["configuration"], configuration)
    if reasons:
        how = f"same learner state, but not bit for bit: {'; '.join(reasons)}"
    else:
        how = "exactly, environments included"
    tell(f"Resumed at step {checkpoint.steps:,} from {where}: {how}.")


def origin(model: ACKTR, configuration: Configuration, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Describe everything besides settings that a result may depend on, for a checkpoint's manifest.

    :param model: of the run
    :param configuration: its settings
    :param versions: what :func:`acktr.run.directory.versions` returned
    """
    machine = {
        "the processor's instructions": torch.backends.cpu.get_cpu_capability(),
        "the number of torch's threads": torch.get_num_threads(),
    }
    if model.device.type == "cuda":
        machine["the GPU"] = torch.cuda.get_device_name(model.device)
    return {
        "device": str(model.device),
        "versions": dict(versions),
        "machine": machine,
        "environment": environment_code(configuration.env_id, configuration.env_kwargs),
    }


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, own = saved.get("versions", {}), now["versions"]
    found = [
        f"{name} was {before[name]} and is {own.get(name)}"
        for name in _NUMERICAL
        if name in before and before[name] != own.get(name)
    ]
    if saved.get("device") != now["device"]:
        found.append(f"the device was {saved.get('device')} and is {now['device']}")
    # Checkpoints from before these were noted do not have them.
    before, own = saved.get("machine", {}), now["machine"]
    found += [
        f"{name} was {before[name]} and is {own[name]}"
        for name in own
        if name in before and before[name] != own[name]
    ]
    before, own = saved.get("environment"), now["environment"]
    if before is not None and before != own:
        changed = [name for name in dict.fromkeys([*own, *before]) if own.get(name) != before.get(name)]
        found.append(f"the environment's code is not as it was ({', '.join(changed)})")
    return found


def _other_end(saved: Mapping[str, Any], configuration: Configuration) -> list[str]:
    """Name schedules that fall to another end than they did."""
    before, now = saved.get("n_timesteps"), configuration.n_timesteps
    named = list(_scheduled(configuration.algorithm_arguments()))
    if before in (now, None) or not named:
        return []
    return [f"{', '.join(named)} ended at step {before:,} and end at {now:,} now"]


def _scheduled(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Name the arguments, and parts of them, that change until the end."""
    for name, value in arguments.items():
        if isinstance(value, Linear | Horizon):
            yield name
        elif dataclasses.is_dataclass(value):
            own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            yield from (f"{name}.{inner}" for inner in _scheduled(own))


def _refuse_lost_checkpoints(run: Run) -> None:
    """Refuse to begin anew over a run that had checkpoints and has lost them.

    :raises CheckpointError: telling by what it is known
    """
    if holds_run(run.path) and (evidence := _had_checkpoint(run)):
        raise CheckpointError(
            f"{run.path} has lost its checkpoints, of which {evidence} tells, and to begin anew would "
            f"overwrite it: restore {run.path / 'checkpoints'}, or give another directory with --out."
        )


def _had_checkpoint(run: Run) -> str | None:
    """Name the file that only a run with a checkpoint has; ``None`` for one killed before its first."""
    unusable = next((run.path / "checkpoints").glob("unusable-*"), None)
    if unusable is not None:
        return f"checkpoints/{unusable.name}"
    steps = None
    if (run.path / "result.json").exists():
        try:
            steps = parse_json(read_plain(run.path / "result.json", MAX_TEXT))["steps"]
        except (OSError, ValueError, LookupError, TypeError):
            return "result.json"
        if steps != 0:  # a run that was stopped before its first update saves none
            return "result.json"
    if steps is None and run.model_path().exists():
        return run.model_path().name
    settings = run.read_configuration()
    if settings.get("on_checkpoint_error") != "stop":
        return None  # it may have gone on without
    interval, due = settings.get("checkpoint_interval") or 0, settings.get("checkpoint_steps")
    # A row with the number of its iteration was written at the end of a rollout, and before the next
    # one began a checkpoint was made, if it was due.
    names = ("time/iterations", "time/time_elapsed", "time/total_timesteps")
    rows = [row for row in read_columns(run.path / "progress.csv", names) if row[0] is not None]
    for (_, seconds, steps), _next in itertools.pairwise(rows):
        in_time = interval and seconds is not None and seconds > interval + 1
        if in_time or (due and steps is not None and steps >= due):
            return "progress.csv"
    return None
