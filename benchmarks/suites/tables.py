"""The text of a suite in docs/results.md, and its tables in Markdown."""

from collections.abc import Sequence

import numpy as np

from benchmarks.markdown import difference, either, markdown_table, score, with_interval
from benchmarks.statistics import estimate, iqm
from benchmarks.suites import clock
from benchmarks.suites.data import (
    ACKTR,
    PEERS,
    PPO_DEFAULTS,
    SuiteData,
    collapsed,
    random_policy,
    task_name,
)
from benchmarks.suites.figures import links
from benchmarks.suites.normalised import aggregate_table, by_task_table
from benchmarks.suites.provenance import provenance

MILESTONES = (300_000, 500_000)
PRESET = "preset"  # the label that a suite of ablations compares all others with


def text(data: SuiteData) -> str:
    """Return the section of a suite; nothing where no run of it is published.

    :param data: its results
    """
    if not data.rows:
        return ""
    suite = data.suite
    parts = [f"## {suite.title}", suite.about.strip(), provenance(data)]
    if suite.speeds:
        return "\n\n".join([*parts, speed_table(data)])
    parts += links(data)
    compared = data.ours in data.labels and any(data.best(env) for env in data.envs)
    by_task = compared and suite.reference == "all"
    if len(data.envs) > 1 and not by_task and not any(data.target(env) for env in data.envs):
        parts += ["**IQM by task**", overview_table(data)]
    if PRESET in data.labels and len(data.labels) > 1:
        parts += ["**Less what the preset has with the same seeds**", difference_table(data)]
    every_seed = [f"<details>\n<summary>Every seed</summary>\n\n{scores_table(data)}\n\n</details>"]
    if by_task:
        parts += ["**Over all tasks**", aggregate_table(data)]
        parts += ["**By task**", by_task_table(data), *every_seed]
    elif compared:
        parts += [*every_seed, "**Over all tasks**", aggregate_table(data)]
        parts += ["**Sample efficiency**", efficiency_table(data)]
    else:
        parts += every_seed
    if any(set(pair) <= set(data.labels) for pair in suite.batches):
        parts += ["**The larger batch**", batch_table(data)]
    if suite.compare_seconds and {data.ours, "ppo"} <= set(data.labels):
        parts += ["**Time to PPO's final return**", time_table(data)]
    elif timed := clock.table(data):
        parts += ["**Time to PPO's final return**", timed]
    return "\n\n".join(parts)


def summary_table(data: SuiteData) -> str:
    """Return one row for each task that all have learned: the ends, and how soon ACKTR is there."""
    names = {ACKTR: "ACKTR", "ppo": "PPO", "trpo": "TRPO", PPO_DEFAULTS: "PPO, SB3's defaults"}
    labels = [label for label in names if label in (ACKTR, *PEERS, *data.labels)]
    rows = []
    for env in data.envs:
        target, ours = data.target(env), data.score(env, ACKTR)
        if target is None or ours is None:
            continue
        rows.append([
            env,
            *(score(data.score(env, label)) for label in labels),
            either(_steps_to(data, env, target[1]), "–", ","),
            either(_seconds_to_ppo(data, env)[-1], "–", ".1f"),
        ])  # fmt: skip
    header = (
        "task", *(names[label] for label in labels), "ACKTR has the best peer's return at step",
        "PPO's seconds to its return / ACKTR's",
    )  # fmt: skip
    return markdown_table(header, rows)


def scores_table(data: SuiteData) -> str:
    """Return one row for each task and label, with the score of every seed."""
    rows = []
    for (env, label), group in data.rows.items():
        scores, timed = data.scores(env, label), data.timed(env, label)
        steps, seconds = (data.scores(env, label, c, timed) for c in ("steps", "cpu_seconds"))
        flags = [
            f"seed {row['seed']} {'diverged' if row['diverged'] == 'yes' else 'collapsed'}"
            for row in group
            if row["diverged"] == "yes" or collapsed(row)
        ]
        rows.append([
            task_name(env),
            label,
            f"{len(group)}/{data.n_wanted(env, label)}",
            ", ".join(score(x) for x in scores),
            with_interval(estimate(iqm, [scores])),
            score(data.score(env, label, "eval_mean")),
            f"{np.median(seconds):.0f}" if timed else "–",
            f"{np.median(steps / seconds):,.0f}" if timed else "–",
            ", ".join(flags) or "–",
        ])  # fmt: skip
    header = (
        "task", "algorithm", "seeds", "last 100 episodes, by seed", "IQM [95 %]", "evaluation, IQM",
        "seconds", "steps/s", "collapsed or diverged",
    )  # fmt: skip
    return markdown_table(header, rows)


