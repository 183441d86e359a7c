"""The figures of a suite: curves over steps and over time, every seed's end, performance profiles."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acktr.compare.plot import SECONDS, draw, save
from acktr.run.figures import add_legend, with_counts
from benchmarks.statistics import CONFIDENCE, interval, iqm_with_interval, profile
from benchmarks.suites.data import SuiteData, task_name

CAPTIONS = {
    "steps.png": "Return over steps",
    "time.png": "Return over seconds of one core",
    "ends.png": "Return at the end, every seed",
    "profile.png": "Share of runs above a normalised score",
}
_COLUMNS = 3
_RETURN = "mean return of the last 100 episodes"
_BAND = f"band: its {CONFIDENCE:.0%} bootstrap interval"
# More in one panel cannot be told apart: every seed's end in place of curves.
_MOST_LINES = 8
_THRESHOLDS = np.linspace(-0.2, 2.0, 111)


def make(data: SuiteData) -> list[Path]:
    """Draw everything that the results allow, beside them.

    :param data: the results of a suite
    :return: the pictures
    """
    if not data.rows or data.suite.speeds:  # those trainings are too short for a return
        return []
    figures: dict[str, Figure] = {}
    if len(data.labels) > _MOST_LINES:
        figures["ends.png"] = ends(data)
    else:
        figures["steps.png"] = curves(data, "steps")
        if data.suite.compare_seconds:
            figures["time.png"] = curves(data, "cpu_seconds")
    if any(data.normalized(label) for label in data.labels):
        figures["profile.png"] = profiles(data)
    for name in CAPTIONS.keys() - figures.keys():
        # From when there was less to show, or something else: the page shows what lies here.
        (data.path / name).unlink(missing_ok=True)
    return [save(figure, data.path / name) for name, figure in figures.items()]


def links(data: SuiteData) -> list[str]:
    """Return the pictures that lie beside the results, as a page in ``docs`` shows them."""
    return [
        f"![{caption}](../benchmarks/results/{data.name}/{name})"
        for name, caption in CAPTIONS.items()
        if (data.path / name).is_file()
    ]


def curves(data: SuiteData, x: str) -> Figure:
    """Draw a panel for each task, a line for each label: the IQM over seeds and its interval.

    :param x: ``"steps"`` or ``"cpu_seconds"``; a task whose seconds do not count has no panel there
    """
    drawn = {}
    for env in data.envs:
        groups = {
            label: data.curves(env, label, None if x == "steps" else data.timed(env, label))
            for label in data.labels
        }
        if any(groups.values()):
            drawn[env] = {label: own for label, own in groups.items() if own}
    n_rows = math.ceil(len(drawn) / _COLUMNS)
    n_columns = min(len(drawn), _COLUMNS)
    counts: dict[str, list[int]] = {}
    for groups in drawn.values():
        for label, own in groups.items():
            counts.setdefault(label, []).append(len(own))
    figure = Figure(figsize=(4.2 * n_columns, 3.2 * n_rows + 0.4), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    colours = {label: f"C{i}" for i, label in enumerate(data.suite.algorithms)}
    # Tasks first: of the two it is they that end, and no panel is lost.
    for (env, groups), axes in zip(drawn.items(), panels, strict=False):
        draw(axes, groups, x, iqm_with_interval, colours)
        axes.set_title(task_name(env), fontsize="medium")
        axes.set_xlabel("")
    for axes in list(panels):
        axes.set_axis_off()
    figure.supxlabel("environment steps" if x == "steps" else SECONDS[x], fontsize="medium")
    figure.supylabel(_RETURN, fontsize="medium")
    several = max(map(max, counts.values())) > 1
    explanation = f"line: interquartile mean over seeds; {_BAND}" if several else None
    add_legend(figure, with_counts(counts, "seed"), explanation, "outside upper center")
    return figure


def ends(data: SuiteData) -> Figure:
    """Draw a panel for each task, a row for each label, a point for each seed: the score at the end.

    A band shows from where to where the seeds of the first label go.
    """
    size = 1.8 + 2.8 * len(data.envs), 0.8 + 0.24 * len(data.labels)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(data.envs), sharey=True, squeeze=False).flat
    for env, axes in zip(data.envs, panels, strict=True):
        for row, label in enumerate(data.labels):
            scores = data.scores(env, label)
            axes.plot(scores, [row] * len(scores), "o", color=f"C{min(row, 1)}", markersize=4, alpha=0.7)
        first = data.scores(env, data.labels[0])
        if len(first):
            axes.axvspan(min(first), max(first), color="C0", alpha=0.15, linewidth=0)
        axes.set_title(env, fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(data.labels)), data.labels, fontsize="small")
    panels[0].invert_yaxis()
    figure.supxlabel(
        f"{_RETURN}; a point is a seed\nband: from the least to the greatest seed of {data.labels[0]}",
        fontsize="medium",
    )
    return figure


def profiles(data: SuiteData) -> Figure:
    """Draw the share of runs above each normalised score, with its interval."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    counts = {}
    for i, label in enumerate(data.suite.algorithms):
        tasks = list(data.normalized(label).values()) if label in data.labels else []
        if tasks:
            counts[label] = [len(tasks)]
            _profile(axes, label, f"C{i}", tasks, profile(_THRESHOLDS))
    best = "side" if data.suite.reference == "all" else "of the peers"
    axes.set_xlabel(f"normalised score: 0 is the random policy, 1 the best {best}")
    axes.set_ylabel("share of runs above")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
    add_legend(figure, with_counts(counts, "task"), f"line: share of runs; {_BAND}")
    return figure


def _profile(
    axes: Axes,
    label: str,
    colour: str,
    tasks: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
) -> None:
    axes.plot(_THRESHOLDS, statistic(*tasks), color=colour, label=label)
    ends = interval(statistic, tasks)
    if ends is not None:
        axes.fill_between(_THRESHOLDS, *ends, color=colour, alpha=0.15, linewidth=0)
