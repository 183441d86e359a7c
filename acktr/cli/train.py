"""``acktr train``: train on an environment and leave a run directory."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from acktr.experiment import Result
    from acktr.runs import Run

INTERRUPTED = 130


def train(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    *,
    steps: Annotated[int | None, arg(metavar="N")] = None,
    seed: Annotated[int | None, arg(metavar="S")] = None,
    n_envs: Annotated[int | None, arg(metavar="N")] = None,
    preset: Annotated[str | None, arg(metavar="NAME")] = None,
    set: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")] = (),
    out: Annotated[str | None, arg(metavar="DIR")] = None,
    backend: Annotated[str | None, arg(metavar="B")] = None,
    device: Annotated[str | None, arg(metavar="D")] = None,
    progress: bool = True,
) -> int:
    """Train ACKTR with the preset of the environment; Ctrl-C ends early and keeps the model.

    :param env: a gymnasium id, or module:id to import module first
    :param steps: environment steps, of all environments together (default: the preset's)
    :param seed: seeds everything (default: 0)
    :param n_envs: environments that step together (default: the preset's)
    :param preset: classic, mujoco, atari, a section of one, or a YAML file (default: by the id)
    :param set: change settings of the preset, as in n_steps=32 policy_kwargs.log_std_init=-1
    :param out: the run directory, which must not hold a run (default: the first free runs/ENV-i)
    :param backend: gymnasium, subproc, envpool or ale (default: auto)
    :param device: cpu, cuda, ... (default: auto)
    :param progress: show how training goes
    """
    # Imported here: torch takes seconds, and --help should not.
    import torch

    from acktr.cli.progress import ProgressCallback
    from acktr.experiment import Experiment
    from acktr.memory import keep_freed_memory
    from acktr.presets import resolve
    from acktr.runs import Run

    configuration, notes = resolve(
        env,
        preset=preset,
        overrides=[pair for pairs in set for pair in pairs],
        options={
            "n_timesteps": steps,
            "seed": seed,
            "n_envs": n_envs,
            "backend": backend,
            "device": device,
        },
    )
    for note in notes:
        print(f"acktr: {note}", file=sys.stderr)
    if configuration.policy in ("MlpPolicy", "auto") and "OMP_NUM_THREADS" not in os.environ:
        # Small networks gain nothing from threads, and with one of them a seed gives the same run on
        # machines with more or fewer cores.
        torch.set_num_threads(1)
    keep_freed_memory()
    # Built and checked before the run directory is made: a refused configuration leaves nothing.
    with Experiment(configuration) as experiment:
        run = Run.create(env, out)
        title = (
            f"Training ACKTR on {env} (preset {configuration.preset}, seed {configuration.seed}, "
            f"{configuration.n_timesteps:,} steps, backend {experiment.configuration.backend}) "
            f"in {run.path}"
        )
        with ProgressCallback(title, enabled=progress) as bar, _StopOnCtrlC(run) as stop:
            result = experiment.train(run, callbacks=[bar], should_stop=lambda: stop.requested)
    print(_summary(run, result))
    return INTERRUPTED if result.interrupted else 0


class _StopOnCtrlC:
    """Turns the first Ctrl-C into a request to stop; a second one ends the process at once."""

    def __init__(self, run: "Run") -> None:
        self.requested = False
        self._run = run
        self._previous: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "_StopOnCtrlC":
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(
            f"\nacktr: stopping and saving in {self._run.path}; Ctrl-C again leaves at once.",
            file=sys.stderr,
        )


def _summary(run: "Run", result: "Result") -> str:
    rate = result.steps / max(result.seconds, 1e-9)
    lines = [
        f"{'Stopped' if result.interrupted else 'Done'} after {result.steps:,} steps "
        f"in {result.seconds:.0f} s ({rate:,.0f} steps/s).",
    ]
    if result.last_100_return is not None:
        window = min(result.episodes, 100)
        lines.append(f"  return of the last {window} episodes  {result.last_100_return:.1f}")
    if result.evaluation is not None:
        lines.append(
            f"  evaluation, {result.evaluation['episodes']} episodes       "
            f"{result.evaluation['mean_return']:.1f} ± {result.evaluation['std_return']:.1f}"
        )
    lines.append(f"  model                         {run.model_path()}")
    lines.append(f"  learning curve                {run.path / 'learning_curve.png'}")
    return "\n".join(lines)
