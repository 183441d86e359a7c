"""Steps a second with a memory: ACKTR beside RecurrentPPO, one core, in turn.

    python -m benchmarks.speed.memory [--quick] [--out DIR]

Both have 8 environments of the same task and ``VecNormalize``. RecurrentPPO has sb3-contrib's defaults:
an LSTM of 256 units for the actor and one for the critic, rollouts of 128 steps, ten epochs in batches
of 128. ACKTR is measured with as many units, with wide factors split, and with its own default, and
taken apart by phases. The seconds are those of the processor, so that it may have other work. The
results lie in ``benchmarks/results/speed_memory``; the tables of ``docs/speed.md`` are made of them.
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

TASK = "benchmarks.memory_tasks:novel-CartPole-v1"
LSTM = ("policy=MlpLstmPolicy", "backend=gymnasium")
WIDE = "policy_kwargs.lstm_hidden_size=256"  # as RecurrentPPO's
SPLIT = "natural.kfac_kwargs.curvature.max_factor_size=512"  # of the gates, two by two
SIDES = {"256 units": (WIDE,), "256 units, factors of 512": (WIDE, SPLIT), "64 units": ()}
PPO = "RecurrentPPO, 256 units"


def groups(quick: bool = False) -> list[Group]:
    """All that is measured.

    :param quick: in miniature, to see whether it works: the figures mean nothing
    """
    seconds, repetitions = (0.01, 1) if quick else (4.0, 2)
    n_envs = 2 if quick else 8
    own = (*LSTM, f"n_envs={n_envs}", *(("n_steps=4",) if quick else ()))
    ppo: dict[str, Any] = {"algorithm": "RecurrentPPO", "env_id": TASK, "n_envs": n_envs}
    ppo |= {"n_steps": 8, "n_epochs": 1} if quick else {}
    both: list[dict[str, Side]] = [
        {
            name: Side(timed, {"env_id": TASK, "settings": (*own, *settings)}, clock=time.process_time)
            for name, settings in SIDES.items()
        }
        for timed in (sides.acktr, sides.profiled)
    ]
    table = {f"ACKTR, {name}": side for name, side in both[0].items()}
    # One update is a thousand steps, ten times over: the first is warm-up enough.
    table[PPO] = Side(sides.peer, ppo, warm_up=1, clock=time.process_time)
    lines = tuple(
        Line(f"CartPole without velocities, {name}", f"ACKTR, {name}", (PPO,), 4.0) for name in SIDES
    )
    profiles = {f"CartPole, {name}": side for name, side in both[1].items()}
    return [
        Group("memory", table, lines, seconds, repetitions),
        Group("profile", profiles, (), seconds, 1),
    ]


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
