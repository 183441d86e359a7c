"""The table and the picture of the race, made of what :mod:`benchmarks.kfac.race` has written."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from acktr.compare.plot import save
from benchmarks.faults.measure import existing
from benchmarks.markdown import markdown_table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "kfac"
TUNING_SEED = "0"


def table(results: Path = RESULTS) -> str:
    """Return a row for each network: of each optimiser the steps by seed, their seconds, the setting."""
    runs = [row for row in existing(results / "race.csv") if row["seed"] != TUNING_SEED]
    optimizers = list(dict.fromkeys(row["optimizer"] for row in runs))
    rows = []
    for network in dict.fromkeys(row["network"] for row in runs):
        own = [row for row in runs if row["network"] == network]
        cells = [_cell([row for row in own if row["optimizer"] == name]) for name in optimizers]
        rows.append([f"{network}, {float(own[0]['goal']):g}", *cells])
    return markdown_table(["network, loss to meet", *optimizers], rows)


def _cell(runs: list[dict[str, str]]) -> str:
    if not runs:
        return "–"
    steps = ", ".join(row["steps"] or f"> {row['steps_run']}" for row in runs)
    met = [float(row["seconds"]) for row in runs if row["seconds"]]
    seconds = f"{median(met):.2g} s" if len(met) == len(runs) else "–"
    return f"{steps}; {seconds}; `{runs[0]['settings']}`"


def wide_table(results: Path = RESULTS) -> str:
    """Return a row for each width: what inverses cost, and a step with whole factors and with blocks."""
    heads = ["width", "Cholesky inverse, ms", "eigendecomposition, ms", "step, whole", "step, blocks"]
    rows = [[cell or "–" for cell in row.values()] for row in existing(results / "wide.csv")]
    return markdown_table(heads, rows)


def update_table(results: Path = RESULTS) -> str:
    """Return a row for each network: an update beside one with the code of before."""
    heads = ["network", "before, ms", "now, ms", "ratio (quartiles)"]
    rows = [
        [
            row["network"],
            row["ms_before"],
            row["ms_now"],
            f"{row['ratio']} ({row['ratio_q1']} – {row['ratio_q3']})",
        ]
        for row in existing(results / "update.csv")
    ]
    return markdown_table(heads, rows)


def draw(results: Path = RESULTS) -> Path | None:
    """Draw the loss over steps and over seconds, a column for each network; nothing without results."""
    points = existing(results / "curves.csv")
    networks = list(dict.fromkeys(row["network"] for row in points))
    if not networks:
        return None
    figure = Figure(figsize=(3.2 * len(networks), 5.6), layout="constrained")
    panels = figure.subplots(2, len(networks), squeeze=False)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in points))
    for column, network in enumerate(networks):
        panels[0, column].set_title(network, fontsize="medium")
        for line, x in enumerate(("steps", "seconds")):
            axes = panels[line, column]
            for i, optimizer in enumerate(optimizers):
                of = [r for r in points if (r["network"], r["optimizer"]) == (network, optimizer)]
                for seed in dict.fromkeys(row["seed"] for row in of):
                    own = [row for row in of if row["seed"] == seed]
                    label = optimizer if own[0] is of[0] else None
                    xs, ys = ([float(row[key]) for row in own] for key in (x, "loss"))
                    axes.plot(xs, ys, color=f"C{i}", linewidth=1, alpha=0.8, label=label)
            axes.set_yscale("log")
            axes.set_xlabel(x if x == "steps" else "seconds of the processor")
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("loss")
    panels[0, -1].legend(fontsize="small", frameon=False)
    return save(figure, results / "race.png")
