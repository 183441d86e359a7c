"""How training scales over processes: ``python -m benchmarks.speed.scaling``.

The rate of one process alone, of several in one group, and what a message costs between two of them are
measured, each several times in turn. From the first and the last a model predicts the second::

    T(R) = T(1) max(1, R / cores) + m h(R) a / h(2) + (b / w) 2 (R - 1) / R
    efficiency(R) = T(1) max(1, R / cores) / T(R)

with m messages and b bytes an iteration (counted), a the time of a reduction of 8 bytes between two and
w the bandwidth of one of a mebibyte (measured), and h(R) the hops one after the other: 2 (R - 1) for a
ring (gloo), 2 log2 R for a tree (NCCL, small messages). Small messages are gathered (see
:mod:`acktr.kfac.comm`), in half the hops of both; of them (R - 1) b bytes travel in the place of the
last term's. The model goes on to 1024 processes over the same link.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from stable_baselines3.common.callbacks import BaseCallback

from acktr import distributed
from acktr.kfac import comm
from acktr.presets import resolve
from acktr.run.experiment import build_environment, build_model
from benchmarks.speed.measure import manifest

OUT = Path(__file__).resolve().parents[1] / "results" / "scaling"
ENVIRONMENT = "HalfCheetah-v5"
WORLDS = (1, 2, 4)
PREDICTED = (1, 2, 4, 8, 16, 64, 256, 1024)
_HORIZON = 10**9  # so long that no schedule moves
_WARM_UP = 3  # iterations that no measurement counts
_BYTES = (8, 2**20)
_SENT = [0, 0]  # messages and bytes of this process
COLUMNS = ("processes", "repetition", "steps", "seconds", "iterations", "messages", "bytes")


class _Watch(BaseCallback):
    """Counts iterations and stops after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.iterations = 0
        self.start = self.end = 0.0
        self.first = self.last = 0

    def _on_rollout_start(self) -> None:
        self.iterations += 1
        self.last, self.end = self.num_timesteps, time.perf_counter()
        if self.iterations == _WARM_UP + 1:
            self.first, self.start = self.last, self.end
            _SENT[:] = [0, 0]

    def _on_step(self) -> bool:
        return self.iterations <= _WARM_UP or time.perf_counter() - self.start < self._seconds


def _count_messages() -> None:
    """Let every message count itself and its bytes."""
    for name, sent in {"all_reduce": 0, "broadcast": 0, "all_gather": 1}.items():
        original = getattr(comm.dist, name)

        def counted(*args: Any, _original: Any = original, _sent: int = sent, **kwargs: Any) -> Any:
            _SENT[0] += 1
            _SENT[1] += args[_sent].numel() * args[_sent].element_size()
            return _original(*args, **kwargs)

        setattr(comm.dist, name, counted)


def _work(rank: int, world: int, port: int, task: str, seconds: float, folder: str) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    variables = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    _count_messages()
    with distributed.joined("cpu"):
        found = _reduce(seconds) if task == "messages" else _train(seconds)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


def _train(seconds: float) -> dict[str, float]:
    configuration = resolve(ENVIRONMENT, overrides=["device=cpu"]).configuration
    seed = distributed.own_seed(0, configuration.n_envs)
    env = build_environment(configuration.model_copy(update={"seed": seed}))
    watch = _Watch(seconds)
    build_model(configuration, env).learn(_HORIZON, callback=watch, log_interval=1000)
    env.close()
    done = watch.iterations - _WARM_UP - 1
    messages, size = (x / done for x in _SENT)
    steps = watch.last - watch.first
    spent = watch.end - watch.start
    return {"steps": steps, "seconds": spent, "iterations": done, "messages": messages, "bytes": size}


def _reduce(seconds: float) -> dict[str, float]:
    """Seconds of one reduction, by its bytes."""
    found = {}
    for size in _BYTES:
        tensor = torch.zeros(size // 8, dtype=torch.float64)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            distributed.mean(tensor)
            times.append(time.perf_counter() - start)
        found[str(size)] = statistics.median(times)
    return found


def _run(world: int, task: str, seconds: float) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (world, port, task, seconds, folder), nprocs=world)
        found: dict[str, float] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return found


def predict(
    processes: int, cores: int, seconds: float, messages: float, size: float, link: dict[str, float]
) -> dict[str, float]:
    """Return the efficiency that the model promises, over a ring and over a tree.

    :param processes: R
    :param cores: how many of them there are for these processes
    :param seconds: of one iteration of one process alone
    :param messages: of one iteration
    :param size: of all of them, bytes
    :param link: seconds of one reduction between two processes, by its bytes
    """
    if processes == 1:
        return {"ring": 1.0, "tree": 1.0}
    small, large = (link[str(b)] for b in _BYTES)
    per_byte = max(large - small, 0.0) / _BYTES[1]  # between two, 2 (R - 1) / R is 1
    own = seconds * max(1.0, processes / cores)
    # What is gathered goes whole to every process, what is reduced in parts and back.
    gathered = size / messages * processes <= comm.GATHERED_UP_TO
    traffic = size * per_byte * (processes - 1) * (1 if gathered else 2 / processes)
    hops = {"ring": processes - 1.0, "tree": math.log2(processes)}  # relative to those of two
    return {name: own / (own + messages * small * h + traffic) for name, h in hops.items()}


def summarise(rows: Sequence[dict[str, float]], link: dict[str, float], cores: int) -> dict[str, Any]:
    """Return measured and predicted efficiencies by number of processes.

    :param rows: of :data:`COLUMNS`
    :param link: see :func:`predict`
    :param cores: of the machine
    """
    worlds = sorted({int(row["processes"]) for row in rows})
    by_world = {w: [row for row in rows if row["processes"] == w] for w in worlds}
    rates = {w: [row["steps"] / row["seconds"] for row in of] for w, of in by_world.items()}
    seconds = statistics.median(row["seconds"] / row["iterations"] for row in by_world[1])
    several = by_world[next(w for w in worlds if w > 1)]
    messages, size = (statistics.median(row[name] for row in several) for name in ("messages", "bytes"))
    measured = {}
    for world in worlds:
        ratios = [many / one for many, one in zip(rates[world], rates[1], strict=True)]
        measured[world] = {
            "steps_per_second": statistics.median(rates[world]),
            "speedup": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
            "efficiency": statistics.median(ratios) / min(world, cores),
        }
    predicted = {
        world: predict(
            world, max(cores, world) if world > max(worlds) else cores, seconds, messages, size, link
        )
        for world in PREDICTED
    }
    return {
        "cores": cores,
        "seconds_per_iteration": seconds,
        "messages_per_iteration": messages,
        "bytes_per_iteration": size,
        "link_seconds": link,
        "measured": measured,
        "predicted": predicted,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.scaling", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    rows: list[dict[str, float]] = []
    for repetition in range(options.repetitions):
        for world in WORLDS:
            found = _run(world, "train", options.seconds)
            rows.append({"processes": world, "repetition": repetition, **found})
            rate = found["steps"] / found["seconds"]
            print(f"{world} processes, repetition {repetition}: {rate:,.0f} steps/s", file=sys.stderr)
    link = _run(2, "messages", 0.0)
    result = summarise(rows, link, len(os.sched_getaffinity(0)))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    command = (
        f"python -m benchmarks.speed.scaling --seconds {options.seconds:g} "
        f"--repetitions {options.repetitions}"
    )
    made = manifest(command)
    made["scaling.csv"] = made.pop("speed.csv")
    made["machine"]["threads"] = "one a process, bound to core rank modulo cores"
    for name, content in (("scaling", result), ("manifest", made)):
        (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["measured"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