def overview_table(data: SuiteData) -> str:
    """Return one row for each label and a column for each task: the IQM over seeds."""
    rows = [[label, *(score(data.score(env, label)) for env in data.envs)] for label in data.labels]
    return markdown_table(("", *data.envs), rows)


def difference_table(data: SuiteData) -> str:
    """Return one row for each change of the preset: what it gains on the seeds that both have learned.

    After 300,000 steps and at the end, each the mean difference and its standard error.
    """
    changes = [label for label in data.labels if label != PRESET]
    header, columns = [""], [changes]
    for env in data.envs:
        for column, name in (("return_300k", "300 k"), ("last_100_return", "end")):
            gains = []
            for label in changes:
                seeds = data.common_seeds(env, PRESET, label, column=column)
                before, after = (data.scores(env, x, column, seeds) for x in (PRESET, label))
                gains.append(difference(after - before))
            if set(gains) != {"–"}:
                header.append(f"{env}, {name}")
                columns.append(gains)
    note = "*In parentheses*: seeds. One or two say little: two runs of one setting differ as well."
    return f"{markdown_table(header, list(zip(*columns, strict=True)))}\n\n{note}\n\n{outside(data)}"


def outside(data: SuiteData) -> str:
    """Say which changes end outside of the preset's seeds, with each of their own on every task."""

    def beyond(label: str, sign: int) -> bool:
        pairs = [[sign * data.scores(env, name) for name in (label, PRESET)] for env in data.envs]
        return all(len(own) and len(base) and own.min() > base.max() for own, base in pairs)

    changes = [label for label in data.labels if label != PRESET]
    above, below = (", ".join(x for x in changes if beyond(x, sign)) or "none" for sign in (1, -1))
    return (
        f"Of {len(changes)} changes, above the preset's best seed on every task: {above}. "
        f"Below its worst on every task: {below}."
    )


def efficiency_table(data: SuiteData) -> str:
    """Return the steps at which ACKTR's IQM reaches the final IQM of the best of the peers."""
    rows, reached, tuned = [], [], []
    for env in data.envs:
        target, of_tuned = data.target(env), data.target(env, tuned=True)
        if target is None or of_tuned is None or (env, ACKTR) not in data.rows:
            continue
        steps = _steps_to(data, env, target[1])
        reached.append(steps)
        tuned.append(_steps_to(data, env, of_tuned[1]))
        rows.append([
            env,
            f"{score(target[1])} ({target[0]})",
            score(data.score(env, ACKTR, "return_300k")),
            score(data.score(env, ACKTR, "return_500k")),
            score(data.score(env, ACKTR)),
            either(steps, "not reached", ","),
        ])  # fmt: skip
    header = ("task", "best peer", "ACKTR at 300 k", "500 k", "end", "reached at step")
    told = f"Reached {_by_milestones(reached)} of {len(reached)} tasks."
    if PPO_DEFAULTS in data.labels:
        told += f" Without {PPO_DEFAULTS}: {_by_milestones(tuned)}."
    return f"{markdown_table(header, rows)}\n\n{told}"


def _by_milestones(reached: Sequence[int | None]) -> str:
    return " and ".join(
        f"by {limit:,} steps on {sum(s is not None and s <= limit for s in reached)}"
        for limit in MILESTONES
    )


def batch_table(data: SuiteData) -> str:
    """Return what a larger batch keeps of the gain over the random policy: per step, and per update.

    Per step both batches have all of the steps. Per update the smaller one has as many updates as the
    larger one makes in all of its steps: the ratio is what the larger batch is worth to an update. The
    difference says it in returns, as curves over updates show it: a ratio is great where the smaller
    batch has hardly begun to learn.
    """
    random, rows = random_policy(), []
    for env in data.envs:
        for small, large in data.suite.batches:
            if not {(env, small), (env, large)} <= set(data.rows) or env not in random:
                continue
            ends = [data.scores(env, label) - random[env] for label in (small, large)]
            share = 1 / data.suite.batch_ratio(small, large)
            early = [
                float(curve["return"][np.searchsorted(curve["steps"], share * curve["steps"][-1])])
                for curve in data.curves(env, small)
            ]
            as_many_updates = np.array(early) - random[env]
            rows.append([
                env,
                large,
                with_interval(estimate(_iqm_ratio, [ends[1], ends[0]]), 2),
                with_interval(estimate(_iqm_ratio, [ends[1], as_many_updates]), 2),
                with_interval(estimate(_iqm_difference, [ends[1], as_many_updates])),
            ])  # fmt: skip
    header = (
        "task", "larger batch", "gain / the smaller batch's, same steps [95 %]",
        "gain / the smaller batch's, same updates [95 %]",
        "gain - the smaller batch's, same updates [95 %]",
    )  # fmt: skip
    note = "*Gain*: the IQM of the last 100 episodes less what the random policy has."
    return f"{markdown_table(header, rows)}\n\n{note}"


