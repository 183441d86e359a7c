"""The tables of docs/pythons.md, made of what :mod:`benchmarks.pythons` found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.pythons.environments import OUT, PACKAGES, PYTHONS, read


def tables(results: Path = OUT) -> str:
    """Return a table of the checks and one of the versions, a column for each Python.

    :param results: the directory with ``pythons.csv`` and ``manifest.json``
    """
    rows, manifest = read(results)
    tried = [minor for minor in PYTHONS if minor in manifest]
    found = {minor: manifest[minor]["python"] or "not found" for minor in tried}
    outcomes: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        outcomes.setdefault((row["extra"], row["check"]), {})[row["python"]] = row["outcome"]
    checked = [
        [extra and f"`[{extra}]`", check, *(_cell(by_python.get(minor)) for minor in tried)]
        for (extra, check), by_python in outcomes.items()
    ]
    heading = [f"Python {minor}" for minor in tried]
    interpreters = ["", "interpreter", *found.values()]
    return "\n\n".join(
        [
            markdown_table(["extra", "what is run", *heading], [interpreters, *checked]),
            "What pip chose on that day:",
            markdown_table(["", *heading], _versions(manifest, tried)),
        ]
    )


def _cell(outcome: str | None) -> str:
    return "–" if outcome is None else outcome.replace("|", "/")


def _versions(manifest: Mapping[str, Any], tried: list[str]) -> list[list[str]]:
    dates = ["day", *(manifest[minor]["date"] for minor in tried)]
    chosen = {minor: manifest[minor].get("versions", {}) for minor in tried}
    names = [
        name for name in (*PACKAGES, "pip") if any(name in versions for versions in chosen.values())
    ]
    return [dates, *([name, *(chosen[minor].get(name, "–") for minor in tried)] for name in names)]
