"""Seconds until PPO's return where runs shared their cores: steps, times those of a step in turns."""

from __future__ import annotations

import numpy as np

from benchmarks.faults.measure import existing
from benchmarks.markdown import either, markdown_table, score
from benchmarks.suites.data import SuiteData, task_name


def seconds_per_step(data: SuiteData) -> dict[tuple[str, str], float]:
    """Return the seconds of a step by task and label: the median of the rounds of ``clock.csv``."""
    rounds: dict[tuple[str, str], list[float]] = {}
    for row in existing(data.path / "clock.csv"):
        key = (row["env"], row["label"])
        rounds.setdefault(key, []).append(float(row["cpu_seconds"]) / int(row["steps"]))
    return {key: float(np.median(values)) for key, values in rounds.items()}


def table(data: SuiteData) -> str:
    """Return steps and seconds until ours and PPO reach PPO's final IQM; nothing without a clock."""
    per_step, rows, ratios = seconds_per_step(data), [], {}
    for env in data.envs:
        target, labels = data.score(env, "ppo"), (data.ours, "ppo")
        if target is None or not all((env, label) in per_step.keys() & data.rows for label in labels):
            continue
        steps = [_steps_to(data, env, label, target) for label in labels]
        if steps[1] is None:
            # A point is an IQM over seeds; the last one may stay below that of all their last episodes.
            steps[1] = int(data.curves(env, "ppo")[0]["steps"][-1])
        speeds = [per_step[env, label] for label in labels]
        ours, ppo = (n and n * s for n, s in zip(steps, speeds, strict=True))
        if ours and ppo:
            ratios[env] = ppo / ours
        rows.append([
            task_name(env), score(target), *(either(n, "not reached", ",") for n in steps),
            *(f"{1 / s:,.0f}" for s in speeds), either(ratios.get(env), "–", ".1f"),
        ])  # fmt: skip
    if not rows:
        return ""
    header = (
        "task", "PPO's final IQM", f"{data.ours}, steps until there", "PPO, steps until there",
        f"{data.ours}, steps/s", "PPO, steps/s", f"PPO's seconds / {data.ours}'s",
    )  # fmt: skip
    told = [
        f"{group} ({len(own)}) {np.median(own):.1f}"
        for group, envs in data.groups().items()
        if (own := [ratios[env] for env in envs if env in ratios])
    ]
    return (
        f"{markdown_table(header, rows)}\n\nWhere the curve of PPO itself stays below its IQM, its "
        f"whole training counts. Median of the tasks where ours reaches it: {'; '.join(told)}."
    )


def _steps_to(data: SuiteData, env: str, label: str, target: float) -> int | None:
    point = data.first_reached(env, label, target)
    return None if point is None else int(data.curves(env, label)[0]["steps"][point])
