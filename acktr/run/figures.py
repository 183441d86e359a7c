"""Learning curves from run directories: one run, or several compared."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from acktr.errors import ConfigurationError
from acktr.files.durable import write_file
from acktr.run.directory import Run

_GRID_POINTS = 200
# Settings in which runs of one group may differ: they change no training but by chance.
_NOT_COMPARED = {
    "seed", "preset", "device", "backend", "eval_interval", "n_eval_episodes",
    "n_final_eval_episodes", "verbose", "tracker",
}  # fmt: skip
_MAX_LABEL = 80
_LETTER_INCHES, _HANDLE_INCHES = 0.085, 0.7  # of a legend
# Of a run, one window: enough episodes for a mean, and short enough to see when something happened.
_WINDOWS = 20


def plot_learning_curve(run: Run) -> Path:
    """Draw the return of one run over its steps: episodes, their mean in windows, and evaluations.

    :param run: a run with at least one finished episode or evaluation
    :return: the path of the picture
    """
    configuration = run.read_configuration()
    episodes, evaluations = run.episodes(), run.evaluations()
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    if len(episodes["steps"]):
        window = window_of(episodes["steps"].max())
        axes.plot(
            episodes["steps"], episodes["return"], ".", color="C0", alpha=0.3, markersize=4,
            label="a training episode, at the step at which it ended",
        )  # fmt: skip
        axes.plot(
            *window_means(episodes["steps"], episodes["return"], window), color="C0",
            label=f"mean of the training episodes that ended within {in_short(window)} steps",
        )  # fmt: skip
    if len(evaluations["steps"]):
        counts = evaluations["episodes"]
        axes.errorbar(
            evaluations["steps"], evaluations["mean_return"], evaluations["std_return"], color="C1",
            marker="o", markersize=4, linewidth=1, capsize=2,
            label="evaluation without noise: mean and standard deviation of "
            f"{_range([int(counts.min()), int(counts.max())])} episodes",
        )  # fmt: skip
    _label(axes, f"ACKTR on {configuration['env_id']}, seed {configuration.get('seed')}")
    axes.set_ylabel("return of an episode")
    add_legend(figure, {label: label for label in axes.get_legend_handles_labels()[1]}, None)
    path = run.path / "learning_curve.png"
    _save(figure, path)
    return path


def plot_runs(runs: Sequence[Run], out: Path) -> Path:
    """Draw runs in one figure: a panel an environment, a line a setting, the spread over seeds.

    :param runs: the runs; those that differ in nothing but their seed make one line
    :param out: the picture to write
    :return: ``out``
    :raises ConfigurationError: if no run has finished an episode, or ``out`` cannot be written
    """
    usable = [(run.read_configuration(), run) for run in runs if len(run.episodes()["steps"])]
    if not usable:
        raise ConfigurationError(
            f"There is nothing to plot: none of {len(runs)} runs has finished an episode."
        )
    panels: dict[str, list[tuple[dict[str, Any], Run]]] = {}
    for configuration, run in usable:
        panels.setdefault(configuration["env_id"], []).append((configuration, run))
    groups = {env_id: _group(members) for env_id, members in panels.items()}
    counts: dict[str, list[int]] = {}
    for group in groups.values():
        for label, members in group.items():
            counts.setdefault(label, []).append(len(members))
    figure = Figure(figsize=(8, 4 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    colours = {label: f"C{i}" for i, label in enumerate(counts)}
    for axes, (env_id, group) in zip(all_axes, groups.items(), strict=True):
        window = window_of(max(run.episodes()["steps"].max() for _, run in panels[env_id]))
        for label, members in group.items():
            _plot_group(axes, label, members, window, colours[label])
        _label(axes, f"ACKTR on {env_id}")
        axes.set_ylabel(f"mean return of the episodes\nthat ended within {in_short(window)} steps")
    several = max(map(max, counts.values())) > 1
    add_legend(
        figure,
        with_counts(counts, "run"),
        "line: mean over runs; band: one standard deviation to both sides" if several else None,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _save(figure, out)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{out} cannot be written: {error}.") from error
    return out


def _save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=120)
    write_file(path, picture.getvalue())


def add_legend(
    figure: Figure,
    labels: Mapping[str, str],
    explanation: str | None,
    loc: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Put one legend outside all panels of a figure, which grows by it.

    :param figure: its lines have the keys of ``labels`` as labels
    :param labels: what the legend says of each
    :param explanation: what lines and bands are
    :param loc: above, where something else is written below the panels
    """
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn = [label for label in labels if label in handles]
    if not drawn:
        return
    width = _HANDLE_INCHES + _LETTER_INCHES * max(len(labels[label]) for label in drawn)
    columns = min(max(int(figure.get_figwidth() / width), 1), len(drawn))
    if explanation and len(explanation) * _LETTER_INCHES > figure.get_figwidth():
        explanation = explanation.replace("; ", "\n")
    lines = math.ceil(len(drawn) / columns) + len((explanation or "").splitlines())
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.22 * lines)
    figure.legend(
        [handles[label] for label in drawn],
        [labels[label] for label in drawn],
        title=explanation,
        ncols=columns,
        loc=loc,
    )


def with_counts(counts: Mapping[str, Sequence[int]], noun: str) -> dict[str, str]:
    """Return what a legend says of each label: how many runs or seeds its lines are of.

    :param counts: in each panel, by label
    :param noun: what is counted, in the singular
    """
    return {
        label: f"{label} ({_range(numbers)} {noun}{'s' if max(numbers) > 1 else ''})"
        for label, numbers in counts.items()
    }


def window_of(steps: float) -> int:
    """Choose how many steps to average over: a twentieth of all, rounded up to 1, 2 or 5 and zeros."""
    least = max(steps / _WINDOWS, 1.0)
    unit = 10 ** math.floor(math.log10(least))
    return next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= least)


def window_means(steps: np.ndarray, returns: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean return of the episodes that ended in the last ``window`` steps, wherever one ended.

    Those that end at the same step make one point: episodes of one length, in environments that
    began together, would otherwise be drawn as a vertical stroke, and their order as a rise or fall.

    :param steps: at which each episode ended, ``(n,)``
    :param returns: of each, ``(n,)``
    :param window: steps
    :return: places, each once and rising, and means, ``(m,)`` each
    """
    order = np.argsort(steps, kind="stable")
    steps, sums = steps[order], np.cumsum([0.0, *returns[order]])
    places = np.unique(steps)
    first, end = (np.searchsorted(steps, places - back, side="right") for back in (window, 0))
    return places, (sums[end] - sums[first]) / (end - first)


def in_short(steps: float) -> str:
    """Write steps as the axes do: 5000 as 5k."""
    return EngFormatter(sep="")(steps)


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} {'to' if most > least + 1 else 'or'} {most}"


def _plot_group(axes: Axes, label: str, runs: Sequence[Run], window: int, colour: str) -> None:
    tables = [run.episodes() for run in runs]
    curves = [window_means(table["steps"], table["return"], window) for table in tables]
    # Only where each run has data: extrapolated values are not results.
    start = max(places[0] for places, _ in curves)
    end = max(start, min(places[-1] for places, _ in curves))
    grid = np.unique(np.concatenate([np.linspace(start, end, _GRID_POINTS), *(x for x, _ in curves)]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = [np.interp(grid, *curve) for curve in curves]
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
    axes.plot(grid, mean, color=colour, label=label, marker="." if len(grid) == 1 else None)
    if len(runs) > 1:
        axes.fill_between(grid, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def _group(members: Sequence[tuple[dict[str, Any], Run]]) -> dict[str, list[Run]]:
    """Put runs of one environment together that differ in no setting; name each by what differs."""
    names = {name for configuration, _ in members for name in configuration} - _NOT_COMPARED
    varying = [
        name
        for name in sorted(names)
        if len({repr(configuration.get(name)) for configuration, _ in members}) > 1
    ]
    groups: dict[str, list[Run]] = {}
    for configuration, run in members:
        label = ", ".join(f"{name}={configuration.get(name)}" for name in varying) or "ACKTR"
        groups.setdefault(label, []).append(run)
    # What differs may be too much for a legend.
    return {
        label if len(label) <= _MAX_LABEL else f"{group[0].path}, ...": group
        for label, group in groups.items()
    }


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
