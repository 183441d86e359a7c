"""What is said over all tasks: normalised scores, worst tasks, and how probably one run is better."""

from collections.abc import Mapping

import numpy as np

from benchmarks.markdown import either, markdown_table, score, with_interval
from benchmarks.statistics import estimate, improvement, iqm
from benchmarks.suites.data import ACKTR, SuiteData, random_policy, task_name

# Of a normalised score: below it an algorithm has hardly learned the task, and ratios to it say nothing.
_LEAST = 0.05
_WELL_BELOW = 0.9  # of a ratio


def aggregate_table(data: SuiteData) -> str:
    """Return normalised scores over all tasks, and how probably a run of ours is the better one.

    Where tasks are held out, also over them and over the others, with the evaluation without noise on
    the same scale and the worst task of each label.
    """
    rows, groups = [], data.groups()
    several = len(groups) > 1
    for group, envs in groups.items():
        for label in data.labels:
            found = data.normalized(label)
            normalized = {env: found[env] for env in envs if env in found}
            if not normalized:
                continue
            cells = [group] if several else []
            cells += [label, str(len(normalized)), _iqm(normalized)]
            if several:
                evaluated = data.normalized(label, "eval_mean")
                cells += [_iqm({env: evaluated[env] for env in envs if env in evaluated})]
            cells += [_probability(data, label, envs)]
            if several:
                means = {env: float(iqm(scores)) for env, scores in normalized.items()}
                worst = min(means, key=lambda env: means[env])
                cells += [f"{means[worst]:.2f} ({task_name(worst)})"]
            rows.append(cells)
    better = f"probability that {_ours(data)} is better [95 %]"
    header = ["algorithm", "tasks", "normalised IQM [95 %]", better]
    if several:
        header = ["which", *header[:3], "evaluation [95 %]", better, "worst task"]
    return f"{markdown_table(header, rows)}\n\n{wins(data)}".rstrip() if rows else wins(data)


def short_table(data: SuiteData) -> str:
    """Return one row for each group of tasks: the normalised IQM of ours and PPO, and who is better."""
    labels, rows = (data.ours, "ppo"), []
    for group, envs in data.groups().items():
        both = [env for env in envs if all((env, label) in data.rows for label in labels)]
        found = [data.normalized(label) for label in labels]
        if both := [env for env in both if all(env in own for own in found)]:
            cells = [_iqm({env: own[env] for env in both}) for own in found]
            better = _probability(data, "ppo", both).split(" on ")[0]
            rows.append([group, str(len(both)), *cells, better])
    header = ("tasks", "number", "ACKTR", "PPO", "probability that ACKTR is better [95 %]")
    return markdown_table(header, rows) if rows else ""


def wins(data: SuiteData) -> str:
    """Say on how many tasks the IQM of ours is at least that of each other algorithm, and of all."""
    others = [label for label in data.labels if label != data.ours]
    won: dict[str, dict[str, bool]] = {label: {} for label in others}
    for env in data.envs:
        ours = data.score(env, data.ours)
        for label in others:
            theirs = data.score(env, label)
            if ours is not None and theirs is not None:
                won[label][env] = ours >= theirs
    parts = [
        f"that of {label} on {sum(won[label].values())} of {len(won[label])} tasks"
        for label in others
        if won[label]
    ]
    common = [env for env in data.envs if all(env in won[label] for label in others)]
    if len(others) > 1 and common:
        n_won = sum(all(won[label][env] for label in others) for env in common)
        parts.append(f"of all of them on {n_won} of the {len(common)} tasks that all have learned")
    whose = "ACKTR's IQM" if data.ours == ACKTR else f"The IQM of {data.ours}"
    return f"{whose} is at least {', '.join(parts)}." if parts else ""


def by_task_table(data: SuiteData) -> str:
    """Return one row for each task, learned or not: normalised IQM, and what ours has of PPO's.

    Other labels of ACKTR are compared with ours by the difference.
    """
    random, held_out = random_policy(), data.suite.held_out
    normalized = {
        label: {env: float(iqm(scores)) for env, scores in data.normalized(label).items()}
        for label in data.labels
    }
    ours = normalized.get(data.ours, {})
    of_acktr = [label for label in data.labels if label != data.ours and _algo(data, label) == ACKTR]
    rows, ratios = [], {}
    for env in data.envs_wanted:
        best = data.best(env) if env in data.envs else None
        theirs = normalized.get("ppo", {}).get(env)
        if env in ours and theirs is not None and theirs >= _LEAST:
            ratios[env] = ours[env] / theirs
        rows.append([
            task_name(env),
            "held out" if env in held_out else "tuning",
            score(random.get(env)),
            "–" if best is None else f"{score(best[1])} ({best[0]})",
            *(either(normalized[label].get(env), "–", ".2f") for label in data.labels),
            either(ratios.get(env), "–", ".2f"),
            *(
                either(_less(normalized[label].get(env), ours.get(env)), "–", "+.2f")
                for label in of_acktr
            ),
        ])  # fmt: skip
    header = (
        "task", "half", "random policy", "best", *data.labels, f"{data.ours} / ppo",
        *(f"{label} - {data.ours}" for label in of_acktr),
    )  # fmt: skip
    note = (
        "*Best*: the greatest IQM of the last 100 episodes, 1 in the columns of the algorithms; the "
        f"random policy is 0. *{data.ours} / ppo*: of these, where PPO has {_LEAST} at least."
    )
    return "\n\n".join([markdown_table(header, rows), note, *_told(data, ratios)])


def _told(data: SuiteData, ratios: dict[str, float]) -> list[str]:
    """Sum up the ratios to PPO: their median in each group, and where they are well below 1."""
    if not ratios:
        return []
    medians = []
    for group, envs in data.groups().items():
        if own := [ratios[env] for env in envs if env in ratios]:
            medians.append(f"{np.median(own):.2f} ({group}, {len(own)})")
    low = sorted((env for env in ratios if ratios[env] < _WELL_BELOW), key=lambda env: ratios[env])
    named = ", ".join(f"{task_name(env)} {ratios[env]:.2f}" for env in low) or "none"
    return [f"Median of {data.ours} / ppo: {', '.join(medians)}. Below {_WELL_BELOW}: {named}."]


def _iqm(normalized: Mapping[str, np.ndarray]) -> str:
    scores = list(normalized.values())
    return with_interval(estimate(iqm, scores), 2) if scores else "–"


def _probability(data: SuiteData, label: str, envs: list[str]) -> str:
    both = [env for env in envs if {(env, data.ours), (env, label)} <= set(data.rows)]
    if label == data.ours or not both:
        return "–"
    tasks = [data.scores(env, name) for name in (data.ours, label) for env in both]
    return f"{with_interval(estimate(improvement, tasks), 2)} on {len(both)}"


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _algo(data: SuiteData, label: str) -> str:
    return data.suite.algorithms[label].algo or label


def _ours(data: SuiteData) -> str:
    return "ACKTR" if data.ours == ACKTR else data.ours
