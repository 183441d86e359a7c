"""What a K-FAC update of a small network costs beside the code of another commit, in turn.

``python -m benchmarks.kfac.update --before 20a2ff1^`` writes ``benchmarks/results/kfac/update.csv``: two
processes, one with this tree's ``acktr.kfac`` and one with that commit's, make updates by turns, so that
what else the machine does falls on both. An update is a captured forward pass of 512 samples, the
curvature, the backward pass of the loss and the step, of the actor (17 inputs, two layers of 64, a
Gaussian of 6 with a standard deviation of its own) and of the critic of HalfCheetah; statistics and
inverses each time, as ACKTR has them. By default the commit is the last one before K-FAC read the graph.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Normal

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kfac" / "update.csv"
NETWORKS = ("actor", "critic")
SAMPLES, ROUNDS, UPDATES = 512, 15, 40


class Actor(nn.Module):
    """Two layers of 64 and a Gaussian."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers = nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
        self.mean, self.log_std = nn.Sequential(*layers), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Normal:
        """Return the distribution of ``(N, outputs)``."""
        mean = self.mean(x)
        return Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False)


class Critic(nn.Module):
    """Two layers of 64 and a value."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        self.value = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Normal:
        """Return the distribution of ``(N, 1)``."""
        return Normal(self.value(x), 1.0, validate_args=False)


def work() -> None:
    """Make updates of the network that each line of the input names, and print their milliseconds."""
    from acktr import kfac  # of whichever tree this process was given

    torch.set_num_threads(1)
    groups = {"periods": {"factor": 1, "inverse": 1, "burn_in": 0}} if hasattr(kfac, "Periods") else {}
    made = {}
    for name, model in (("actor", Actor(6)), ("critic", Critic())):
        made[name] = model, kfac.KFAC(model, lr=0.1, damping=0.1, target_kl=0.01, **groups)
    x, y = torch.randn(SAMPLES, 17), torch.randn(SAMPLES, 1)
    for line in sys.stdin:
        model, optimizer = made[line.strip()]
        begin = time.process_time()
        for _ in range(UPDATES):
            with optimizer.capture():
                output = model(x)
            optimizer.update_curvature(output)
            loss = -output.log_prob(y).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print((time.process_time() - begin) / UPDATES * 1e3, flush=True)


def _start(tree: Path) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), "--work"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | path, cwd=tree, text=True, stdin=pipe, stdout=pipe)


def _ask(process: subprocess.Popen[str], network: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    print(network, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def main() -> None:
    """Compare the two, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default="20a2ff1^", help="the commit")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "archive", options.before, "acktr"]
        archive = subprocess.run(git, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        before, now = _start(Path(folder)), _start(ROOT)
        for network in NETWORKS:
            for process in (before, now):
                _ask(process, network)  # what is made once
            pairs = [(_ask(before, network), _ask(now, network)) for _ in range(ROUNDS)]
            ratios = sorted(b / a for a, b in pairs)
            quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
            rows.append([network, *medians, statistics.median(ratios), *quartiles])
        for process in (before, now):
            process.kill()
            process.wait()
    with RESULTS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", "ms_before", "ms_now", "ratio", "ratio_q1", "ratio_q3"])
        table.writerows([name, *(f"{x:.3g}" for x in numbers)] for name, *numbers in rows)
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
