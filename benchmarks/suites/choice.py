"""The table by which an algorithm is chosen: returns after the same steps, and the same seconds."""

from __future__ import annotations

import numpy as np

from benchmarks.markdown import either, markdown_table, score
from benchmarks.statistics import iqm
from benchmarks.suites.data import SuiteData, task_name
from benchmarks.suites.figures import links


def text(data: SuiteData) -> str:
    """Return the table of a suite, its pictures, and what of it has not been measured.

    :param data: its results, complete or not
    """
    parts = [table(data), *links(data)] if data.rows else []
    return "\n\n".join([*parts, missing(data)])


def table(data: SuiteData) -> str:
    """Return one row for each task and label.

    *After ACKTR's seconds* is the return that a label had when ACKTR had made all of its steps, by the
    median of its seeds; a label that had ended before keeps what it ended with. Seconds count where both
    have run on the same kind of processor.
    """
    rows = []
    for env in data.envs:
        for label in data.labels:
            if (env, label) not in data.rows:
                continue
            processor = (
                data.processor_of(env, data.ours, label) if (env, data.ours) in data.rows else None
            )
            timed = [] if processor is None else data.timed(env, label, processor)
            ours = [] if processor is None else data.timed(env, data.ours, processor)
            seconds = data.scores(env, label, "cpu_seconds", timed)
            limit = np.median(data.scores(env, data.ours, "cpu_seconds", ours)) if ours else None
            rows.append([
                task_name(env),
                label,
                f"{len(data.rows[env, label])}/{data.n_wanted(env, label)}",
                score(data.score(env, label)),
                either(float(np.median(seconds)) if len(seconds) else None, "–", ",.0f"),
                score(_return_at(data, env, label, timed, limit)),
            ])  # fmt: skip
    header = (
        "task", "algorithm", "seeds", "return after all steps, IQM", "seconds of a core",
        "return after ACKTR's seconds, IQM",
    )  # fmt: skip
    return markdown_table(header, rows)


def missing(data: SuiteData) -> str:
    """Say which seeds have not been measured."""
    left = []
    for env in data.envs_wanted:
        for label in data.suite.algorithms:
            wanted = data.n_wanted(env, label)
            known = len(data.rows.get((env, label), []))
            if known < wanted:
                left.append(f"{label} on {task_name(env)} ({wanted - known} of {wanted} seeds)")
    if not left:
        return "All of it is measured."
    if not data.rows:
        return (
            f"**Nothing of this is measured yet**: {', '.join(data.suite.algorithms)} on "
            f"{', '.join(map(task_name, data.envs_wanted))}, {len(data.wanted)} runs."
        )
    return f"Not measured yet: {', '.join(left)}."


def _return_at(
    data: SuiteData, env: str, label: str, seeds: list[str], seconds: float | None
) -> float | None:
    if seconds is None or not seeds:
        return None
    found = [_at(curve, seconds) for curve in data.curves(env, label, seeds)]
    return None if np.isnan(found).any() else float(iqm(np.array(found)))


def _at(curve: dict[str, np.ndarray], seconds: float) -> float:
    """Return the return at the last point that is not later; NaN before the first episode's end."""
    point = int(np.searchsorted(curve["cpu_seconds"], seconds, side="right")) - 1
    return float(curve["return"][point]) if point >= 0 else float("nan")
