"""One HTML file about runs, with all that it shows inside: no server, nothing fetched.

Whatever comes of a run's files may be somebody else's. It is text here, never markup: Jinja escapes it,
what Bokeh gets of it is numbers and names of plain letters, and the page allows no script but its own
and no request at all (its Content-Security-Policy).
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import acktr
from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError, printable
from acktr.files.durable import write_file
from acktr.files.reading import parse_json, read_plain
from acktr.run.charts import colour_of, interactive, still
from acktr.run.directory import Run
from acktr.run.health import MIN_EPISODES, advise_run
from acktr.run.panels import Panel, panels_of, seconds_of
from acktr.run.tables import SCORE_WINDOW
from acktr.run.units import duration

_MAX_FILMS = 2_000_000  # bytes of all films together: a page is below 5 MB
_MAX_JSON = 2**20
_MAX_CELL = 300  # characters


class Table(NamedTuple):
    """A table.

    :param title: what it says
    :param columns: their names
    :param rows: cells; the first names the row
    :param owners: whose colour each row has; none where it is of all
    :param marked: rows to point at
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    owners: Sequence[int] = ()
    marked: frozenset[int] = frozenset()


class Note(NamedTuple):
    """The health of a run: advice, or a sentence where there is none."""

    owner: int
    name: str
    advice: Sequence[str]
    well: str


class Film(NamedTuple):
    """A film of a run, as base64."""

    name: str
    data: str


class Section(NamedTuple):
    """Panels that have the same owners of lines.

    :param title: above them
    :param names: of the owners
    :param panels: what is drawn
    """

    title: str
    names: Sequence[str]
    panels: Sequence[Panel]


class Page(NamedTuple):
    """All that a page shows, from top to bottom.

    :param title: of the page
    :param subtitle: a sentence below it
    :param summary: the figures
    :param missing: what could not be read, sentences
    :param notes: what is plainly wrong with each run
    :param sections: what is drawn
    :param films: what is shown
    :param tables: what is folded away at the end
    :param times: where the time went, if that is known
    """

    title: str
    subtitle: str
    summary: Table
    missing: Sequence[str]
    notes: Sequence[Note]
    sections: Sequence[Section]
    films: Sequence[Film]
    tables: Sequence[Table]
    times: Table | None = None


def report(runs: Sequence[Run], out: Path) -> Path:
    """Write a page about runs.

    :param runs: one, or several side by side
    :param out: the file, ``.html``
    :return: ``out``
    :raises ConfigurationError: a run has not finished an episode, Bokeh is not installed, or the file
        cannot be written
    :raises CheckpointError: a run's files cannot be used
    """
    check_page(out)
    runs = [Run(run.path, leave_out=True) for run in runs]
    names = short_names([run.path for run in runs])
    settings = [run.read_configuration() for run in runs]
    summary = _summary(runs, names, settings)
    env_ids = list(dict.fromkeys(str(found["env_id"]) for found in settings))
    page = Page(
        title=f"ACKTR on {_cell(', '.join(env_ids))}",
        subtitle=f"{len(runs)} run{'s' * (len(runs) > 1)}, by acktr {acktr.__version__}.",
        summary=summary,
        missing=missing_of(runs, names),
        notes=notes_of(runs, names),
        sections=[Section("How it went", names, panels_of(runs))],
        films=films_of(runs, names),
        tables=tables_of(runs, names, settings),
        times=times_of(runs, names),
    )
    return write_page(page, out)


def check_page(out: Path) -> None:
    """Refuse a page that cannot be made, before anything is trained or read for it.

    :param out: the file
    :raises ConfigurationError: saying why
    """
    if out.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"{out} is not an .html file: give --out a name ending with .html.")
    if not is_installed("bokeh"):
        raise ConfigurationError(
            'A report needs bokeh, which is not installed: run `pip install "acktr[report]"`.'
        )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name directories by as much of their ends as tells them apart, in plain letters.

    :param paths: all different
    """
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    # Bokeh gets them, in whose texts $$ is mathematics, and < the beginning of a tag.
    return [re.sub(r"[^\w.,=+/ -]", "·", name)[-80:] for name in names]


def notes_of(runs: Sequence[Run], names: Sequence[str]) -> list[Note]:
    """Return the health of runs."""
    notes = []
    for owner, (run, name) in enumerate(zip(runs, names, strict=True)):
        episodes = len(run.episodes()["return"])
        well = "Nothing is plainly wrong."
        if episodes < MIN_EPISODES:
            well = f"Of {episodes} episodes nothing can be told yet."
        notes.append(Note(owner, name, advise_run(run.path), well))
    return notes


def missing_of(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Tell what of the tables of runs cannot be read, a sentence for each table."""
    several = len(runs) > 1
    return [
        f"{name}, {sentence}" if several else sentence
        for run, name in zip(runs, names, strict=True)
        for sentence in run.left_out()
    ]


