"""The tables of settings that were tried for the MuJoCo preset, made of ``results/tuning/*.csv``."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from benchmarks.faults.measure import existing
from benchmarks.markdown import markdown_table

TUNING = Path(__file__).resolve().parents[1] / "results" / "tuning"
SUITE = TUNING.parent / "mujoco" / "runs.csv"
ENVIRONMENTS = ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5")
MIXED = ("finger-spin", "cartpole-swingup", "LunarLanderContinuous-v3", "walker-walk", *ENVIRONMENTS)
STANDING = "InvertedDoublePendulum-v5"
# The rows of the suite on each preset that came before, by what was new in it.
STAGES = {
    "`gamma=0.99`": "constant_gamma",
    "the horizon rises": "no_limit",
    "and the limit": "same_noise",
    "and less noise": "same_horizon",
    "and long at once where nothing ends early": "same_fade",
    "and noise that fades": "same_lambda",
    "and a smaller λ where nothing ends early, on another processor": "other_processor",
}
NOW = "the same on the processor of all other columns (the preset)"


def table(results: Path = TUNING / "short.csv", column: str = "return_300k") -> str:
    """Return one row for each setting, and what conjugate gradients did.

    :param results: csv with one row for each run
    :param column: of the csv
    """
    rows = [row for row in existing(results) if row[column]]
    return "\n".join([*_lines(rows, column), "", _conjugate_gradients(rows, column)])


def levers(results: Path = TUNING / "levers.csv", column: str = "return_300k") -> str:
    """Return one row for each lever that was tried on the preset with four critic updates."""
    return "\n".join(_lines([row for row in existing(results) if row[column]], column))


def critic_rollouts(results: Path = TUNING / "critic_rollouts.csv") -> str:
    """Return the same for critics that learn from several rollouts."""
    return "\n".join(_lines(list(existing(results)), "return_300k", ENVIRONMENTS[:2]))


def million(results: Path = TUNING / "million.csv") -> str:
    """Return one row for each task, at the end of whole runs: with conjugate gradients and without."""
    rows = list(existing(results))
    choices = list(dict.fromkeys(row["settings"] for row in rows))
    lines = [f"| task | {' | '.join(map(shown, choices))} |", f"| --- |{' --- |' * len(choices)}"]
    for env in dict.fromkeys(row["env"] for row in rows):
        of_task = [row for row in rows if row["env"] == env]
        cells = [cell([r for r in of_task if r["settings"] == x], "return_1m") for x in choices]
        lines.append(f"| {env} | {' | '.join(cells)} |")
    return "\n".join(lines)


def horizon(results: Path = TUNING / "horizon.csv") -> str:
    """Return one row for each discount factor: whole runs, at three points of them."""
    rows = list(existing(results))
    tables = []
    for title, column in (("a million", "1m"), ("500,000", "500k"), ("300,000", "300k")):
        tables += [f"After {title} steps:", "", *_lines(rows, f"return_{column}"), ""]
    return "\n".join(tables[:-1])


def fade(results: Path = TUNING / "fade.csv") -> str:
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


def all_tasks(stages: dict[str, str] = STAGES, suite: Path = SUITE) -> str:
    """Return what each task of the suite ended with as the preset became what it is.

    :param stages: csv of each preset that came before, by the title of its column
    :param suite: the preset's, in the last column
    """
    columns = [list(existing(TUNING / f"{name}.csv")) for name in stages.values()]
    columns.append([row for row in existing(suite) if row["label"] == "acktr"])
    titles = [*stages, NOW]
    lines = [f"| task | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for env in dict.fromkeys(row["env"] for row in columns[0]):
        cells = [cell([row for row in rows if row["env"] == env], "last_100_return") for rows in columns]
        lines.append(f"| {env} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_length(results: Path = TUNING / "step_length.csv") -> str:
    """Return whole runs of settings that limit the step of a rollout that says little."""
    return "\n".join(_lines(list(existing(results)), "return_1m", (*ENVIRONMENTS, STANDING)))


def gae_lambda(results: Path = TUNING / "gae_lambda.csv") -> str:
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


def second_quarter(results: Path = TUNING / "second_quarter.csv") -> str:
    """Return what half of the steps end with, by the radius of the second quarter."""
    return "\n".join(_lines(list(existing(results)), "return_500k", ENVIRONMENTS[:2]))


def constructor(results: Path = TUNING / "constructor.csv") -> str:
    """Return what the constructor's defaults learn, those of before and those of now."""
    rows = list(existing(results))
    return "\n".join(_lines(rows, "last_100_return", tuple(dict.fromkeys(row["env"] for row in rows))))


def hill(results: Path = TUNING / "hill.csv") -> str:
    """Return what MountainCarContinuous-v0 ends with, by the noise to begin with."""
    return "\n".join(_lines(list(existing(results)), "last_100_return", ("MountainCarContinuous-v0",)))


