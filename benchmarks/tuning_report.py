"""The tables of settings that were tried for the MuJoCo preset, made of ``results/tuning/*.csv``."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

from benchmarks.faults import existing

TUNING = Path(__file__).resolve().parent / "results" / "tuning"
(
    RESULTS, LEVERS, MILLION, HORIZON, CONSTANT, QUIET, EARLY, EARLY_150K, KL_PARTS, GAIT, STEP_LENGTH,
    FROZEN, RARE, NO_LIMIT, NOISE, TILT, SAME_NOISE, SAME_HORIZON, SAME_FADE, FADE,
    CRITIC_ROLLOUTS, SECOND_QUARTER, FROZEN_CRITIC, GAE_LAMBDA,
) = (
    TUNING / f"{name}.csv"
    for name in (
        "short", "levers", "million", "horizon", "constant_gamma", "quiet", "early", "early_150k",
        "kl_parts", "gait", "step_length", "frozen", "rare_states", "no_limit", "noise", "tilt",
        "same_noise", "same_horizon", "same_fade", "fade", "critic_rollouts",
        "second_quarter", "frozen_critic", "gae_lambda",
    )
)  # fmt: skip
SUITE = TUNING.parent / "mujoco" / "runs.csv"
ENVIRONMENTS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5")
STANDING = "InvertedDoublePendulum-v5"


def table(results: Path = RESULTS, column: str = "return_300k") -> str:
    """Return one row for each setting, and what conjugate gradients did.

    :param results: csv with one row for each run
    :param column: of the csv
    """
    rows = [row for row in existing(results) if row[column]]
    return "\n".join([*_lines(rows, column), "", _conjugate_gradients(rows, column)])


def levers(results: Path = LEVERS, column: str = "return_300k") -> str:
    """Return one row for each lever that was tried on the preset with four critic updates."""
    return "\n".join(_lines([row for row in existing(results) if row[column]], column))


def critic_rollouts(results: Path = CRITIC_ROLLOUTS) -> str:
    """Return the same for critics that learn from several rollouts."""
    return "\n".join(_lines(list(existing(results)), "return_300k", ENVIRONMENTS[:2]))


def million(results: Path = MILLION) -> str:
    """Return one row for each task, at the end of whole runs: with conjugate gradients and without."""
    rows = list(existing(results))
    choices = list(dict.fromkeys(row["settings"] for row in rows))
    lines = [f"| task | {' | '.join(map(shown, choices))} |", f"| --- |{' --- |' * len(choices)}"]
    for env in dict.fromkeys(row["env"] for row in rows):
        of_task = [row for row in rows if row["env"] == env]
        cells = [_cell([r for r in of_task if r["settings"] == x], "return_1m") for x in choices]
        lines.append(f"| {env} | {' | '.join(cells)} |")
    return "\n".join(lines)


def horizon(results: Path = HORIZON) -> str:
    """Return one row for each discount factor: whole runs, at three points of them."""
    rows = list(existing(results))
    tables = []
    for title, column in (("a million", "1m"), ("500,000", "500k"), ("300,000", "300k")):
        tables += [f"After {title} steps:", "", *_lines(rows, f"return_{column}"), ""]
    return "\n".join(tables[:-1])


def fade(results: Path = FADE) -> str:
    """Return what whole runs end with, what their policies have without noise, and paired gains."""
    rows = list(existing(results))
    tables = []
    for title, column in (("Last 100 episodes", "return_1m"), ("Evaluation without noise", "eval_mean")):
        tables += [f"{title}:", "", *_lines(rows, column), ""]
    plain, *changed = dict.fromkeys(row["settings"] for row in rows)
    tables += [
        f"Last 100 episodes, less what the same seed has with `{plain}`, ± the mean's standard error:",
        "",
        f"| settings | {' | '.join(ENVIRONMENTS)} |",
        f"| --- |{' --- |' * len(ENVIRONMENTS)}",
    ]
    for settings in changed:
        cells = [
            _gain([row for row in rows if row["env"] == env], settings, plain) for env in ENVIRONMENTS
        ]
        tables.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return "\n".join(tables)


def _gain(rows: list[dict[str, str]], settings: str, plain: str) -> str:
    """Return by how much settings are ahead of others on the same seeds, and the standard error."""
    ends, others = (
        {row["seed"]: float(row["return_1m"]) for row in rows if row["settings"] == which}
        for which in (settings, plain)
    )
    gains = [ends[seed] - others[seed] for seed in sorted(ends.keys() & others.keys())]
    if len(gains) < 2:
        return f"{gains[0]:+.0f} (1 seed)" if gains else "–"
    return f"{mean(gains):+.0f} ± {stdev(gains) / len(gains) ** 0.5:.0f} ({len(gains)} seeds)"


def all_tasks(
    constant: Path = CONSTANT,
    no_limit: Path = NO_LIMIT,
    same_noise: Path = SAME_NOISE,
    same_horizon: Path = SAME_HORIZON,
    same_fade: Path = SAME_FADE,
    suite: Path = SUITE,
) -> str:
    """Return what each task of the suite ended with as the preset became what it is."""
    stages = [
        *(list(existing(path)) for path in (constant, no_limit, same_noise, same_horizon, same_fade)),
        [row for row in existing(suite) if row["label"] == "acktr"],
    ]
    lines = [
        "| task | `gamma=0.99` | the horizon rises | and the limit | and less noise | "
        "and long at once where nothing ends early | and noise that fades (the preset) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for env in dict.fromkeys(row["env"] for row in stages[0]):
        cells = [_cell([row for row in rows if row["env"] == env], "last_100_return") for rows in stages]
        lines.append(f"| {env} | {' | '.join(cells)} |")
    return "\n".join(lines)


def quiet(results: Path = QUIET) -> str:
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


def step_length(results: Path = STEP_LENGTH) -> str:
    """Return whole runs of settings that limit the step of a rollout that says little."""
    return "\n".join(_lines(list(existing(results)), "return_1m", (*ENVIRONMENTS, STANDING)))


def rare(results: Path = RARE) -> str:
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


def corrected(results: Path = RARE) -> str:
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


def frozen(results: Path = FROZEN) -> str:
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


def gae_lambda(results: Path = GAE_LAMBDA) -> str:
    """Return the same for lambda of GAE, with a task that no suite has."""
    rows, tables = list(existing(results)), []
    for title, column in (("300,000", "300k"), ("500,000", "500k"), ("a million", "1m")):
        known = [row for row in rows if row[f"return_{column}"]]
        tables += [
            f"After {title} steps:",
            "",
            *_lines(known, f"return_{column}", (*ENVIRONMENTS, "Pusher-v5")),
            "",
        ]
    return "\n".join(tables[:-1])


def frozen_critic(results: Path = FROZEN_CRITIC) -> str:
    """Return how well a run's critic predicts returns, and networks that had far more samples."""
    lines = ["| task | λ | critic | explained variance | what it leaves |", "| --- |" + " --- |" * 4]
    for r in existing(results):
        lines.append(
            f"| {r['env']} | {r['gae_lambda']} | {r['critic']} | {float(r['explained_variance']):.2f} | "
            f"{float(r['residual_std']):.2f} |"
        )
    return "\n".join(lines)


