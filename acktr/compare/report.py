"""The page of a comparison: algorithms over steps and over time, ACKTR's trainings from inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import acktr
from acktr.compare.plot import Curve, mean_and_range, stack, summarize
from acktr.errors import CheckpointError, printable
from acktr.run.directory import Run
from acktr.run.panels import STEPS, Line, Panel, line, panels_of
from acktr.run.report import (
    Page,
    Section,
    Table,
    films_of,
    missing_of,
    notes_of,
    tables_of,
    times_of,
    write_page,
)
from acktr.run.units import duration

COLUMNS = ("algorithm", "seed", "steps", "last 100 episodes", "evaluation", "time", "steps/s", "")


def write_report(
    env_id: str,
    rows: Sequence[Mapping[str, str]],
    groups: Mapping[str, Sequence[Curve]],
    runs: Mapping[str, Path],
    out: Path,
) -> Path:
    """Write the page of a comparison.

    :param env_id: the title
    :param rows: of the store's table, one a training
    :param groups: the curves of all seeds by algorithm
    :param runs: ACKTR's run directories, by name; one that cannot be read is left out
    :param out: the file
    :return: ``out``
    :raises ConfigurationError: it cannot be written
    """
    names = list(groups)
    sections = [Section("Side by side", names, _panels(groups))]
    found = {name: run for name, path in runs.items() if (run := _usable(path)) is not None}
    inside, labels = list(found.values()), list(found)
    if inside:
        sections.append(Section("Inside ACKTR", labels, panels_of(inside)))
    page = Page(
        title=f"{', '.join(names)} on {printable(env_id)}",
        subtitle=f"{len(rows)} trainings, by acktr {acktr.__version__}.",
        summary=Table(
            "Figures", COLUMNS, [cells(row) for row in rows], [names.index(row["label"]) for row in rows]
        ),
        missing=missing_of(inside, labels),
        notes=notes_of(inside, labels),
        sections=sections,
        films=films_of(inside, labels),
        tables=tables_of(inside, labels, [run.read_configuration() for run in inside]) if inside else [],
        times=times_of(inside, labels),
    )
    return write_page(page, out)


def _panels(groups: Mapping[str, Sequence[Curve]]) -> list[Panel]:
    note = "Of the last 100 episodes: mean over seeds; band: from the least seed to the greatest."
    panels = []
    for x, name in (("steps", STEPS), ("seconds", "seconds")):
        lines: list[Line] = []
        for owner, curves in enumerate(groups.values()):
            centre, low, high = summarize(curves, mean_and_range).T
            band = (low, high) if len(curves) > 1 else ()
            lines += line(owner, stack(curves, x).mean(axis=0), centre, *band)
        panels.append(Panel(f"Return over {x}", note, name, lines))
    return panels


def _usable(path: Path) -> Run | None:
    """Return a run that has something to show; a training may have been stopped before it had."""
    try:
        run = Run(Run.open(path).path, leave_out=True)
        run.read_configuration()
        return run if len(run.episodes()["return"]) else None
    except CheckpointError:
        return None


def cells(row: Mapping[str, str]) -> list[str]:
    """Return what :data:`COLUMNS` say of a row of the store's table."""
    mean, std = (_rounded(row[name]) for name in ("eval_mean", "eval_std"))
    return [
        printable(row["label"]),
        printable(row["seed"]),
        f"{int(row['steps']):,}",
        _rounded(row["last_100_return"]),
        f"{mean} ± {std}",
        duration(float(row["seconds"])),
        f"{float(row['fps']):,.0f}",
        "diverged" if row["diverged"] == "yes" else "",
    ]


def _rounded(text: str) -> str:
    return f"{float(text):,.1f}" if text else "–"
