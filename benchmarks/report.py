"""Writes the tables and figures of the pages of results in docs: ``python -m benchmarks.report``.

Between two markers of a page everything is replaced; a second run changes nothing. The figures lie
beside the results that they are made of.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import suites
from benchmarks.faults import report as fault_report
from benchmarks.kfac import report as kfac_report
from benchmarks.pythons import report as pythons_report
from benchmarks.speed import report as speed_report
from benchmarks.suites import choice as suite_choice
from benchmarks.suites import figures as suite_figures
from benchmarks.suites import tables as suite_tables
from benchmarks.suites.data import SuiteData
from benchmarks.suites.normalised import short_table
from benchmarks.tuning import images as tuning_images
from benchmarks.tuning import levers as tuning_levers
from benchmarks.tuning import looks as tuning_looks
from benchmarks.tuning import report as tuning_report

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "0.1.0" / "presets.csv"
PAGE = ROOT.parent / "docs" / "results.md"
README = ROOT.parent / "README.md"
ALGORITHM_PAGE = ROOT.parent / "docs" / "acktr.md"
CHOICE_PAGE = ROOT.parent / "docs" / "choice.md"
SPEED_PAGE = ROOT.parent / "docs" / "speed.md"
FAULTS_PAGE = ROOT.parent / "docs" / "reliability.md"
ABLATIONS_PAGE = ROOT.parent / "docs" / "ablations.md"
TUNING_NOTES = ROOT / "results" / "tuning" / "notes.md"
KFAC_PAGE = ROOT.parent / "docs" / "kfac.md"
KFAC_REFERENCE_PAGE = ROOT.parent / "docs" / "kfac_reference.md"
PYTHONS_PAGE = ROOT.parent / "docs" / "pythons.md"
SCALING_PAGE = ROOT.parent / "docs" / "distributed.md"
BEGIN, END = "<!-- table: python -m benchmarks.report -->", "<!-- end of table -->"
SUITES_BEGIN, SUITES_END = "<!-- suites: python -m benchmarks.report -->", "<!-- end of suites -->"
SUMMARY_BEGIN, SUMMARY_END = "<!-- summary: python -m benchmarks.report -->", "<!-- end of summary -->"
# What nobody tuned for and the experiments of the paper, in the order of the page; the others follow.
FIRST = (
    "general",
    "mujoco",
    "atari",
    "atari_short",
    "pixels",
    "critic_norm",
    "batch_size",
    "wall_clock",
)


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


def all_suites() -> list[SuiteData]:
    """Return the results of every suite, published or not, those of :data:`FIRST` first."""
    others = [name for name in suites.names() if name not in FIRST]
    return [SuiteData(name, suites.load(name)) for name in (*FIRST, *others)]


def page(text: str, results: Path = RESULTS, data: Sequence[SuiteData] | None = None) -> str:
    """Return the page of results with everything between its markers made anew.

    :param text: the page as it is
    :param results: csv of 0.1.0 with one row for each run
    :param data: results of suites; by default all
    """
    sections = [suite_tables.text(suite) for suite in (all_suites() if data is None else data)]
    text = _between_markers(text, table(results))
    content = "\n\n".join(section for section in sections if section)
    return _between_markers(text, content, SUITES_BEGIN, SUITES_END)


def summary(text: str) -> str:
    """Return a page with the table that sums up the suite of one million steps made anew."""
    content = suite_tables.summary_table(SuiteData("mujoco", suites.load("mujoco")))
    return _between_markers(text, content, SUMMARY_BEGIN, SUMMARY_END)


def readme(text: str) -> str:
    """Return the first page with the tables that sum up both suites made anew."""
    begin, end = "<!-- general: python -m benchmarks.report -->", "<!-- end of general -->"
    content = short_table(SuiteData("general", suites.load("general")))
    return _between_markers(summary(text), content, begin, end)


def choice_page(text: str) -> str:
    """Return the page that helps to choose an algorithm with its table made anew."""
    begin, end = "<!-- choice: python -m benchmarks.report -->", "<!-- end of choice -->"
    content = suite_choice.text(SuiteData("off_policy", suites.load("off_policy")))
    return _between_markers(text, content, begin, end)


def speed_page(text: str) -> str:
    """Return the page of the speed benchmark with its tables made anew."""
    begin, end = "<!-- accelerator: python -m benchmarks.report -->", "<!-- end of accelerator -->"
    text = _between_markers(text, speed_report.tables(speed_report.ACCELERATOR), begin, end)
    begin, end = "<!-- memory: python -m benchmarks.report -->", "<!-- end of memory -->"
    text = _between_markers(text, speed_report.memory_tables(), begin, end)
    return _between_markers(text, speed_report.tables(speed_report.RESULTS))


def faults_page(text: str) -> str:
    """Return the page of reliability with its table made anew."""
    return _between_markers(text, fault_report.fault_tables())


def ablations_page(text: str) -> str:
    """Return the page of ablations with its table made anew."""
    begin, end = "<!-- levers: python -m benchmarks.report -->", "<!-- end of levers -->"
    return _between_markers(text, tuning_levers.table(), begin, end)


def tuning_notes(text: str) -> str:
    """Return the notes on tuning with their tables made anew."""
    text = _between_markers(text, tuning_report.table())
    tables = {**tuning_report.TABLES, **tuning_looks.TABLES, **tuning_images.TABLES}
    for name, make in tables.items():
        begin, end = f"<!-- {name}: python -m benchmarks.report -->", f"<!-- end of {name} -->"
        text = _between_markers(text, make(), begin, end)
    return text


def scaling_page(text: str) -> str:
    """Return the page of several processes with its table made anew."""
    return _between_markers(text, fault_report.scaling_table())


def kfac_page(text: str) -> str:
    """Return the page of the optimiser with the table of its race made anew."""
    begin, end = "<!-- race: python -m benchmarks.report -->", "<!-- end of race -->"
    return _between_markers(text, kfac_report.table(), begin, end)


def kfac_reference_page(text: str) -> str:
    """Return the page of the optimiser's options with its tables made anew."""
    for name, table in (("wide", kfac_report.wide_table()), ("update", kfac_report.update_table())):
        begin, end = f"<!-- {name}: python -m benchmarks.report -->", f"<!-- end of {name} -->"
        text = _between_markers(text, table, begin, end)
    return text


def pythons_page(text: str) -> str:
    """Return the page of supported Pythons with its tables made anew."""
    return _between_markers(text, pythons_report.tables())


def main() -> None:
    """Draw the figures and write the pages."""
    for suite in all_suites():
        suite_figures.make(suite)
    kfac_report.draw()
    for path, make in PAGES.items():
        path.write_text(make(path.read_text(encoding="utf-8")), encoding="utf-8")


def _between_markers(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


PAGES = {
    PAGE: lambda text: summary(page(text)),
    README: readme,
    ALGORITHM_PAGE: summary,
    CHOICE_PAGE: choice_page,
    SPEED_PAGE: speed_page,
    FAULTS_PAGE: faults_page,
    SCALING_PAGE: scaling_page,
    PYTHONS_PAGE: pythons_page,
    KFAC_PAGE: kfac_page,
    KFAC_REFERENCE_PAGE: kfac_reference_page,
    ABLATIONS_PAGE: ablations_page,
    TUNING_NOTES: tuning_notes,
}


if __name__ == "__main__":
    main()
