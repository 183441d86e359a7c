"""The tables of docs/reliability.md and docs/distributed.md, made of what was measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.faults.measure import existing

RESULTS = Path(__file__).resolve().parents[1] / "results"


def fault_tables(results: Path = RESULTS / "faults") -> str:
    """Return what kills, changed files and checkpoints led to, as far as it was measured."""
    lines = ["| what was done | how often | as it must be |", "| --- | --- | --- |"]
    for name, what in (
        ("kills", "killed, resumed"),
        ("policy_kills", "killed, resumed"),
        ("rank_kills", "one of two ranks killed, recovered"),
    ):
        rows = existing(results / f"{name}.csv")
        kinds = [
            f"{row['environment'].rpartition(':')[2]}, {row.get('backend', 'gymnasium')}" for row in rows
        ]
        good = [row["parameters"] == row["tables"] == "equal" for row in rows]
        equal = Counter(kind for kind, as_it_was in zip(kinds, good, strict=True) if as_it_was)
        for kind, count in sorted(Counter(kinds).items()):
            lines.append(f"| {kind}: {what}, equal bit for bit | {count} | {equal[kind]} |")
    for name, what, same in (
        ("mutations", "files changed and loaded", "the same values"),
        (
            "policy_mutations",
            "saved models with memory, with masks, and with both, changed and loaded",
            "the same values, or those of another model where checksums were made to fit,",
        ),
    ):
        mutations = existing(results / f"{name}.csv")
        if mutations:
            total = {k: sum(int(row[k]) for row in mutations) for k in ("number", *_OUTCOMES)}
            good = total["refused"] + total["same"]
            lines.append(
                f"| {what}: refused by the typed error {total['refused']:,}, {same} "
                f"{total['same']:,}, wrong values {total['wrong']}, code run {total['executed']}, "
                f"other errors {total['crashed']} | {total['number']:,} | {good:,} |"
            )
    masked = existing(results / "policy_masks.csv")
    if masked:
        taken, forbidden = (sum(int(row[key]) for row in masked) for key in ("taken", "forbidden"))
        lines.append(
            f"| actions of policies with masks, on {len(masked)} tasks: forbidden {forbidden} | "
            f"{taken:,} | {taken - forbidden:,} |"
        )
    costs = existing(results / "checkpoint_cost.csv")
    with_some = [row for row in costs if float(row["interval"]) > 0]
    if with_some:
        share = median(float(row["share"]) for row in with_some)
        rates = {
            kind: median(
                float(row["steps_per_second"]) for row in costs if (float(row["interval"]) > 0) == kind
            )
            for kind in (False, True)
        }
        lines += [
            "",
            f"A checkpoint every {float(with_some[0]['interval']):g} seconds takes {share:.2%} of the "
            f"time of a training on HalfCheetah-v5 (median of {len(with_some)}); steps per second were "
            f"{rates[True]:,.0f} with and {rates[False]:,.0f} without.",
        ]
    return "\n".join(lines)


_OUTCOMES = ("refused", "same", "wrong", "executed", "crashed")


def scaling_table(results: Path = RESULTS / "scaling" / "scaling.json") -> str:
    """Return measured and predicted efficiencies."""
    if not results.exists():
        return "Not measured yet."
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    link = found["link_seconds"]
    small, large = (link[key] for key in sorted(link, key=int))
    lines = [
        f"`python -m benchmarks.speed.scaling` on {found['cores']} cores, HalfCheetah-v5 with its "
        f"preset. One process takes {1e3 * found['seconds_per_iteration']:.1f} ms an iteration; in a "
        f"group each sends {found['messages_per_iteration']:.0f} messages of "
        f"{found['bytes_per_iteration'] / 1024:.0f} KiB together. Between two of them a reduction of 8 "
        f"bytes takes {1e6 * small:.0f} µs, one of 1 MiB {1e3 * large:.2f} ms.",
        "",
        "| processes | steps/s | times one process (least – greatest) | efficiency, measured | "
        "predicted, ring | predicted, tree |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for world, predicted in found["predicted"].items():
        cells = ["", "", ""]
        if world in found["measured"]:
            m = found["measured"][world]
            cells = [
                f"{m['steps_per_second']:,.0f}",
                f"{m['speedup']:.2f} ({m['least']:.2f} – {m['greatest']:.2f})",
                f"{m['efficiency']:.2f}",
            ]
        lines.append(
            f"| {world} | {' | '.join(cells)} | {predicted['ring']:.2f} | {predicted['tree']:.2f} |"
        )
    return "\n".join(lines)
