"""Panels drawn: by Bokeh for a page with scripts, by matplotlib for one without."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter

from acktr.run.panels import STEPS, Line, Panel

# Told apart by those who see fewer colours, and on white and on black (after Okabe and Ito 2008).
COLOURS = ("#2f7fc1", "#e0791a", "#2a9d6e", "#c659a8", "#b8940f", "#7b6fe0", "#d2524e", "#4aa3b5")
_HEIGHT = 240  # pixels
_MIDDLE = "#80868d"  # of text and grid, until the page knows whether it is light or dark


def colour_of(owner: int) -> str:
    """Return the colour of a run or group: each panel, table and legend has the same."""
    return COLOURS[owner % len(COLOURS)]


def interactive(panel: Panel, names: list[str], target: str) -> dict[str, Any]:
    """Draw a panel that shows values where it is pointed at, and zooms.

    :param panel: what to draw
    :param names: of the owners, without anything that a page would obey
    :param target: id of the element that it goes into
    :return: what ``Bokeh.embed.embed_item`` takes
    """
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.models import HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    plot: Any = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="box_zoom,pan,reset",
        active_drag=None,  # a finger that scrolls the page is not to drag a picture
        toolbar_location="above",
        y_axis_type="log" if panel.log else "linear",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    plot.toolbar.autohide = True
    plot.toolbar.logo = None
    hovered = []
    for line in panel.lines:
        colour = colour_of(line.owner)
        name = names[line.owner]
        if line.low is not None and line.high is not None:
            plot.varea(line.x, line.low, line.high, fill_color=colour, fill_alpha=0.15)
        if line.kind == "points":
            drawn = plot.scatter(line.x, line.y, size=5, color=colour, name=name)
        elif line.kind == "steps":
            drawn = plot.step(line.x, line.y, mode="after", line_width=2, color=colour, name=name)
        else:
            dash = "dashed" if line.kind == "dashed" else "solid"
            width = 1 if line.kind == "dashed" else 2
            drawn = plot.line(line.x, line.y, line_width=width, line_dash=dash, color=colour, name=name)
        hovered.append(drawn)
    told = [("", "$name"), (panel.x, "@x{0,0.[00]}"), ("", "@y{0,0.[0000]}")]
    plot.add_tools(HoverTool(renderers=hovered, tooltips=told))
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    for axis in (plot.xaxis, plot.yaxis):
        axis.major_label_text_color = _MIDDLE
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
    plot.ygrid.grid_line_color = _MIDDLE
    plot.ygrid.grid_line_alpha = 0.25
    plot.xgrid.grid_line_color = None
    return dict(json_item(plot, ID(target)))


def still(panel: Panel) -> bytes:
    """Draw a panel as a PNG, for a page without scripts.

    :param panel: what to draw
    """
    figure = Figure(figsize=(5.5, 3.3), layout="constrained")
    axes = figure.subplots()
    for line in panel.lines:
        _draw(axes, line)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.5)))
    if panel.x == STEPS:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
    return picture.getvalue()


def _draw(axes: Any, line: Line) -> None:
    colour = colour_of(line.owner)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if line.kind == "steps":
        axes.step(line.x, line.y, where="post", color=colour)
    elif line.kind == "points":
        axes.plot(line.x, line.y, ".", color=colour)
    else:
        axes.plot(line.x, line.y, "--" if line.kind == "dashed" else "-", color=colour)