def zeros(results: Path = TUNING / "zeros.csv") -> str:
    """Return what MinAtar's Breakout ends with, by what is done with its zeros and ones."""
    return "\n".join(_lines(list(existing(results)), "last_100_return", ("minatar-breakout",)))


def search(results: Path = TUNING / "search.csv") -> str:
    """Return what 200,000 steps end with, training and evaluation, by the noise."""
    rows = list(existing(results))
    training, quiet = (_lines(rows, column, MIXED) for column in ("last_100_return", "eval_mean"))
    return "\n".join(["Last 100 episodes:", "", *training, "", "Without noise:", "", *quiet])


def critic_curvature() -> str:
    """Return the same by how often a critic takes its curvature, and how many updates it makes."""
    return search(TUNING / "critic_curvature.csv")


def ranges(results: Path = TUNING / "range.csv") -> str:
    """Return what Pendulum-v1 has come to at a few points, by the noise to begin with."""
    rows = list(existing(results))
    points = ("50k", "100k", "150k", "200k")
    lines = []
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == settings]
        lines.append([shown(settings), *(cell(own, f"return_{point}") for point in points)])
    return markdown_table(("noise", *(f"{point[:-1]},000" for point in points)), lines)


def calls(results: Path = TUNING / "calls.csv") -> str:
    """Return what one call of ``learn`` comes to, and what five of a fifth of its steps do."""
    rows = list(existing(results))
    lines = []
    for key in dict.fromkeys((row["env"], row["preset"], row["way"]) for row in rows):
        own = [row for row in rows if (row["env"], row["preset"], row["way"]) == key]
        lines.append([*key, *(cell(own, column) for column in ("last_20_return", "eval_mean"))])
    header = "task", "preset", "100,000 steps", "last 20 episodes", "without noise"
    return markdown_table(header, lines)


def lasting(results: Path = TUNING / "lasting.csv") -> str:
    """Return what a million steps end with, and half of them, with noise that lasts and without."""
    rows = list(existing(results))
    tables = []
    for title, column in (("500,000 steps", "return_500k"), ("a million", "return_1m")):
        tables += [f"After {title}:", "", *_lines(rows, column), ""]
    return "\n".join([*tables, "Without noise, at the end:", "", *_lines(rows, "eval_mean")])


def swimmer(results: Path = TUNING / "swimmer.csv") -> str:
    """Return what Swimmer-v5 comes to with a longer horizon and larger batches, at a few points."""
    rows = list(existing(results))
    points = (100, 200, 300, 500, 700)  # thousands
    lines = []
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == settings]
        columns = [f"return_{x}k" for x in points]
        cells = (cell([row for row in own if row[column]], column) for column in columns)
        lines.append([shown(settings), *cells])
    return markdown_table(("settings", *(f"{x},000" for x in points)), lines)


def early_150k() -> str:
    """Return the same for the first 150,000 steps, of more seeds."""
    return early(TUNING / "early_150k.csv", "150k")


def noise() -> str:
    """Return the same for the noise that a policy begins with."""
    return early(TUNING / "noise.csv", "150k")


def early(results: Path = TUNING / "early.csv", at: str = "100k") -> str:
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
        f"| {shown(x)} | {cell(runs[x], f'return_{at}')} | {of(x, f'std_{at}'):.2f} |"
        for x in sorted(runs, key=lambda x: -of(x, f"return_{at}"))
    )
    return "\n".join(lines)


def _lines(rows: list[dict[str, str]], column: str, envs: tuple[str, ...] = ENVIRONMENTS) -> list[str]:
    """Return a table of settings: the mean over seeds, and each seed."""
    lines = [f"| settings | {' | '.join(envs)} |", f"| --- |{' --- |' * len(envs)}"]
    for settings in dict.fromkeys(row["settings"] for row in rows):
        cells = []
        for env in envs:
            own = [row for row in rows if (row["settings"], row["env"]) == (settings, env)]
            cells.append(cell(own, column))
        lines.append(f"| {shown(settings)} | {' | '.join(cells)} |")
    return lines


def shown(settings: str) -> str:
    """Return settings as code, or in parentheses what is no option."""
    return settings if settings.startswith("(") else f"`{settings}`"


def cell(rows: list[dict[str, str]], column: str) -> str:
    """Return the mean over seeds, and each seed, as one cell of a table."""
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
    "early": early,
    "early 150k": early_150k,
    "noise": noise,
    "step length": step_length,
    "gae lambda": gae_lambda,
    "second quarter": second_quarter,
    "constructor": constructor,
    "hill": hill,
    "swimmer": swimmer,
    "search": search,
    "calls": calls,
    "critic curvature": critic_curvature,
    "ranges": ranges,
    "zeros": zeros,
    "lasting": lasting,
}
