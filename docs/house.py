"""The picture of the rooms of ``acktr/``, drawn from their imports: ``python docs/house.py``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PACKAGE = Path(__file__).parents[1] / "acktr"
PICTURE = Path(__file__).parent / "images" / "house.png"


def rooms() -> list[str]:
    """Return the folders of the package that hold modules, by name."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imports() -> dict[str, set[str]]:
    """Return the other rooms that each room imports, type annotations and functions included."""
    known = set(rooms())
    found: dict[str, set[str]] = {room: set() for room in known}
    for room in known:
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found[room] |= {name for name in _rooms_named(node) if name in known - {room}}
    return found


def _rooms_named(node: ast.AST) -> list[str]:
    """Return what stands behind ``acktr.`` in an import; imports in this package are absolute."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.split(".")[1] for name in names if name.startswith("acktr.")]


def floors(of: Mapping[str, set[str]]) -> list[list[str]]:
    """Put rooms into rows, lowest first, so that each imports rooms of lower rows alone.

    :param of: the rooms that each room imports
    :raises ValueError: they import each other in a circle
    """
    rows: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(of):
        row = sorted(room for room in of if room not in placed and of[room] <= placed)
        if not row:
            raise ValueError(f"These rooms import each other: {', '.join(sorted(set(of) - placed))}.")
        rows.append(row)
        placed.update(row)
    return rows


def draw(of: Mapping[str, set[str]]) -> Figure:
    """Draw rooms as boxes, each above all that it imports, and imports as arrows.

    :param of: the rooms that each room imports
    """
    rows = floors(of)
    order = [room for row in reversed(rows) for room in reversed(row)]
    height = {room: float(len(order) - place) for place, room in enumerate(order)}
    lowest = order[-1]
    figure = Figure(figsize=(6.0, 6.4))
    axes = figure.subplots()
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for place, room in enumerate(order):
        color = colors[place % len(colors)]
        box = FancyBboxPatch(
            (-0.9, height[room] - 0.29), 1.8, 0.58, boxstyle="round,pad=0,rounding_size=0.12"
        )
        box.set(facecolor=(*color, 0.15), edgecolor=color, linewidth=1.4)
        axes.add_patch(box)
        axes.text(0.0, height[room], room, ha="center", va="center", fontsize=12)
        for other in sorted(of[room]):
            _draw_arrow(axes, height[room], height[other], color, left=other == lowest)
    axes.set(xlim=(-3.0, 2.7), ylim=(0.5, len(order) + 0.5))
    axes.axis("off")
    figure.tight_layout(pad=0.2)
    return figure


def _draw_arrow(axes: Axes, start: float, end: float, color: tuple[float, ...], *, left: bool) -> None:
    """Draw an arrow down to the next box, or an arc beside the column to one further below."""
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": color, "linewidth": 1.3}
    if start - end == 1:
        axes.add_patch(
            FancyArrowPatch((0, start - 0.29), (0, end + 0.29), shrinkA=0, shrinkB=0, **style)
        )
        return
    side, sign = (-0.9, 1.0) if left else (0.9, -1.0)
    bend = sign * (0.53 + 0.57 / (start - end))
    axes.add_patch(
        FancyArrowPatch(
            (side, start - 0.08),
            (side, end + 0.08),
            connectionstyle=f"arc3,rad={bend:.3f}",
            shrinkA=0,
            shrinkB=0,
            **style,
        )
    )


def main() -> None:
    """Write the picture."""
    draw(imports()).savefig(PICTURE, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
