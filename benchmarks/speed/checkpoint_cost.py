"""What checkpoints cost: ``python -m benchmarks.speed.checkpoint_cost [--interval 30]``.

Trains HalfCheetah-v5 on one core, in turn without checkpoints on the way and with one every so many
seconds, and writes steps per second of both, and the share of the time that was spent in saving, to
``benchmarks/results/faults/checkpoint_cost.csv``. The share is the sharper figure: two runs of one
setting differ by more than a checkpoint costs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from acktr.presets import resolve
from acktr.run.directory import Run
from acktr.run.experiment import Experiment
from acktr.run.saver import Saver
from benchmarks.faults.measure import OUT, append, existing, write_manifest

COLUMNS = ("repetition", "interval", "checkpoints", "steps_per_second", "saving", "share")


def train(interval: float, steps: int) -> dict[str, Any]:
    """Train and time what saves."""
    settings = [f"checkpoint_interval={interval}", "eval_interval=0", "n_final_eval_episodes=0"]
    options = {"n_timesteps": steps, "device": "cpu"}
    configuration = resolve("HalfCheetah-v5", overrides=settings, options=options).configuration
    spent: list[float] = []
    save = Saver.save

    def timed(saver: Saver) -> None:
        start = time.perf_counter()
        save(saver)
        spent.append(time.perf_counter() - start)

    Saver.save = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, Experiment(configuration) as experiment:
            result = experiment.train(Run.create("HalfCheetah-v5", f"{folder}/run"))
    finally:
        Saver.save = save  # type: ignore[method-assign]
    on_the_way = spent[:-1]  # the last is at the end, in both
    return {
        "interval": interval,
        "checkpoints": len(on_the_way),
        "steps_per_second": round(result.steps / result.seconds, 1),
        "saving": round(sum(on_the_way), 4),
        "share": round(sum(on_the_way) / result.seconds, 6),
    }


def measure(repetitions: range, interval: float, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each training, the two kinds in turn."""
    for repetition in repetitions:
        for every in (0.0, interval):
            yield {"repetition": repetition, **train(every, steps)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--interval", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "checkpoint_cost.csv"
    done = len(existing(table)) // 2
    append(table, COLUMNS, measure(range(done, options.repetitions), options.interval, options.steps))
    shares = [float(row["share"]) for row in existing(table) if float(row["interval"]) > 0]
    settings = (
        f"--interval {options.interval:g} --steps {options.steps} --repetitions {options.repetitions}"
    )
    command = f"python -m benchmarks.speed.checkpoint_cost {settings}"
    write_manifest(options.out / "checkpoint_cost.json", command, {"shares": shares})
    return 0


if __name__ == "__main__":
    sys.exit(main())
