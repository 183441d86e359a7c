"""The tables of what was looked at inside runs and on frozen policies, of ``results/tuning/*.csv``."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.faults.measure import existing
from benchmarks.markdown import markdown_table
from benchmarks.tuning.report import STANDING, TUNING, cell, shown


def quiet(results: Path = TUNING / "quiet.csv") -> str:
    """Return what each run of InvertedDoublePendulum-v5 came to, by how advantages are normalised."""
    rows = list(existing(results))
    lines = [
        "| `normalize_advantage` | seed | best | last 100 episodes | standard deviation at the end |",
        "| --- | --- | --- | --- | --- |",
    ]
    for how, seed in dict.fromkeys((row["normalize_advantage"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["normalize_advantage"], row["seed"]) == (how, seed)]
        best = max(float(row["return"]) for row in own)
        last = own[-1]
        lines.append(f"| `{how}` | {seed} | {best:.0f} | {float(last['return']):.0f} | {last['std']} |")
    return "\n".join(lines)


def rare(results: Path = TUNING / "rare_states.csv") -> str:
    """Return the share of InvertedDoublePendulum-v5's episodes that is whole, and when others end."""
    rows = [row for row in existing(results) if row["env"] == STANDING and row["whole_share"]]
    points = list(dict.fromkeys(int(row["to_step"]) for row in rows))[1::2]
    lines = [
        f"| settings | seed | {' | '.join(f'{x:,}' for x in points)} |",
        f"| --- | --- |{' --- |' * len(points)}",
    ]
    for settings, seed in sorted(dict.fromkeys((row["settings"], row["seed"]) for row in rows)):
        own = {int(r["to_step"]): r for r in rows if (r["settings"], r["seed"]) == (settings, seed)}
        cells = [f"{float(own[x]['whole_share']):.2f} ({own[x]['fall_length'] or '–'})" for x in points]
        lines.append(f"| {shown(settings)} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def corrected(results: Path = TUNING / "rare_states.csv") -> str:
    """Return how many corrected natural gradients the preset's steps were before there was a limit."""
    rows = [row for row in existing(results) if row["settings"] == "(no limit)"]
    lines = [
        "| task | seed | median of a tenth of the run, least and most | nine of ten are below, most |",
        "| --- | --- | --- | --- |",
    ]
    for env, seed in dict.fromkeys((row["env"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["env"], row["seed"]) == (env, seed)]
        medians = [float(row["corrected_scale"]) for row in own]
        most = max(float(row["corrected_scale_q90"]) for row in own)
        lines.append(f"| {env} | {seed} | {min(medians):.1f}, {max(medians):.1f} | {most:.1f} |")
    return "\n".join(lines)


def frozen(results: Path = TUNING / "frozen.csv") -> str:
    """Return what a step of a policy that is not trained any more gains, by how it is made."""
    rows = list(existing(results))
    policies = list(dict.fromkeys((r["env"], r["trained_steps"], r["reference_lambda"]) for r in rows))
    titles = [f"{env}, {int(steps):,} steps, λ {ref}" for env, steps, ref in policies]
    lines = [f"| step | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for step in dict.fromkeys(row["direction"] for row in rows):
        cells = []
        for env, steps, ref in policies:
            own = [
                f"{float(r['gain_e3']):.1f}"
                + (f" ± {float(r['standard_error_e3']):.1f}" if r["standard_error_e3"] else "")
                for r in rows
                if (r["env"], r["trained_steps"], r["reference_lambda"]) == (env, steps, ref)
                and r["direction"] == step
            ]
            cells.append(own[0] if own else "–")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def frozen_critic(results: Path = TUNING / "frozen_critic.csv") -> str:
    """Return how well a run's critic predicts returns, and networks that had far more samples."""
    rows = [
        [
            r["env"],
            r["gae_lambda"],
            r["critic"],
            *(f"{float(r[x]):.2f}" for x in ("explained_variance", "residual_std")),
        ]
        for r in existing(results)
    ]
    return markdown_table(("task", "λ", "critic", "explained variance", "what it leaves"), rows)


def td_errors(results: Path = TUNING / "td_errors.csv") -> str:
    """Return what networks explain of TD errors and advantages, on samples that they have not seen."""
    rows = [
        [r["env"], r["target"], r["explained_by"], f"{int(r['samples']):,}", r["units"],
         f"{float(r['test_r2']):.2f}"]
        for r in existing(results)
    ]  # fmt: skip
    return markdown_table(("task", "of", "explained by", "samples", "units", "R²"), rows)


def tilt(
    results: Path = TUNING / "tilt.csv", early_on: int = 64000, later: int = 152000, limit: float = 0.5
) -> str:
    """Return what HalfCheetah-v5 comes to with seeds that run upright early on and with those that lean.

    :param early_on: end of the 8,000 steps whose mean tilt counts
    :param later: end of those whose return is told
    :param limit: from upright, rad
    """
    rows = list(existing(results))
    lines = [
        f"| `log_std_init` | below {limit} rad at {early_on:,}: return at {later:,} | above |",
        "| --- | --- | --- |",
    ]
    for start in dict.fromkeys(row["log_std_init"] for row in rows):
        own = [row for row in rows if row["log_std_init"] == start]
        leaning = {
            row["seed"] for row in own if int(row["to_step"]) == early_on and float(row["tilt"]) >= limit
        }
        ends = [row for row in own if int(row["to_step"]) == later]
        cells = [
            cell([row for row in ends if (row["seed"] in leaning) is leans], "return")
            for leans in (False, True)
        ]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kl_parts(results: Path = TUNING / "kl_parts.csv") -> str:
    """Return what the layers' parts of a step come to alone and together, medians over updates."""
    parts = ("kl_first_layer", "kl_second_layer", "kl_last_layer", "kl_log_std")
    lines = [
        "| task | K-FAC's promise / KL | sum over parts / KL | `log_std` / KL | next rollout / KL |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = list(existing(results))
    for env in dict.fromkeys(row["env"] for row in rows):
        own = [{k: float(v) for k, v in row.items() if k != "env"} for row in rows if row["env"] == env]
        ratios = (
            median(row["kl_scale"] for row in own),
            median(sum(row[part] for part in parts) / row["kl"] for row in own),
            median(row["kl_log_std"] / row["kl"] for row in own),
            median(row["kl_next_rollout"] / row["kl"] for row in own),
        )
        lines.append(f"| {env} | {' | '.join(f'{x:.2g}' for x in ratios)} |")
    return "\n".join(lines)


def gait(results: Path = TUNING / "gait.csv") -> str:
    """Return how HalfCheetah-v5 runs while it learns, each column 50,000 steps of three seeds."""
    rows = list(existing(results))
    starts = list(dict.fromkeys(int(row["from_step"]) for row in rows))
    columns = {
        "reward for running": "reward_forward",
        "share of steps on its back": "on_back",
        "share of actions beyond their bounds": "clipped_actions",
    }
    lines = [f"| mean over 50,000 steps from | seed | {' | '.join(f'{start:,}' for start in starts)} |"]
    lines.append(f"| --- | --- |{' --- |' * len(starts)}")
    for title, column in columns.items():
        for seed in dict.fromkeys(row["seed"] for row in rows):
            values = [row[column] for row in rows if row["seed"] == seed]
            lines.append(f"| {title} | {seed} | {' | '.join(values)} |")
    return "\n".join(lines)


# As in :mod:`benchmarks.tuning.report`.
TABLES: dict[str, Callable[[], str]] = {
    "quiet": quiet,
    "rare": rare,
    "corrected": corrected,
    "frozen": frozen,
    "frozen critic": frozen_critic,
    "td errors": td_errors,
    "tilt": tilt,
    "kl parts": kl_parts,
    "gait": gait,
}
