"""The tables of docs/speed.md from what ``python -m benchmarks.speed`` has measured."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "ratios.json"
ACCELERATOR = RESULTS.parents[1] / "speed_cuda" / "ratios.json"
MEMORY = RESULTS.parents[1] / "speed_memory" / "ratios.json"
CURVATURE = ("factors", "inverses", "precondition, trust region, apply")
UPDATE = ("forward and backward", *CURVATURE, "rest of the update")


def tables(path: Path = RESULTS) -> str:
    """Return where and when a results file was measured, and its tables, in Markdown.

    :param path: a ``ratios.json``, with its ``manifest.json`` beside it
    """
    results = json.loads(path.read_text(encoding="utf-8"))
    manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
    machine = manifest["machine"]
    parts = [
        f"`{manifest['speed.csv']['command']}`, {manifest['date']}, on {_place(machine)} with "
        f"{machine['processors']} cores, torch {manifest['versions']['torch']}:",
        ratio_table(results["ratios"]),
    ]
    if results["widths"]:
        parts.append(width_table(results["widths"]))
    if results["profile"]:
        parts.append(profile_table(results["profile"]))
    learning = path.with_name("learning.csv")
    if learning.is_file():
        parts.append(learning_table(learning))
    return "\n\n".join(parts)


def memory_tables(path: Path = MEMORY) -> str:
    """Return the tables of policies that remember, with the share of curvature in their updates.

    :param path: as for :func:`tables`
    """
    profile = json.loads(path.read_text(encoding="utf-8"))["profile"]
    shares = {
        label: sum(phases[name] for name in CURVATURE) / sum(phases[name] for name in UPDATE)
        for label, phases in profile.items()
    }
    said = "; ".join(f"{label}: {share:.0%}" for label, share in shares.items())
    return f"{tables(path)}\n\nOf the update curvature takes (factors, inverses, and the step): {said}."


def _place(machine: Mapping[str, Any]) -> str:
    return f"one {machine['gpu']} beside {machine['cpu']}" if "gpu" in machine else str(machine["cpu"])


def learning_table(path: Path) -> str:
    """Return one row for each environment and choice of options: the returns of all seeds.

    :param path: csv with one row for each run
    """
    runs: dict[tuple[str, str], list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault((row["env"], row["options"]), []).append(float(row["last_100_return"]))
    lines = [
        "| environment | options | last 100 episodes, by seed | least | median | greatest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (env, options), returns in runs.items():
        spread = " | ".join(f"{f(returns):.0f}" for f in (min, median, max))
        seeds = ", ".join(f"{x:.0f}" for x in returns)
        lines.append(f"| {env} | {options} | {seeds} | {spread} |")
    return "\n".join(lines)


def ratio_table(ratios: Sequence[Mapping[str, Any]]) -> str:
    """Return one row for each ratio.

    :param ratios: as in ``ratios.json``
    """
    lines = [
        "| ratio | at least | measured | least – greatest | above the line | below the line |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in ratios:
        target = "–" if line["target"] is None else f"{line['target']:g}"
        unit = line["unit"]
        cells = [
            f"**{line['median']:.2f}**" if line["met"] else f"{line['median']:.2f}",
            f"{line['minimum']:.2f} – {line['maximum']:.2f}",
            f"{line['top']}: {_rate(line['top_rate'], unit)}",
            f"{line['bottom']}: {_rate(line['bottom_rate'], unit)}",
        ]
        lines.append(f"| `{line['ratio']}`: {line['what']} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def width_table(widths: Sequence[Mapping[str, Any]]) -> str:
    """Return one row for each width of the network.

    :param widths: operations of one update by phase, and memory
    """
    phases = [key for key in widths[0] if key not in ("side", "flops", "factors_mib")]
    names = " | ".join(phase.replace("_", " ") for phase in phases)
    lines = [
        f"| side | operations | {names} | memory of factors |",
        "| --- " * (len(phases) + 3) + "|",
    ]
    for row in widths:
        shares = " | ".join(f"{row[phase] / row['flops']:.0%}" for phase in phases)
        lines.append(
            f"| {row['side']} | {_rounded(row['flops'])}flop | {shares} | {row['factors_mib']:.3g} MiB |"
        )
    return "\n".join(lines)


def profile_table(profile: Mapping[str, Mapping[str, float]]) -> str:
    """Return one row for each setting: microseconds per environment step.

    :param profile: by setting and phase
    """
    phases = list(next(iter(profile.values())))
    lines = [f"| µs per step | {' | '.join(phases)} | sum |", "| --- " * (len(phases) + 2) + "|"]
    for label, row in profile.items():
        cells = [f"{row[phase]:.1f}" for phase in phases]
        lines.append(f"| {label} | {' | '.join(cells)} | {sum(row.values()):.0f} |")
    return "\n".join(lines)


def _rate(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}/s" if unit == "steps" else f"{_rounded(value)}{unit}/s"


def _rounded(value: float) -> str:
    for power, prefix in ((12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "
