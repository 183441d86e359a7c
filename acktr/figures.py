"""Learning curves from run directories: one run, or several compared."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from acktr.checkpoint.durable import write_file
from acktr.errors import ConfigurationError
from acktr.runs import Run

_GRID_POINTS = 200
# Settings in which runs of one group may differ: they change no training but by chance.
_NOT_COMPARED = {
    "seed", "preset", "device", "backend", "eval_interval", "n_eval_episodes",
    "n_final_eval_episodes", "verbose",
}  # fmt: skip
_MAX_LABEL = 50


def plot_learning_curve(run: Run) -> Path:
    """Draw the return of one run over its steps: episodes, their moving mean, and evaluations.

    :param run: a run with at least one finished episode or evaluation
    :return: the path of the picture
    """
    configuration = run.read_configuration()
    episodes, evaluations = run.episodes(), run.evaluations()
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    if len(episodes["steps"]):
        window = smoothing_window(len(episodes["steps"]))
        axes.plot(
            episodes["steps"], episodes["return"], ".", color="C0", alpha=0.2, markersize=3,
            label="training episode",
        )  # fmt: skip
        axes.plot(
            episodes["steps"], moving_mean(episodes["return"], window), color="C0",
            label=f"mean of the last {window} episodes",
        )  # fmt: skip
    if len(evaluations["steps"]):
        axes.errorbar(
            evaluations["steps"], evaluations["mean_return"], evaluations["std_return"], color="C1",
            marker="o", markersize=4, linewidth=1, capsize=2, label="evaluation (mean ± std)",
        )  # fmt: skip
    _label(axes, f"{configuration['env_id']}, ACKTR, seed {configuration.get('seed')}")
    path = run.path / "learning_curve.png"
    _save(figure, path)
    return path


def plot_comparison(runs: Sequence[Run], out: Path) -> Path:
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
    figure = Figure(figsize=(8, 4.5 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (env_id, members) in zip(all_axes, panels.items(), strict=True):
        for label, group in _group(members).items():
            _plot_group(axes, label, group)
        _label(axes, f"{env_id}, ACKTR")
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


def smoothing_window(n_episodes: int) -> int:
    """Episodes to average: a tenth of them, at most the 100 that the score uses."""
    return min(100, max(1, n_episodes // 10))


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values at each place; of all so far where there are fewer.

    :param values: ``(n,)``
    :return: ``(n,)``
    """
    sums = np.cumsum(values)
    sums[window:] -= sums[:-window].copy()
    return sums / np.minimum(np.arange(1, len(values) + 1), window)


def _plot_group(axes: Axes, label: str, runs: Sequence[Run]) -> None:
    curves = []
    tables = [run.episodes() for run in runs]
    # Only where each run has data: extrapolated values are not results.
    start = max(table["steps"][0] for table in tables)
    end = max(start, min(table["steps"][-1] for table in tables))
    grid = np.linspace(start, end, _GRID_POINTS)
    for table in tables:
        window = smoothing_window(len(table["steps"]))
        curves.append(np.interp(grid, table["steps"], moving_mean(table["return"], window)))
    mean, spread = np.mean(curves, axis=0), np.std(curves, axis=0)
    count = f"{len(runs)} runs, mean ± std" if len(runs) > 1 else "1 run"
    (line,) = axes.plot(grid, mean, label=f"{label} ({count})")
    if len(runs) > 1:
        axes.fill_between(grid, mean - spread, mean + spread, color=line.get_color(), alpha=0.2)


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
    axes.set_ylabel("return of an episode")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        # Outside the layout: a wide legend must not squeeze the axes.
        axes.legend().set_in_layout(False)
