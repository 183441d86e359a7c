"""``acktr compare``: ACKTR beside A2C, PPO, TRPO, SAC and others on one environment."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from acktr.cli.arguments import given_number
from acktr.errors import printable
from acktr.run.units import whole_number

if TYPE_CHECKING:
    from acktr.compare.comparison import Comparison

_FAILED, _DIVERGED, _INTERRUPTED, _TERMINATED = 1, 3, 130, 143


def compare(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    *,
    algos: Annotated[str, arg(metavar="A,B,...")] = "acktr,a2c,ppo,trpo",
    steps: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None,
    seeds: Annotated[str, arg(metavar="K")] = "3",
    jobs: Annotated[str | None, arg(metavar="J", help_behavior_hint="")] = None,
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    report: bool = False,
) -> int:
    """Train algorithms side by side, each with its tuned settings, and draw return over steps and time.

    Given again, the command goes on where it was stopped.

    :param env: a gymnasium id, or module:id to import module first
    :param algos: some of acktr, acktr_lstm, acktr_gru, a2c, ppo, trpo, ppo_lstm, for continuous actions
        sac and tqc, and ppo_mask for an environment with action_masks()
    :param steps: environment steps of each training (default: the preset's)
    :param seeds: trainings of each algorithm, with the seeds 0, 1, ...
    :param jobs: trainings at a time, each with one thread (default: one a core)
    :param out: for csv files and picture (default: runs/compare-ENV)
    :param report: also write a page, report.html
    """
    # Imported here: torch takes seconds, and --help should not.
    from acktr.compare.comparison import compare as compare_algorithms
    from acktr.compare.runner import Terminated

    n_timesteps = given_number("--steps", steps)
    try:
        comparison = compare_algorithms(
            env,
            [name.strip() for name in algos.split(",") if name.strip()],
            n_timesteps=n_timesteps,
            n_seeds=whole_number("--seeds", seeds),
            jobs=given_number("--jobs", jobs),
            out=None if out is None else Path(out),
            report=report,
            # Where results go and how many run at a time is not what they depend on.
            command=shlex.join(
                ["acktr", "compare", env, *(("--steps", str(n_timesteps)) if n_timesteps else ())]
            ),
            tell=lambda line: print(printable(line), file=sys.stderr, flush=True),
        )
    except (KeyboardInterrupt, Terminated) as error:
        print("acktr: stopped; the same command goes on with what is not done.", file=sys.stderr)
        return _TERMINATED if isinstance(error, Terminated) else _INTERRUPTED
    _show(comparison)
    return _exit_code(comparison)


def _show(comparison: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    from acktr.compare.report import COLUMNS, cells

    table = Table(COLUMNS[0], box=None)
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right")
    for row in comparison.rows:
        table.add_row(*cells(row))
    if comparison.rows:
        Console(highlight=False, markup=False).print(table)  # a label may hold brackets
        print(f"table    {comparison.table}\npicture  {comparison.picture}")
    if comparison.page is not None:
        print(f"page     {comparison.page}")
    for failure in comparison.summary.failed:
        name = f"{failure.trial.label}, seed {failure.trial.seed}"
        print(f"acktr: {printable(f'{name} failed: {failure.error}')}", file=sys.stderr)
    for trial in comparison.summary.busy:
        print(f"acktr: {trial.label}, seed {trial.seed} is being trained elsewhere.", file=sys.stderr)


def _exit_code(comparison: "Comparison") -> int:
    if comparison.summary.failed:
        # That of the training if it is one of acktr's own; what ended by a signal has a negative one.
        return max(comparison.summary.failed[0].exit_code, _FAILED)
    return _DIVERGED if comparison.summary.diverged else 0
