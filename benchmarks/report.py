"""Writes the tables of docs/results.md and docs/speed.md: ``python -m benchmarks.report``.

Between the two markers of a page everything is replaced; a second run changes nothing.
"""

import csv
from pathlib import Path
from statistics import median

from benchmarks import speed_report

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "0.1.0" / "presets.csv"
PAGE = ROOT.parent / "docs" / "results.md"
SPEED_PAGE = ROOT.parent / "docs" / "speed.md"
BEGIN, END = "<!-- table: python -m benchmarks.report -->", "<!-- end of table -->"


def table(results: Path = RESULTS) -> str:
    """Return the table in Markdown, one row for each environment.

    :param results: csv with one row for each run
    """
    runs: dict[str, list[dict[str, str]]] = {}
    with results.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault(row["env"], []).append(row)
    lines = [
        "| environment | steps | last 100 episodes, by seed | median | evaluation, by seed | "
        "KL within a factor 2 | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for env, rows in runs.items():
        last = [float(row["last_100_return"]) for row in rows]
        evaluations = [float(row["eval_mean"]) for row in rows]
        within = min(float(row["kl_within_factor_2"]) for row in rows)
        lines.append(
            f"| {env} | {int(rows[0]['steps']):,} | {', '.join(f'{x:.0f}' for x in last)} | "
            f"{median(last):.0f} | {', '.join(f'{x:.0f}' for x in evaluations)} | "
            f"≥ {within:.1%} | {median(float(row['seconds']) for row in rows):.0f} |"
        )
    return "\n".join(lines)


def page(text: str, results: Path = RESULTS) -> str:
    """Return the page with the table between its markers made anew.

    :param text: the page as it is
    :param results: csv with one row for each run
    """
    return _between_markers(text, table(results))


def speed_page(text: str, results: Path = speed_report.RESULTS) -> str:
    """Return the page of the speed benchmark with its tables made anew.

    :param text: the page as it is
    :param results: the ``ratios.json`` of ``python -m benchmarks.speed``
    """
    return _between_markers(text, speed_report.tables(results))


def _between_markers(text: str, content: str) -> str:
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SPEED_PAGE.write_text(speed_page(SPEED_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
