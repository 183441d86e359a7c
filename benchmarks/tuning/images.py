"""The tables of settings that were tried for the presets of images, made of ``results/tuning/*.csv``."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.measure import existing
from benchmarks.tuning.report import TUNING, shown


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
    columns: tuple[str, int, str, int] = ("score", 1, "mutual_information", 3),
) -> str:
    """Return score and mutual information at a few points of Breakout, one row for each setting.

    :param points: steps; of a run that has no row there, the last one less than a hundredth before
    :param columns: what to show, and behind it in parentheses where there is any, each with its digits
    """
    rows = list(existing(results))
    heads = " | ".join(f"{x:,}" for x in points)
    lines = [f"| settings | {heads} |", "| --- |" + " --- |" * len(points)]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == settings]
        cells = []
        for point in points:
            near = [row for row in own if 0.99 * point < int(row["steps"]) <= point]
            cells.append(_cell(near[-1], *columns) if near else "–")
        lines.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def radius() -> str:
    """Return the same for what came next: how far and on whose word the policy moves."""
    points = (98304, 196608, 294912, 475136, 679936, 974848, 1277952)
    return frames(TUNING / "breakout_radius.csv", points)


def pixels() -> str:
    """Return return and explained variance of HalfCheetah-v5 from pixels in the same way."""
    points = (8000, 16000, 24000, 32000, 48000, 64000, 88000, 152000)
    return frames(TUNING / "pixels.csv", points, ("return", 0, "explained_variance", 2))


def _cell(row: dict[str, str], score: str, digits: int, beside: str, digits_beside: int) -> str:
    text = f"{float(row[score]):.{digits}f}"
    return text + (f" ({float(row[beside]):.{digits_beside}f})" if row[beside] else "")


# As in :mod:`benchmarks.tuning.report`.
TABLES: dict[str, Callable[[], str]] = {
    "pong": pong,
    "frames": frames,
    "radius": radius,
    "pixels": pixels,
}
