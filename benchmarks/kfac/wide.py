"""What a wide factor costs, whole and as blocks: why K-FAC splits what is wider than 2048 by itself.

``python -m benchmarks.kfac.wide`` writes ``benchmarks/results/kfac/wide.csv``: for each width the
milliseconds of the processor of one Cholesky inverse and one eigendecomposition, and of a whole step of
``Linear(width, 128), Tanh, Linear(128, 10)`` over 256 samples at the default periods, after the burn-in.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from acktr.kfac import KFAC, CrossEntropy, Curvature, Periods

RESULTS = Path(__file__).resolve().parents[1] / "results" / "kfac" / "wide.csv"
WIDTHS, BLOCKS = (512, 1024, 2048, 3072, 4096), 1024
SAMPLES, STEPS = 256, 20  # two periods of the inverses, four of the statistics
EIGEN_UP_TO = 2048  # beyond it takes minutes


def milliseconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the mean time of the processor."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times * 1e3


def step_of(width: int, max_factor_size: int | None) -> Callable[[], object]:
    """Return one step of a network, the first inverse made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 10))
    kfac = KFAC(model, curvature=Curvature(max_factor_size=max_factor_size), periods=Periods(burn_in=0))
    x, y = torch.randn(SAMPLES, width), torch.randint(10, (SAMPLES,))

    def step() -> None:
        with kfac.capture():
            logits = model(x)
        kfac.update_curvature(CrossEntropy(logits))
        kfac.zero_grad()
        F.cross_entropy(logits, y).backward()
        kfac.step(forward=lambda: CrossEntropy(model(x)))

    step()
    return step


def main() -> None:
    """Measure all widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    torch.set_num_threads(1)
    with RESULTS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["width", "cholesky", "eigen", "step_whole", "step_blocks"])
        for width in parser.parse_args().widths:
            rows = torch.randn(2 * width, width)
            factor = rows.T @ rows / len(rows) + 0.01 * torch.eye(width)
            cells = [milliseconds(lambda f=factor: torch.cholesky_inverse(torch.linalg.cholesky(f)))]
            whole = width <= EIGEN_UP_TO
            cells.append(milliseconds(lambda f=factor: torch.linalg.eigh(f)) if whole else float("nan"))
            cells += [milliseconds(step_of(width, size), STEPS) for size in (None, BLOCKS)]
            table.writerow([width, *("" if cell != cell else f"{cell:.3g}" for cell in cells)])
            file.flush()


if __name__ == "__main__":
    main()
