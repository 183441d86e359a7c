"""Ratios of speed, each from interleaved repetitions in one run: ``python -m benchmarks.speed``.

Every side of a ratio runs in a process of its own (:mod:`benchmarks.speed.process`); one repetition
gives each of them its turn, and the ratio of a repetition is that of neighbours in time. What the sides
are stands in :mod:`benchmarks.speed.ratios`; what the figures mean, in ``docs/speed.md``.
"""

import argparse
import csv
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from acktr.errors import ConfigurationError
from acktr.run.directory import versions
from benchmarks.speed import accelerator
from benchmarks.speed import report as speed_report
from benchmarks.speed.process import Measurement, SideProcess, SpeedError
from benchmarks.speed.profile import draw
from benchmarks.speed.ratios import Group, groups, summarize

COLUMNS = ("ratio", "side", "repetition", "unit", "work", "seconds", "per_second")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print.

    :param arguments: of the command line
    :return: the exit code: 0 done, 1 a side failed, 2 bad arguments
    """
    options = _parse(arguments)
    try:
        known = accelerator.groups(options.quick) if options.device == "cuda" else groups(options.quick)
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("--device cuda needs a CUDA device, and there is none here.")
        chosen = choose(options.only, known, options.seconds, options.repetitions)
        out = _output_directory(options)
        # An accelerator's sides share nothing that one of them could wait for while it is not its turn.
        for results, rows in measure(chosen, options.quick or options.device == "cuda"):
            # After each group: what was measured before a failure is not lost.
            if out is not None:
                write(out, results, rows, manifest(_command(options), options.device))
    except (ConfigurationError, SpeedError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    if options.json:
        print(json.dumps(results, indent=1))
    elif results["ratios"]:
        print(speed_report.ratio_table(results["ratios"]))
    return 0


def choose(
    only: Iterable[str] | None,
    known: Sequence[Group],
    seconds: float | None,
    repetitions: int | None,
) -> list[Group]:
    """Return the groups that are asked for.

    :param only: their names; ``None`` for all
    :param known: those that there are
    :param seconds: of each side in each repetition; ``None`` for what each group says
    :param repetitions: ``None`` for what each group says
    :raises ConfigurationError: a name that does not exist, or a number below its least
    """
    names = list(dict.fromkeys(group.name for group in known))
    for name in only or ():
        if name not in names:
            raise ConfigurationError(f"There is no ratio {name!r}: choose from {', '.join(names)}.")
    if seconds is not None and not seconds > 0:
        raise ConfigurationError(f"--seconds is {seconds:g}: it must be above 0.")
    if repetitions is not None and repetitions < 1:
        raise ConfigurationError(f"--repetitions is {repetitions}: it must be at least 1.")
    chosen = [group for group in known if only is None or group.name in only]
    return [
        replace(
            group,
            seconds=seconds or group.seconds,
            repetitions=(repetitions if group.lines else None) or group.repetitions,
        )
        for group in chosen
    ]


def measure(
    chosen: Sequence[Group], together: bool
) -> Iterator[tuple[dict[str, Any], list[tuple[Any, ...]]]]:
    """Measure groups one after another; what is known is yielded after each.

    :param chosen: the groups
    :param together: let the sides of a group start at once, on any core; they take turns all the same
    :return: what goes into ``ratios.json``, and the rows of ``speed.csv``
    :raises SpeedError: a side failed
    """
    results: dict[str, Any] = {"ratios": [], "widths": [], "profile": {}}
    rows: list[tuple[Any, ...]] = []
    begin = time.perf_counter()
    for group in chosen:
        facts, measured = _measure_group(group, together)
        results["ratios"] += [summarize(group, line, measured) for line in group.lines]
        results["widths"] += [{"side": label, **of_side} for label, of_side in facts.items() if of_side]
        for label, repetitions in measured.items():
            unit = group.sides[label].unit
            for number, (work, seconds, phases) in enumerate(repetitions):
                rows.append(
                    (group.name, label, number, unit, int(work), f"{seconds:.4f}",
                     f"{work / seconds:.6g}")
                )  # fmt: skip
                if phases:
                    results["profile"][label] = {k: 1e6 * s / work for k, s in phases.items()}
        _say(f"{group.name} done after {time.perf_counter() - begin:.0f} s")
        yield results, rows


def _measure_group(
    group: Group, together: bool
) -> tuple[dict[str, dict[str, float]], dict[str, list[Measurement]]]:
    processes: list[SideProcess] = []
    facts: dict[str, dict[str, float]] = {}
    measured: dict[str, list[Measurement]] = {}
    try:
        for label, side in group.sides.items():
            processes.append(SideProcess(label, side, pin=not together))
            if not together:
                facts[label] = processes[-1].wait()
                _say(f"{group.name}: {label} is warm")
        for process in processes:
            if together:
                facts[process.label] = process.wait()
            measured[process.label] = []
        for number in range(group.repetitions if processes else 0):
            for process in processes:
                measured[process.label].append(process.measure(group.seconds))
            _say(f"{group.name}: repetition {number + 1} of {group.repetitions}")
    finally:
        for process in processes:
            process.close()
    return facts, measured


def write(
    out: Path, results: dict[str, Any], rows: Sequence[Sequence[Any]], manifest: dict[str, Any]
) -> None:
    """Write ``speed.csv``, ``ratios.json``, ``manifest.json`` and, with a profile, ``profile.png``.

    :param out: the directory
    :param results: of :func:`measure`
    :param rows: of :func:`measure`
    :param manifest: of :func:`manifest`
    """
    with (out / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    _write_json(out / "ratios.json", results)
    _write_json(out / "manifest.json", manifest)
    if results["profile"]:
        draw(results["profile"], out / "profile.png")


def manifest(command: str, device: str = "cpu") -> dict[str, Any]:
    """Return command, date, machine and versions.

    :param command: that gave the results
    :param device: of the learners
    """
    installed = versions()
    machine = {name: installed.pop(name) for name in ("platform", "processors")}
    del installed["command"]  # its first word is a path of this machine
    for package in ("sb3-contrib", "envpool"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "speed.csv": {"command": command, "seeds": "0"},
        "date": date.today().isoformat(),
        "machine": {
            "cpu": _cpu_model(),
            **machine,
            **(
                {"gpu": torch.cuda.get_device_name(), "threads": "one, and those of the environments"}
                if device == "cuda"
                else {
                    "pinned": hasattr(os, "sched_setaffinity"),
                    "threads": "as many as cores; MLP, widths and stepping one core, Breakout two",
                }
            ),
        },
        "versions": installed,
    }


def _command(options: argparse.Namespace) -> str:
    """The command that measures the same again, without where results go and how they are shown."""
    words = ["python", "-m", "benchmarks.speed", *(["--quick"] if options.quick else [])]
    words += [] if options.device == "cpu" else ["--device", options.device]
    words += ["--only", *options.only] if options.only else []
    for name in ("repetitions", "seconds"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", f"{value:g}"]
    return shlex.join(words)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _output_directory(options: argparse.Namespace) -> Path | None:
    """Where to write; nowhere, if what is published would lose a part or become meaningless."""
    out = options.out
    if out is None:
        if options.only or options.quick:
            _say("A part of the ratios, or --quick: nothing is written without --out.")
            return None
        out = (speed_report.RESULTS if options.device == "cpu" else speed_report.ACCELERATOR).parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}.") from error
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these ratios alone")
    parser.add_argument("--repetitions", type=int, metavar="N", help="of each side of a ratio")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each repetition of a side")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for the results (default: benchmarks/results/speed)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: other ratios, many environments"
    )
    parser.add_argument("--quick", action="store_true", help="in miniature: does it work?")
    return parser.parse_args(arguments)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