def second_quarter(results: Path = SECOND_QUARTER) -> str:
    """Return what half of the steps end with, by the radius of the second quarter."""
    return "\n".join(_lines(list(existing(results)), "return_500k", ENVIRONMENTS[:2]))


def early_150k() -> str:
    """Return the same for the first 150,000 steps, of more seeds."""
    return early(EARLY_150K, "150k")


def noise() -> str:
    """Return the same for the noise that a policy begins with."""
    return early(NOISE, "150k")


def tilt(results: Path = TILT, early_on: int = 64000, later: int = 152000, limit: float = 0.5) -> str:
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
            _cell([row for row in ends if (row["seed"] in leaning) is leans], "return")
            for leans in (False, True)
        ]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def early(results: Path = EARLY, at: str = "100k") -> str:
    """Return the first steps of HalfCheetah-v5, the best settings first.

    :param at: until when, as the columns of the csv say it
    """
    rows = list(existing(results))
    runs = {
        settings: [row for row in rows if row["settings"] == settings]
        for settings in dict.fromkeys(row["settings"] for row in rows)
    }

    def of(settings: str, column: str) -> float:
        return mean(float(row[column]) for row in runs[settings])

    steps = at.replace("k", ",000")
    lines = [f"| settings | return at {steps} steps | standard deviation there |", "| --- | --- | --- |"]
    lines.extend(
        f"| {shown(x)} | {_cell(runs[x], f'return_{at}')} | {of(x, f'std_{at}'):.2f} |"
        for x in sorted(runs, key=lambda x: -of(x, f"return_{at}"))
    )
    return "\n".join(lines)


