"""The picture of a comparison: what it says by itself."""

import numpy as np
from matplotlib.figure import Figure

from acktr.compare.plot import plot_comparison


def curve(level):
    steps = np.arange(1, 11) * 1000.0
    return {"steps": steps, "seconds": steps / 500, "return": level + steps / 100}


def test_one_legend_says_what_line_and_band_are(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (figures.append(f), save(f, *a, **k)))
    groups = {"acktr": [curve(10), curve(20)], "a2c": [curve(0)]}
    path = plot_comparison("Toy-v0", groups, tmp_path / "comparison.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    (legend,) = figure.legends
    assert (
        legend.get_title().get_text()
        == "line: mean over seeds; band: from the least seed to the greatest"
    )
    assert [text.get_text() for text in legend.get_texts()] == ["acktr (2 seeds)", "a2c (1 seed)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["environment steps", "wall-clock seconds"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    plot_comparison("Toy-v0", {"acktr": [curve(0)]}, tmp_path / "single.png")
    assert figures[1].legends[0].get_title().get_text() == ""
