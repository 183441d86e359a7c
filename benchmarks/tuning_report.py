"""The table of settings that were tried for the MuJoCo preset, made of ``results/tuning/short.csv``."""

from pathlib import Path
from statistics import mean

from benchmarks.faults import existing

RESULTS = Path(__file__).resolve().parent / "results" / "tuning" / "short.csv"
ENVIRONMENTS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5")


def table(results: Path = RESULTS, column: str = "return_300k") -> str:
    """Return one row for each setting: the mean over seeds, and each seed.

    :param results: csv with one row for each run
    :param column: of the csv
    """
    rows = [row for row in existing(results) if row[column]]
    lines = [
        f"| settings | {' | '.join(ENVIRONMENTS)} |",
        f"| --- |{' --- |' * len(ENVIRONMENTS)}",
    ]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        cells = []
        for env in ENVIRONMENTS:
            own = [row for row in rows if (row["settings"], row["env"]) == (settings, env)]
            scores = [float(row[column]) for row in sorted(own, key=lambda row: int(row["seed"]))]
            of_seeds = ", ".join(f"{score:.0f}" for score in scores)
            cells.append(f"**{mean(scores):.0f}** ({of_seeds})" if scores else "–")
        shown = settings if settings.startswith("(") else f"`{settings}`"
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)
