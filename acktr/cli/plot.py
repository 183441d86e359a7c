"""``acktr plot``: compare runs in one figure."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from acktr.errors import ConfigurationError


def plot(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")],
    *,
    out: Annotated[str, arg(metavar="FILE.png")] = "comparison.png",
) -> int:
    """Compare runs in one figure: a panel an environment, a line a setting, the spread over seeds.

    :param runs: run directories, or directories that hold some
    :param out: the picture to write; .pdf and .svg work too
    """
    if not runs:
        raise ConfigurationError("There is nothing to plot: name at least one run directory.")
    from acktr.run.directory import find_runs
    from acktr.run.figures import plot_runs

    found = {run.path.resolve(): run for path in runs for run in find_runs(path)}
    print(plot_runs(list(found.values()), Path(out)))
    return 0
