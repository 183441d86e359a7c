"""``acktr train``: train on an environment and leave a run directory."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from acktr.cli.arguments import given_number
from acktr.cli.stop import StopOnSignal
from acktr.errors import CheckpointError, CheckpointWriteError, printable
from acktr.run.units import duration

if TYPE_CHECKING:
    from acktr.run.directory import Run
    from acktr.run.experiment import Result


def train(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    *,
    steps: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None,
    seed: Annotated[str | None, arg(metavar="S", help_behavior_hint="")] = None,
    n_envs: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None,
    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    set: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")] = (),
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    backend: Annotated[str | None, arg(metavar="B", help_behavior_hint="")] = None,
    device: Annotated[str | None, arg(metavar="D", help_behavior_hint="")] = None,
    resume: bool = False,
    allow_import: bool = False,
    progress: bool = True,
) -> int:
    """Train ACKTR with the preset of the environment; Ctrl-C ends early and saves what --resume needs.

    :param env: a gymnasium id, or module:id to import module first
    :param steps: environment steps, of all environments together, such as 1e5 (default: the preset's)
    :param seed: seeds everything (default: 0)
    :param n_envs: environments that step together (default: the preset's)
    :param preset: a family (classic, mujoco, atari, pixels), a section of one, paper, or a YAML file
        (default: by the id)
    :param set: change settings of the preset, as in n_steps=32 policy_kwargs.log_std_init=-1
    :param out: the run directory, which must not hold a run (default: the first free runs/ENV-i)
    :param backend: gymnasium, subproc, envpool or ale (default: auto)
    :param device: cpu, cuda, ... (default: auto)
    :param resume: go on from the newest checkpoint of --out (default: of the last runs/ENV-i)
    :param allow_import: let settings name classes of your own as module:Class: imports modules, whose
        code runs
    :param progress: show how training goes
    """
    # Imported here: torch takes seconds, and --help should not.
    from acktr import distributed
    from acktr.cli.progress import ProgressCallback
    from acktr.presets import resolve, resolve_resumed
    from acktr.run.build import choose_threads
    from acktr.run.directory import Run
    from acktr.run.experiment import Experiment
    from acktr.run.health import advise_run
    from acktr.run.memory import keep_freed_memory

    resume = resume or distributed.restarted()
    old = _find_run(env, out) if resume else None
    given: dict[str, Any] = {
        "preset": preset,
        "overrides": [pair for pairs in set for pair in pairs],
        "options": {
            "n_timesteps": given_number("--steps", steps),
            "seed": given_number("--seed", seed),
            "n_envs": given_number("--n-envs", n_envs),
            "backend": backend,
            "device": device,
        },
        "allow_import": allow_import,
    }
    if old is None:
        configuration, notes = resolve(env, **given)
        if resume:
            notes.append(f"{out} holds no run yet: a new one begins there.")
    else:
        notes = []
        configuration = resolve_resumed(env, old.read_configuration(notes.append), **given)
    choose_threads(configuration)
    keep_freed_memory()
    # Built and checked before the run directory is made: a refused configuration leaves nothing.
    with distributed.joined(configuration.device), Experiment(configuration) as experiment:
        if distributed.rank():
            with StopOnSignal() as stop:
                experiment.follow(lambda: stop.requested)
            return stop.code or 0
        for note in (*notes, *experiment.model.notes):
            _note(note)
        run = old or Run.create(env, out)
        ranks = f", {distributed.size()} processes" if distributed.size() > 1 else ""
        title = (
            f"{'Resuming' if old else 'Training'} ACKTR on {env} (preset {configuration.preset}, seed "
            f"{configuration.seed}, {configuration.n_timesteps:,} steps, backend "
            f"{experiment.configuration.backend}{ranks}) in {run.path}"
        )
        with (
            StopOnSignal(run.path) as stop,
            ProgressCallback(title, enabled=progress, on_step=stop.asked) as bar,
        ):
            result = experiment.train(
                run,
                callbacks=[bar],
                should_stop=stop.asked,
                resume=old is not None,
                tell=_note,
            )
    print(_summary(run, result, bar.rate))
    if advice := advise_run(run.path):
        _note(" ".join(advice))
    lost = run.model_path().name in result.unwritten
    return stop.code or (CheckpointWriteError.exit_code if lost else 0)


def _find_run(env: str, out: str | None) -> "Run | None":
    """Find the run to resume; ``None`` where the directory that is named holds none yet."""
    from acktr.run.directory import Run, holds_run, refuse_remains

    if out is not None:
        refuse_remains(Path(out))
        return Run(Path(out)) if holds_run(Path(out)) else None
    from acktr.distributed import restarted

    run = Run.find_last(env)
    if run is None and restarted():
        return None  # it was ended before it began
    if run is None:
        raise CheckpointError(
            f"There is no run of {env} in runs/ to resume: name its directory with --out, or leave out "
            "--resume."
        )
    refuse_remains(run.path)
    return run


def _note(sentence: str) -> None:
    # It may quote a checkpoint.
    print(f"acktr: {printable(sentence)}", file=sys.stderr)


def _summary(run: "Run", result: "Result", rate: float | None) -> str:
    said = f" ({rate:,.0f} steps/s)" if rate else ""
    lines = [
        f"{'Stopped' if result.interrupted else 'Done'} after {result.steps:,} steps "
        f"in {duration(result.seconds)}{said}.",
    ]
    if result.last_100_return is not None:
        window = min(result.episodes, 100)
        lines.append(f"  return of the last {window} episodes  {result.last_100_return:.1f}")
    if result.evaluation is not None:
        lines.append(
            f"  evaluation, {result.evaluation['episodes']} episodes       "
            f"{result.evaluation['mean_return']:.1f} ± {result.evaluation['std_return']:.1f}"
        )
    if result.interrupted:
        lines.append("  to go on                      the same command with --resume")
    for what, path in (("model", run.model_path()), ("learning curve", run.path / "learning_curve.png")):
        lines.append(f"  {what:<30}{'not written' if path.name in result.unwritten else path}")
    return "\n".join(lines)
