"""Steps a second with a memory: ACKTR beside RecurrentPPO, one core, in turn.

    python -m benchmarks.speed.memory [--quick] [--out DIR]

Both have 8 environments of the same task and ``VecNormalize``. RecurrentPPO has sb3-contrib's defaults:
an LSTM of 256 units for the actor and one for the critic, rollouts of 128 steps, ten epochs in batches
of 128. ACKTR is measured with as many units and with its own default, and taken apart by phases. The
seconds are those of the processor, so that it may have other work. The results
lie in ``benchmarks/results/speed_memory``; the tables of ``docs/speed.md`` are made of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import report as speed_report
from benchmarks.speed import sides
from benchmarks.speed.measure import manifest, measure, write
from benchmarks.speed.process import Side, SpeedError
from benchmarks.speed.ratios import Group, Line

TASKS = {
    "CartPole": "benchmarks.memory_tasks:novel-CartPole-v1",
    "HalfCheetah": "benchmarks.memory_tasks:novel-HalfCheetah-v5",
}
LSTM = ("policy=MlpLstmPolicy", "backend=gymnasium")
WIDTH = 256  # of RecurrentPPO's default


def groups(quick: bool = False) -> list[Group]:
    """All that is measured.

    :param quick: in miniature, to see whether it works: the figures mean nothing
    """
    pace = (0.01, 1) if quick else (4.0, 2)
    n_envs = 2 if quick else 8
    wide = f"policy_kwargs.lstm_hidden_size={WIDTH}"
    found = []
    for name, task in TASKS.items():
        own = (*LSTM, f"n_envs={n_envs}", *(("n_steps=4",) if quick else ()))
        ppo = {"algorithm": "RecurrentPPO", "env_id": task, "n_envs": n_envs}
        few = {"n_steps": 8, "n_epochs": 1} if quick else {}

        def acktr(*settings: str, task: str = task, own: tuple[str, ...] = own) -> Side:
            return Side(
                sides.acktr, {"env_id": task, "settings": (*own, *settings)}, clock=time.process_time
            )

        table = {
            f"ACKTR, {WIDTH} units": acktr(wide),
            "ACKTR, 64 units": acktr(),
            # One update is a thousand steps, ten times over: the first is warm-up enough.
            f"RecurrentPPO, {WIDTH} units": Side(
                sides.peer, {**ppo, **few}, warm_up=1, clock=time.process_time
            ),
        }
        bottom = (f"RecurrentPPO, {WIDTH} units",)
        lines = (
            Line(f"{name} without velocities, as many units", f"ACKTR, {WIDTH} units", bottom, 4.0),
            Line(f"{name} without velocities, both as they are", "ACKTR, 64 units", bottom, 4.0),
        )
        found.append(Group("memory", table, lines, *pace))
        profiles: dict[str, Any] = {
            f"{name}, {units} units": Side(
                sides.profiled, {"env_id": task, "settings": (*own, *settings)}, clock=time.process_time
            )
            for units, settings in ((WIDTH, (wide,)), (64, ()))
        }
        found.append(Group("profile", profiles, (), pace[0], 1))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write.

    :param arguments: of the command line
    :return: the exit code: 0 done, 1 a side failed
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.memory", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="in miniature: does it work?")
    parser.add_argument("--out", type=Path, default=speed_report.MEMORY.parent, metavar="DIR")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    said = "python -m benchmarks.speed.memory" + (" --quick" if options.quick else "")
    try:
        for results, rows in measure(groups(options.quick), options.quick):
            write(options.out, results, rows, manifest(said, "cpu"))
    except SpeedError as error:
        print(error, file=sys.stderr)
        return 1
    print(speed_report.ratio_table(results["ratios"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
