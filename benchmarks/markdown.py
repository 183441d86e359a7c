"""Tables in Markdown, and the numbers in their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.statistics import Estimate


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, a line for each row.

    :param header: of each column
    :param rows: as many cells each
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def score(value: float | None) -> str:
    """Three digits or all before the point: 5231, 36.2, -4.13."""
    if value is None:
        return "–"
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def difference(values: np.ndarray) -> str:
    """Mean and standard error: +340 ± 156 (4)."""
    n = len(values)
    if not n:
        return "–"
    mean = f"{'+' if values.mean() >= 0 else ''}{score(values.mean())}"
    return f"{mean} (1)" if n == 1 else f"{mean} ± {score(values.std(ddof=1) / n**0.5)} ({n})"


def either(value: float | None, missing: str, form: str) -> str:
    """Return a number in a form, or what stands for a missing one."""
    return missing if value is None else f"{value:{form}}"


def with_interval(value: Estimate, digits: int | None = None) -> str:
    """Value and ends: 0.78 [0.71, 0.84]; as :func:`score` has them where ``digits`` is not given."""

    def show(x: float) -> str:
        return score(x) if digits is None else f"{x:.{digits}f}"

    if value.low is None or value.high is None:
        return f"{show(value.value)} (one seed: no interval)"
    return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]"