def kl_parts(results: Path = KL_PARTS) -> str:
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


def gait(results: Path = GAIT) -> str:
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


def _lines(rows: list[dict[str, str]], column: str, envs: tuple[str, ...] = ENVIRONMENTS) -> list[str]:
    """Return a table of settings: the mean over seeds, and each seed."""
    lines = [f"| settings | {' | '.join(envs)} |", f"| --- |{' --- |' * len(envs)}"]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        cells = []
        for env in envs:
            own = [row for row in rows if (row["settings"], row["env"]) == (settings, env)]
            cells.append(_cell(own, column))
        lines.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return lines


def shown(settings: str) -> str:
    """Return settings as code, or in parentheses what is no option."""
    return settings if settings.startswith("(") else f"`{settings}`"


def _cell(rows: list[dict[str, str]], column: str) -> str:
    """Return the mean over seeds, and each seed."""
    scores = [float(row[column]) for row in sorted(rows, key=lambda row: int(row["seed"]))]
    digits = 1 if any(abs(score) < 10 for score in scores) else 0
    of_seeds = ", ".join(f"{score:.{digits}f}" for score in scores)
    return f"**{mean(scores):.{digits}f}** ({of_seeds})" if scores else "–"


def _conjugate_gradients(rows: list[dict[str, str]], column: str) -> str:
    """Return what all runs with conjugate gradients did against all without."""
    with_them = [row for row in rows if "cg_iterations" in row["settings"]]
    without = [row for row in rows if "cg_iterations" not in row["settings"]]
    means = []
    for env in ENVIRONMENTS:
        a, b = ([float(r[column]) for r in kind if r["env"] == env] for kind in (with_them, without))
        means.append(f"{mean(a):.0f} against {mean(b):.0f} on {env} ({len(a)} and {len(b)} runs)")
    return (
        f"All runs with conjugate gradients against all without: {'; '.join(means)}. The multiplier "
        "that the measured KL gives the bound (`train/kl_scale`) lay in "
        f"{_middle(with_them)} with them and in {_middle(without)} without, in nine of ten runs that "
        "make one step of the actor a rollout."
    )


def _middle(rows: list[dict[str, str]]) -> str:
    """Return the interval that holds nine of ten multipliers."""
    of_one_step = [row for row in rows if "n_actor_updates" not in row["settings"]]
    scales = sorted(float(row["kl_scale_300k"]) for row in of_one_step)
    outside = len(scales) // 20
    return f"{scales[outside]:.2f} – {scales[-1 - outside]:.2f}"


# What stands between the markers of this name in the page of ablations.
TABLES: dict[str, Callable[[], str]] = {
    "levers": levers,
    "critic rollouts": critic_rollouts,
    "million": million,
    "horizon": horizon,
    "fade": fade,
    "all tasks": all_tasks,
    "quiet": quiet,
    "early": early,
    "early 150k": early_150k,
    "noise": noise,
    "tilt": tilt,
    "step length": step_length,
    "rare": rare,
    "corrected": corrected,
    "frozen": frozen,
    "gae lambda": gae_lambda,
    "frozen critic": frozen_critic,
    "second quarter": second_quarter,
    "kl parts": kl_parts,
    "gait": gait,
}
