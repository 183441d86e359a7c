"""``acktr report``: one HTML file about runs."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from acktr.errors import ConfigurationError


def report(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")],
    *,
    out: Annotated[str | None, arg(metavar="FILE.html", help_behavior_hint="")] = None,
) -> int:
    """Write a page about runs, side by side: curves, health, evaluation, film, settings.

    It is one file, which a browser opens without a server or a network.

    :param runs: run directories, or directories that hold some; or one search of `acktr sweep`
    :param out: the page (default: report.html in the run directory, of several runs in this one)
    """
    if not runs:
        raise ConfigurationError("There is nothing to report: name at least one run directory.")
    from acktr.compare.search import JOURNAL, open_study, report_study
    from acktr.run.directory import find_runs
    from acktr.run.report import report as report_runs

    if searches := [path for path in map(Path, runs) if (path / JOURNAL).is_file()]:
        if len(runs) > 1:
            raise ConfigurationError(f"{searches[0]} is a search, not a run: report it alone.")
        page = searches[0] / "report.html" if out is None else Path(out)
        print(report_study(open_study(searches[0]), page))
        return 0
    found = list({run.path.resolve(): run for path in runs for run in find_runs(path)}.values())
    folder = found[0].path if len(found) == 1 else Path()
    print(report_runs(found, folder / "report.html" if out is None else Path(out)))
    return 0
