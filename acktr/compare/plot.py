"""Learning curves of several algorithms, over steps and over time, with an interval over seeds."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from acktr.errors import ConfigurationError
from acktr.files.durable import write_file
from acktr.run.figures import add_legend, with_counts

Curve = Mapping[str, np.ndarray]
# From returns, (n_points, n_seeds), to a centre and the two ends of an interval, (n_points, 3).
Summary = Callable[[np.ndarray], np.ndarray]
SECONDS = {"seconds": "wall-clock seconds", "cpu_seconds": "seconds of one core"}


def mean_and_range(returns: np.ndarray) -> np.ndarray:
    """Return the mean, the least and the greatest, which say all there is to say of few seeds.

    :param returns: ``(n_points, n_seeds)``
    """
    return np.stack([f(returns, axis=-1) for f in (np.mean, np.min, np.max)], axis=-1)


def stack(curves: Sequence[Curve], column: str) -> np.ndarray:
    """Put a column of several curves together, NaN where a training ended early.

    :return: ``(n_seeds, n_points)``
    """
    table = np.full((len(curves), max(len(curve[column]) for curve in curves)), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve[column])] = curve[column]
    return table


def summarize(curves: Sequence[Curve], summary: Summary) -> np.ndarray:
    """Return centre and interval at each point where every seed has a score, NaN elsewhere.

    :return: ``(n_points, 3)``
    """
    returns = stack(curves, "return").T
    complete = np.isfinite(returns).all(axis=-1)
    result = np.full((len(returns), 3), np.nan)
    if complete.any():
        result[complete] = summary(returns[complete])
    return result


def draw(
    axes: Axes,
    groups: Mapping[str, Sequence[Curve]],
    x: str,
    summary: Summary,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Draw one line for each label, and the interval as a band.

    :param groups: the curves of all seeds by label
    :param x: ``"steps"``, or a key of :data:`SECONDS`, of which each point gets the mean over seeds
    :param summary: see :data:`Summary`
    :param colours: by label; by default matplotlib's in turn
    """
    for label, curves in groups.items():
        centre, low, high = summarize(curves, summary).T
        places = stack(curves, x).mean(axis=0)
        colour = colours[label] if colours else None
        (line,) = axes.plot(places, centre, color=colour, label=label, linewidth=1.5)
        if len(curves) > 1:
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("environment steps" if x == "steps" else SECONDS[x])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)


def plot_comparison(env_id: str, groups: Mapping[str, Sequence[Curve]], out: Path) -> Path:
    """Draw return over steps and over wall-clock time side by side.

    :param env_id: the title
    :param groups: the curves of all seeds by label
    :param out: the picture
    :raises ConfigurationError: if it cannot be written
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, groups, "steps", mean_and_range)
    draw(right, groups, "seconds", mean_and_range)
    left.set_ylabel("mean return of the last 100 episodes")
    figure.suptitle(env_id)
    counts = {label: [len(curves)] for label, curves in groups.items()}
    several = any(len(curves) > 1 for curves in groups.values())
    explanation = "line: mean over seeds; band: from the least seed to the greatest" if several else None
    add_legend(figure, with_counts(counts, "seed"), explanation)
    return save(figure, out)


def save(figure: Figure, out: Path) -> Path:
    """Write a figure; the same figure makes the same file.

    :raises ConfigurationError: if it cannot be written
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        form = out.suffix.removeprefix(".") or "png"
        figure.savefig(picture, dpi=110, format=form, metadata={"Software": None})
        write_file(out, picture.getvalue())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{out} cannot be written: {error}.") from error
    return out