def speed_table(data: SuiteData) -> str:
    """Return the steps per second of both labels of a pair, and their ratio on the same seeds."""
    rows = []
    for env in data.envs:
        for pair in data.suite.speeds:
            seeds = data.in_turns(env, *pair)
            if not seeds:
                continue
            steps, seconds = (
                np.array([data.scores(env, label, column, seeds) for label in pair])
                for column in ("steps", "cpu_seconds")
            )
            speeds = steps / seconds
            ratios = speeds[0] / speeds[1]
            rows.append([
                env,
                *pair,
                *(f"{speed:,.0f}" for speed in np.median(speeds, axis=1)),
                f"{np.median(ratios):.2f}",
                f"{ratios.min():.2f} – {ratios.max():.2f}",
                str(len(seeds)),
            ])  # fmt: skip
    header = (
        "task", "A", "B", "A, steps/s", "B, steps/s", "A / B, median", "least – greatest",
        "seeds in turns",
    )  # fmt: skip
    return markdown_table(header, rows)


def time_table(data: SuiteData) -> str:
    """Return the seconds in which ours and PPO themselves reach PPO's final IQM."""
    rows, ratios = [], {}
    ours = "ACKTR" if data.ours == ACKTR else data.ours
    for env in data.envs:
        target = data.score(env, "ppo")
        if target is None or (env, data.ours) not in data.rows:
            continue
        *both, ratio = _seconds_to_ppo(data, env)
        if ratio is not None:
            ratios[env] = ratio
        turns = data.in_turns(env, data.ours, "ppo")
        processor = data.processor_of(env, data.ours, "ppo")
        whole = data.scores(env, "ppo", "cpu_seconds", turns or data.timed(env, "ppo", processor))
        never = [
            "not reached" if turns or data.timed(env, label, processor) else "–"
            for label in (data.ours, "ppo")
        ]
        rows.append([
            task_name(env),
            score(target),
            *(either(seconds, no, ".0f") for seconds, no in zip(both, never, strict=True)),
            f"{iqm(whole):.0f}" if len(whole) else "–",
            either(ratio, "–", ".1f"),
            f"{', '.join(turns)}, in turns" if turns else f"all on {processor}",
        ])  # fmt: skip
    header = (
        "task", "PPO's final IQM", f"{ours}, seconds until there", "PPO, seconds until there",
        "PPO, all of its steps", f"PPO / {ours} until there", "seeds timed",
    )  # fmt: skip
    if not ratios:
        return markdown_table(header, rows)
    told = f"Median of the {len(ratios)} tasks where it is reached: {np.median([*ratios.values()]):.1f}"
    for group, envs in list(data.groups().items())[1:]:
        if own := [ratios[env] for env in envs if env in ratios]:
            told += f"; {group} ({len(own)}): {np.median(own):.1f}"
    return f"{markdown_table(header, rows)}\n\n{told}."


def _iqm_ratio(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    above, below = tasks
    return iqm(above, axis=axis) / iqm(below, axis=axis)


def _iqm_difference(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    above, below = tasks
    return iqm(above, axis=axis) - iqm(below, axis=axis)


def _steps_to(data: SuiteData, env: str, target: float) -> int | None:
    point = data.first_reached(env, data.ours, target)
    return None if point is None else int(data.curves(env, data.ours)[0]["steps"][point])


def _seconds_to_ppo(data: SuiteData, env: str) -> tuple[float | None, float | None, float | None]:
    """Return the seconds in which ACKTR and PPO reach PPO's final IQM, and their ratio.

    They are those of the seeds that both learned in one session, one after the other on the same
    machine, or where there are no such of all that have run on the same kind of processor.
    """
    target, turns = data.score(env, "ppo"), data.in_turns(env, data.ours, "ppo")
    processor = data.processor_of(env, data.ours, "ppo")
    seconds: list[float | None] = []
    for label in (data.ours, "ppo"):
        point = None if target is None else data.first_reached(env, label, target)
        curves = (
            [] if point is None else data.curves(env, label, turns or data.timed(env, label, processor))
        )
        of_seeds = np.array([curve["cpu_seconds"][point] for curve in curves])
        seconds.append(float(iqm(of_seeds)) if curves else None)
    ours, theirs = seconds
    return ours, theirs, None if ours is None or theirs is None else theirs / ours
