"""Whether K-FAC's trust region holds: the KL that steps really move, on five small networks.

``python -m benchmarks.kfac.kl`` writes ``benchmarks/results/kfac/kl.csv``, of which the table of
``docs/kfac_reference.md`` is made. After each step the KL on the batch of the step is measured, and
counts as held if it is within a factor 2 of the bound; steps that ``lr`` keeps shorter than the bound
are left out. The ways:

* ``predicted``: K-FAC's own quadratic form, ``kfac.step()``;
* ``measured``: one more forward pass, ``kfac.step(forward=...)``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac import KFAC
from acktr.kfac.likelihood import likelihoods_of, mean_kl
from acktr.kfac.options import grouped
from benchmarks.kfac.networks import TASKS, Task

TARGET_KL = 0.01  # nats a sample, or a token
WAYS = ("predicted", "measured")
RESULTS = Path(__file__).resolve().parents[1] / "results" / "kfac" / "kl.csv"


class Found(NamedTuple):
    """The figures of one run.

    :param ratios: the measured KL of each bounded step over its target
    :param milliseconds: of the processor, the mean of a step
    :param loss: the mean of the last ten
    :param passes: extra forward passes a step
    """

    ratios: list[float]
    milliseconds: float
    loss: float
    passes: float


def run(make: Callable[[], Task], way: str, steps: int, seed: int, **options: Any) -> Found:
    """Train, and measure each step."""
    torch.manual_seed(seed)
    task = make()
    model = task.model
    kfac = KFAC(model, lr=1.0, target_kl=TARGET_KL, **{"damping": 0.003, **grouped(options)[0]})
    ratios, losses, spent = [], [], []
    passes = 0
    for _, (x, y) in zip(range(steps), task.batches(0), strict=False):

        def forward(x: Tensor = x, y: Tensor = y) -> Any:
            nonlocal passes
            passes += 1
            return task.likelihood(model(x), y)

        begin = time.process_time()
        with kfac.capture():
            outputs = model(x)
        likelihood = task.likelihood(outputs, y)
        kfac.update_curvature(likelihood)
        loss = task.loss(outputs, y)
        kfac.zero_grad()
        loss.backward()
        old = [part.detached() for part in likelihoods_of([likelihood])]
        kfac.step(forward=forward if way == "measured" else None)
        spent.append(time.process_time() - begin)
        with torch.no_grad():
            kl = mean_kl(old, likelihoods_of([task.likelihood(model(x), y)])).item()
        losses.append(loss.item())
        info = kfac.last_step[0]
        if info.step_scale < info.max_scale * (1.0 - 1e-6) or kl > TARGET_KL:
            ratios.append(kl / TARGET_KL)
    return Found(ratios, 1e3 * statistics.mean(spent), statistics.mean(losses[-10:]), passes / steps)


def rows(
    tasks: Iterable[str], steps: int, seeds: int, momenta: Iterable[float]
) -> Iterator[dict[str, Any]]:
    """Yield the line of each run."""
    for name, momentum, way, seed in itertools.product(tasks, momenta, WAYS, range(1, seeds + 1)):
        found = run(TASKS[name], way, steps, seed, momentum=momentum)
        held = sum(0.5 <= r <= 2.0 for r in found.ratios) / max(len(found.ratios), 1)
        yield {
            "network": name, "momentum": momentum, "trust_region": way, "seed": seed,
            "bounded_steps": len(found.ratios), "held": f"{held:.3f}",
            "least": f"{min(found.ratios, default=0.0):.3g}",
            "most": f"{max(found.ratios, default=0.0):.3g}",
            "milliseconds": f"{found.milliseconds:.2f}", "extra_passes": f"{found.passes:.2f}",
            "last_loss": f"{found.loss:.4f}",
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--momenta", default="0,0.9")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    momenta = [float(m) for m in options.momenta.split(",")]
    with options.out.open("w", newline="") as file:
        writer = None
        for row in rows(options.tasks.split(","), options.steps, options.seeds, momenta):
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
