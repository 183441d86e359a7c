"""Steps and seconds to one loss: K-FAC beside AdamW, SOAP and Muon on five small networks.

``python -m benchmarks.kfac.race`` writes ``benchmarks/results/kfac/race.csv`` and ``curves.csv``, and
goes on where it was cut. Each optimiser has eight settings a network; the one that meets the goal in the
fewest steps on seed 0 is run on seeds 1 to 3. What the eight are was chosen on seed 0 too. The loss is
that of all data (of the first 512 windows of a text), every :data:`EVERY` steps; seconds are the
processor's, without these measurements.

SOAP and Muon are those of the package pytorch-optimizer; Muon has its AdamW for tables, biases, gains
and the output layer, as its authors say.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_optimizer import SOAP, Muon
from torch import Tensor, nn

from acktr.kfac import KFAC
from acktr.kfac.options import grouped
from benchmarks.faults.measure import existing
from benchmarks.kfac.networks import TASKS, Task

RESULTS = Path(__file__).resolve().parents[1] / "results" / "kfac"
EVERY = 5  # steps between measurements of the loss
MOST = 3000  # steps, after which a run has not met its goal
TUNING_SEED, SEEDS = 0, (1, 2, 3)
# What AdamW at its best meets after some hundreds of steps; written down before anything else was run.
GOALS: dict[str, float] = {"MLP": 0.01, "CNN": 0.01, "autoencoder": 17.0, "GRU": 1.4, "transformer": 1.4}
Settings = dict[str, Any]
Step = Callable[[Tensor, Tensor], None]


def _grid(**values: tuple[Any, ...]) -> list[Settings]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


GRIDS: dict[str, list[Settings]] = {
    "K-FAC": _grid(target_kl=(0.03, 0.1, 0.3, 1.0), damping=(0.0001, 0.001)),
    "AdamW": _grid(lr=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06)),
    "SOAP": _grid(lr=(0.005, 0.01, 0.02, 0.03), precondition_frequency=(1, 10)),
    "Muon": _grid(lr=(0.005, 0.01, 0.03, 0.1), adamw_lr=(0.003, 0.01)),
}


def stepper(name: str, task: Task, settings: Settings) -> Step:
    """Return what makes one step of an optimiser on a batch."""
    if name.startswith("K-FAC"):
        return _kfac_step(task, settings)
    model = task.model
    optimizer: torch.optim.Optimizer
    if name == "AdamW":
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, **settings)
    elif name == "SOAP":
        frequency = int(settings["precondition_frequency"])
        optimizer = SOAP(
            model.parameters(), settings["lr"], weight_decay=0.0, precondition_frequency=frequency
        )
    else:
        hidden = _hidden(model)
        others = [p for p in model.parameters() if all(p is not h for h in hidden)]
        groups = [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]
        optimizer = Muon(groups, settings["lr"], adamw_lr=settings["adamw_lr"])

    def step(x: Tensor, y: Tensor) -> None:
        loss = task.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _hidden(model: nn.Module) -> list[nn.Parameter]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    return matrices[:-1]  # the last one is the output layer


def _kfac_step(task: Task, settings: Settings) -> Step:
    model = task.model
    kfac = KFAC(model, lr=0.3, **grouped(settings)[0])

    def step(x: Tensor, y: Tensor) -> None:
        with kfac.capture():
            outputs = model(x)
        kfac.update_curvature(task.likelihood(outputs, y))
        loss = task.loss(outputs, y)
        kfac.zero_grad()
        loss.backward()
        kfac.step(forward=lambda: task.likelihood(model(x), y))

    return step


class Run(NamedTuple):
    """One training: measurements of the loss, until the goal was met or time was up.

    :param curve: (steps, seconds of the processor, loss)
    :param met: whether the goal was met
    """

    curve: list[tuple[int, float, float]]
    met: bool


def run(task_name: str, optimizer: str, settings: Settings, seed: int, most: int) -> Run:
    """Train until the goal is met, the loss is not finite, or ``most`` steps are done."""
    torch.manual_seed(seed)
    task = TASKS[task_name]()
    step, goal = stepper(optimizer, task, settings), GOALS[task_name]
    seconds, curve = 0.0, [(0, 0.0, _loss(task))]
    for count, (x, y) in zip(range(1, most + 1), task.batches(seed), strict=False):
        begin = time.process_time()
        try:
            step(x, y)
        except FloatingPointError:  # refused by the optimiser: the run has diverged
            return Run(curve, met=False)
        seconds += time.process_time() - begin
        if count % EVERY == 0:
            curve.append((count, seconds, _loss(task)))
            if not math.isfinite(curve[-1][2]) or curve[-1][2] <= goal:
                break
    return Run(curve, met=curve[-1][2] <= goal)


@torch.no_grad()
def _loss(task: Task) -> float:
    x, y = task.data
    rows = slice(None) if x.is_floating_point() else slice(512)
    return task.loss(task.model(x[rows]), y[rows]).item()


def races(
    tasks: list[str],
    done: dict[tuple[str, ...], dict[str, str]],
    grids: dict[str, list[Settings]] = GRIDS,
) -> Iterator[tuple[dict[str, Any], Run]]:
    """Yield the line of each run that is not done, and the run."""
    for task, optimizer in itertools.product(tasks, grids):
        tuned = []
        most = MOST
        for settings in grids[optimizer]:
            key = (task, optimizer, shown(settings), str(TUNING_SEED))
            if key not in done:
                found = run(task, optimizer, settings, TUNING_SEED, most)
                done[key] = line = _line(key, found)
                yield line, found
            steps = done[key]["steps"]
            if steps:
                most = min(most, int(steps))  # what is slower than the best is not chosen
                tuned.append((int(steps), settings))
        if not tuned:
            continue
        _, best = min(tuned, key=lambda pair: pair[0])
        for seed in SEEDS:
            key = (task, optimizer, shown(best), str(seed))
            if key not in done:
                found = run(task, optimizer, best, seed, MOST)
                done[key] = line = _line(key, found)
                yield line, found


def shown(settings: Settings) -> str:
    """Return settings as a line of text."""
    words = {key: x if isinstance(x, str) else f"{x:g}" for key, x in settings.items()}
    return " ".join(f"{key}={word}" for key, word in words.items())


def _line(key: tuple[str, ...], found: Run) -> dict[str, Any]:
    steps, seconds, loss = found.curve[-1]
    return {
        **dict(zip(("network", "optimizer", "settings", "seed"), key, strict=True)),
        "goal": GOALS[key[0]],
        "steps": steps if found.met else "",
        "seconds": f"{seconds:.2f}" if found.met else "",
        "steps_run": steps,
        "milliseconds": f"{1e3 * seconds / max(steps, 1):.2f}",
        "last_loss": f"{loss:.4g}",
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table, curves = options.out / "race.csv", options.out / "curves.csv"
    done = {(r["network"], r["optimizer"], r["settings"], r["seed"]): r for r in existing(table)}
    for line, found in races(options.networks.split(","), done):
        print(*line.values(), flush=True)
        append(table, [line])
        if int(line["seed"]) != TUNING_SEED:
            keys = {key: line[key] for key in ("network", "optimizer", "seed")}
            append(
                curves,
                [
                    {**keys, "steps": n, "seconds": f"{s:.3f}", "loss": f"{x:.5g}"}
                    for n, s, x in found.curve
                ],
            )


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
