"""The tables of settings that were tried for the presets of images, made of ``results/tuning/*.csv``."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import existing
from benchmarks.tuning_report import TUNING, shown


def pong(results: Path = TUNING / "pong.csv") -> str:
    """Return how Pong went with each preset that it was run with, one column for each."""
    rows = list(existing(results))
    choices = list(dict.fromkeys(row["settings"] for row in rows))
    lines = [f"| steps | {' | '.join(map(shown, choices))} |", f"| --- |{' --- |' * len(choices)}"]
    for steps in dict.fromkeys(row["steps"] for row in rows):
        of_runs = {row["settings"]: row["return"] for row in rows if row["steps"] == steps}
        cells = [f"{float(of_runs[x]):.1f}" for x in choices]
        lines.append(f"| {int(steps):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def frames(
    results: Path = TUNING / "breakout_frames.csv",
    points: tuple[int, ...] = (16384, 32768, 65536, 98304, 180224, 327680, 655360),
) -> str:
    """Return score and mutual information at a few points of Breakout, one row for each setting.

    :param points: steps; of a run that has no row there, the last one less than a hundredth before
    """
    rows = list(existing(results))
    heads = " | ".join(f"{x:,}" for x in points)
    lines = [f"| settings | {heads} |", "| --- |" + " --- |" * len(points)]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == settings]
        cells = []
        for point in points:
            near = [row for row in own if 0.99 * point < int(row["steps"]) <= point]
            cells.append(_score_and_information(near[-1] if near else None))
        lines.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def radius() -> str:
    """Return the same for what came next: how far and on whose word the policy moves."""
    points = (98304, 196608, 294912, 475136, 679936, 974848, 1277952)
    return frames(TUNING / "breakout_radius.csv", points)


def pixels(
    results: Path = TUNING / "pixels.csv",
    points: tuple[int, ...] = (8000, 16000, 24000, 32000, 48000, 64000, 88000, 152000),
) -> str:
    """Return return and explained variance at a few points of HalfCheetah-v5 from pixels."""
    rows = list(existing(results))
    heads = " | ".join(f"{x:,}" for x in points)
    lines = [f"| settings | {heads} |", "| --- |" + " --- |" * len(points)]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = {int(row["steps"]): row for row in rows if row["settings"] == settings}
        cells = [_return_and_explained_variance(own.get(point)) for point in points]
        lines.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _return_and_explained_variance(row: dict[str, str] | None) -> str:
    if row is None:
        return "–"
    explained = row["explained_variance"]  # empty before the first update
    return f"{float(row['return']):.0f}" + (f" ({float(explained):.2f})" if explained else "")


def _score_and_information(row: dict[str, str] | None) -> str:
    if row is None:
        return "–"
    information = row["mutual_information"]
    return f"{float(row['score']):.1f}" + (f" ({float(information):.3f})" if information else "")


# As in :mod:`benchmarks.tuning_report`.
TABLES: dict[str, Callable[[], str]] = {
    "pong": pong,
    "frames": frames,
    "radius": radius,
    "pixels": pixels,
}