def times_of(runs: Sequence[Run], names: Sequence[str]) -> Table | None:
    """Return where the time of runs went; ``None`` where none of them has logged it."""
    rows, owners = [], []
    for owner, (run, name) in enumerate(zip(runs, names, strict=True)):
        seconds = seconds_of(run)
        whole = sum(seconds.values())
        if whole:
            rows.append([name, duration(whole), *(f"{x / whole:.0%}" for x in seconds.values())])
            owners.append(owner)
    return Table("Where the time goes", _TIMES, rows, owners) if rows else None


def films_of(runs: Sequence[Run], names: Sequence[str]) -> list[Film]:
    """Return the films that runs have, as far as they are small."""
    films, left = [], _MAX_FILMS
    for run, name in zip(runs, names, strict=True):
        with contextlib.suppress(OSError):
            data = read_plain(run.path / "episode.mp4", left)
            left -= len(data)
            films.append(Film(name, base64.b64encode(data).decode()))
    return films


def tables_of(
    runs: Sequence[Run], names: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """Return settings and versions of runs, those that differ marked.

    :param runs: the runs
    :param names: of them
    :param settings: of each
    """
    versions = [_read_json(run.path / "versions.json") for run in runs]
    return [
        _differing("Settings", names, [dict(_flat(found)) for found in settings]),
        _differing("Versions", names, versions),
    ]


def write_page(page: Page, out: Path) -> Path:
    """Write a page.

    :param page: what it shows
    :param out: the file; an earlier one stays whole until the new one is
    :return: ``out``
    :raises ConfigurationError: it cannot be written
    """
    import jinja2
    from bokeh.resources import Resources

    template = resources.files("acktr.run").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    items: list[dict[str, Any]] = []
    sections = []
    for section in page.sections:
        charts = []
        for panel in section.panels:
            target = f"chart-{len(items)}"
            items.append(interactive(panel, list(section.names), target))
            picture = base64.b64encode(still(panel)).decode()
            charts.append({"panel": panel, "target": target, "still": picture})
        sections.append({"title": section.title, "names": section.names, "charts": charts})
    text = environment.from_string(template).render(
        page=page,
        sections=sections,
        colour_of=colour_of,
        # A "<" would end the script in which they stand.
        charts=json.dumps(items, allow_nan=False).replace("<", "\\u003c"),
        bokeh="\n".join(Resources(mode="inline", components=["bokeh"]).js_raw),
        nonce=secrets.token_urlsafe(16),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, text.encode())
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}.") from error
    return out


# The figures --------------------------------------------------------------------------------

_FIGURES = (
    "run",
    "environment",
    "seed",
    "steps",
    "last 100 episodes",
    "evaluation",
    "time",
    "steps/s",
    "",
)


_TIMES = ("run", "time", "collecting", "critic's update", "actor's update", "rest")


def _summary(runs: Sequence[Run], names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for run, name, found in zip(runs, names, settings, strict=True):
        episodes = run.episodes()
        if not len(episodes["return"]):
            raise ConfigurationError(
                f"There is nothing to report: {run.path} has not finished an episode{_though(run)}."
            )
        result = _read_json(run.path / "result.json")
        raw = result.get("evaluation")
        evaluation: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
        steps = _number(result.get("steps")) or float(episodes["steps"].max())
        seconds = _number(result.get("seconds"))
        mean, std = (_number(evaluation.get(key)) for key in ("mean_return", "std_return"))
        said = "not ended" if not result else "stopped" if result.get("interrupted") is True else ""
        rows.append(
            [
                name,
                _cell(found["env_id"]),
                _cell(found.get("seed")),
                f"{steps:,.0f}",
                f"{np.mean(episodes['return'][-SCORE_WINDOW:]):,.1f}",
                "–" if mean is None or std is None else f"{mean:,.1f} ± {std:,.1f}",
                "–" if seconds is None else duration(seconds),
                f"{steps / seconds:,.0f}" if seconds else "–",
                said,
            ]
        )
    return Table("Figures", _FIGURES, rows, range(len(rows)))


def _though(run: Run) -> str:
    lost = [sentence.rstrip(".") for sentence in run.left_out() if sentence.startswith("episodes")]
    return f" that can be read ({lost[0]})" if lost else ""


def _differing(title: str, names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Table:
    keys = list(dict.fromkeys(key for one in found for key in one))
    rows = [[_cell(key), *(_cell(one.get(key, "–")) for one in found)] for key in keys]
    marked = frozenset(i for i, (_, *cells) in enumerate(rows) if len(set(cells)) > 1)
    return Table(title, ["", *names] if len(names) > 1 else ["", ""], rows, marked=marked)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return settings by their dotted keys."""
    flat = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        flat += _flat(value, f"{name}.") if nested else [(name, value)]
    return flat


def _cell(value: Any) -> str:
    return printable("–" if value is None else str(value), _MAX_CELL)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e30 else None


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object of a file; an empty one where there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = parse_json(read_plain(path, _MAX_JSON))
        if isinstance(content, dict):
            return content
    return {}
