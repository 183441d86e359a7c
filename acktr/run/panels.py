"""The panels of a report: what is drawn of runs, whatever draws it."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from acktr.files.reading import read_plain
from acktr.learner.timing import ACTIVITIES
from acktr.run.directory import Run
from acktr.run.figures import in_short, window_means, window_of
from acktr.run.tables import SCORE_WINDOW, read_columns

STEPS = "environment steps"
POINTS = 500  # of a line: more are neither seen nor needed, and make the page large
_LARGEST = 1e30  # larger numbers are drawn by nothing
_BINS = 20
_MAX_ARRAYS = 2**24  # bytes of evaluations.npz, and of what is inside
_SMOOTH = 20  # a line is smoothed over one part in so many: what is measured of single updates jumps
# Of the critic: below this it explains nothing, and by how much is not worth the room.
_LEAST_VARIANCE = -1.0


class Line(NamedTuple):
    """One line.

    :param owner: whose it is: a place among the runs or groups of the report
    :param x: ``(n,)``, rising
    :param y: ``(n,)``
    :param low: the lower end of a band about it, ``(n,)``; ``None`` for none
    :param high: the upper end
    :param kind: ``"line"``, ``"dashed"`` for what a line is held against, ``"points"``, ``"steps"`` for
        the outline of a histogram
    """

    owner: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    kind: str = "line"


class Panel(NamedTuple):
    """Lines that share their axes.

    :param title: what is seen
    :param note: what lines, bands and points are, a sentence
    :param x: name of the axis
    :param lines: those that there are
    :param log: whether the vertical axis is logarithmic
    """

    title: str
    note: str
    x: str
    lines: list[Line]
    log: bool = False


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """Return what there is to see of runs; what none of them has logged is left out.

    :param runs: the owners of the lines
    :raises CheckpointError: a table of a run is damaged
    """
    makers: tuple[Callable[[Sequence[Run]], Panel], ...] = (
        _returns,
        _kl,
        _explained_variance,
        _noise,
        _step_scale,
        _speed,
        _over_time,
        _histogram,
    )
    panels = (make(runs) for make in makers)
    return [panel for panel in panels if panel.lines]


def line(owner: int, x: np.ndarray, y: np.ndarray, *band: np.ndarray, kind: str = "line") -> list[Line]:
    """Make a line of what is finite, with no more points than are seen; none where nothing is.

    :param owner: whose it is
    :param x: ``(n,)``
    :param y: ``(n,)``
    :param band: its lower and its upper end, ``(n,)`` each, or neither
    :param kind: see :class:`Line`
    """
    columns = np.array([x, y, *band], dtype=float)
    kept = columns[:, (np.abs(columns) < _LARGEST).all(0)]  # nor is NaN below
    if not kept.shape[1]:
        return []
    places = np.unique(np.linspace(0, kept.shape[1] - 1, POINTS).astype(int))
    x, y, *ends = kept[:, places]
    return [Line(owner, x, y, *ends)._replace(kind=kind)]


def _returns(runs: Sequence[Run]) -> Panel:
    tables = [_finite(table["steps"], table["return"]) for table in (run.episodes() for run in runs)]
    window = window_of(max((steps.max() for steps, _ in tables if len(steps)), default=1))
    lines = []
    for owner, (run, (steps, returns)) in enumerate(zip(runs, tables, strict=True)):
        if not len(steps):
            continue
        places, mean = window_means(steps, returns, window)
        _, square = window_means(steps, (returns - returns.mean()) ** 2, window)
        spread = np.sqrt(np.maximum(square - (mean - returns.mean()) ** 2, 0))
        lines += line(owner, places, mean, mean - spread, mean + spread)
        evaluations = run.evaluations()
        lines += line(owner, evaluations["steps"], evaluations["mean_return"], kind="points")
    note = (
        f"Line and band: mean and standard deviation of the training episodes that ended within "
        f"{in_short(window)} steps; points: evaluations without noise."
    )
    return Panel("Return of an episode", note, STEPS, lines)


def _over_time(runs: Sequence[Run]) -> Panel:
    tables = [_finite(table["seconds"], table["return"]) for table in (run.episodes() for run in runs)]
    window = max((seconds.max() for seconds, _ in tables if len(seconds)), default=1) / 20
    lines = []
    for owner, (seconds, returns) in enumerate(tables):
        if len(seconds):
            lines += line(owner, *window_means(seconds, returns, window))
    note = f"Mean of the training episodes that ended within {window:.3g} s; evaluations take time too."
    return Panel("Return over time", note, "seconds", lines)


def _kl(runs: Sequence[Run]) -> Panel:
    lines = _logged(runs, "train/kl") + _logged(runs, "train/target_kl", kind="dashed", smooth=False)
    note = "Nats, measured after each update, smoothed; dashed: the target."
    return Panel("KL against its target", note, STEPS, lines)


def _step_scale(runs: Sequence[Run]) -> Panel:
    lines = _logged(runs, "train/step_scale") + _logged(
        runs, "train/learning_rate", kind="dashed", smooth=False
    )
    positive = [x._replace(x=x.x[x.y > 0], y=x.y[x.y > 0]) for x in lines]
    note = "Natural gradients in a step, smoothed; dashed: the longest step."
    return Panel("Step scale", note, STEPS, [x for x in positive if len(x.x)], log=True)


def _explained_variance(runs: Sequence[Run]) -> Panel:
    lines = _logged(runs, "train/explained_variance", least=_LEAST_VARIANCE)
    note = "How much the critic knows of the returns: 1 is all, 0 their mean alone, −1 that or less."
    return Panel("Explained variance", note, STEPS, lines)


def _noise(runs: Sequence[Run]) -> Panel:
    lines = _logged(runs, "train/std", smooth=False)
    if lines:
        note = "Mean standard deviation of the actions, in their units."
        return Panel("Noise", note, STEPS, lines, log=all((x.y > 0).all() for x in lines))
    lines = [x._replace(y=-x.y) for x in _logged(runs, "train/entropy_loss", smooth=False)]
    return Panel("Entropy", "Mean entropy of the policy, nats.", STEPS, lines)


def _speed(runs: Sequence[Run]) -> Panel:
    lines = []
    for owner, run in enumerate(runs):
        table = run.episodes()
        # At the ends of episodes seconds have fractions, in progress.csv they have none.
        steps, seconds = _finite(table["steps"], table["seconds"])
        steps, last = np.unique(steps, return_index=True)
        if len(steps) < 3:
            continue
        places = np.linspace(steps[0], steps[-1], min(len(steps) // 2, 2 * _SMOOTH) + 1)
        passed = np.diff(np.interp(places, steps, seconds[last]))
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(passed > 0, np.diff(places) / passed, np.nan)
        lines += line(owner, places[1:], rate)
    return Panel("Speed", "Environment steps a second, evaluations included.", STEPS, lines)


def seconds_of(run: Run) -> dict[str, float]:
    """Return the seconds that a run has spent on each of :data:`~acktr.learner.timing.ACTIVITIES`.

    :return: empty for a run from before they were logged
    """
    found = _columns(run, *(f"time/{name}" for name in ACTIVITIES))
    known = found[:, ((found >= 0) & (found < _LARGEST)).all(0)]
    return dict(zip(ACTIVITIES, map(float, known.sum(1)), strict=True)) if known.size else {}


def _histogram(runs: Sequence[Run]) -> Panel:
    found = [(owner, *_last_returns(run)) for owner, run in enumerate(runs)]
    values = np.concatenate([returns for _, returns, _ in found])
    values = values[np.abs(values) < _LARGEST]
    lines = []
    if len(values):
        low, high = values.min(), values.max()
        least = max(1.0, 1e-6 * np.abs(values).max())  # that bins can tell from each other
        extra = max(least - (high - low), 0.0) / 2
        edges = np.linspace(low - extra, high + extra, _BINS + 1)
        for owner, returns, _ in found:
            counts, _ = np.histogram(returns, edges)
            heights = np.append(counts, 0) / max(counts.sum(), 1)
            lines += line(owner, edges, heights, kind="steps")
    kinds = sorted({kind for *_, kind in found})
    return Panel("Returns at the end", f"Share of {' or '.join(kinds)}.", "return", lines)


def _last_returns(run: Run) -> tuple[np.ndarray, str]:
    """Return those of the last evaluation that kept each, else those of the last training episodes."""
    path = run.path / "evaluations.npz"
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        data = read_plain(path, _MAX_ARRAYS)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_ARRAYS:
                raise ValueError("it holds more than it says")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            returns = np.asarray(arrays["results"][-5:], dtype=float).ravel()
        if len(returns):
            return returns, "the episodes of the last five evaluations"
    return run.episodes()["return"][-SCORE_WINDOW:], f"the last {SCORE_WINDOW} training episodes"


def _logged(
    runs: Sequence[Run], name: str, *, kind: str = "line", smooth: bool = True, least: float = -math.inf
) -> list[Line]:
    """Return a line for each run that has logged a value."""
    lines = []
    for owner, run in enumerate(runs):
        steps, values = _finite(*_columns(run, "time/total_timesteps", name))
        values = np.maximum(values, least)
        if smooth and len(values):
            first = np.maximum(np.arange(len(values)) - len(values) // _SMOOTH, 0)
            sums = np.concatenate([[0.0], np.cumsum(values)])
            values = (sums[1:] - sums[first]) / (np.arange(len(values)) + 1 - first)
        lines += line(owner, steps, values, kind=kind)
    return lines


def _columns(run: Run, *names: str) -> np.ndarray:
    """Read columns of ``progress.csv``, ``(len(names), n)``, NaN where a row says nothing."""
    rows: Iterable[tuple[float | None, ...]] = read_columns(run.path / "progress.csv", names)
    return np.array(list(rows), dtype=float).reshape(-1, len(names)).T


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = (np.abs(x) < _LARGEST) & (np.abs(y) < _LARGEST)
    return x[known], y[known]
