"""Several algorithms side by side on one environment: what ``acktr compare`` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from acktr.compare.plot import plot_comparison
from acktr.compare.report import write_report
from acktr.compare.runner import Summary, choose_cores, run_trials
from acktr.compare.store import Store
from acktr.compare.trial import ALGORITHMS, Trial, check_algorithm
from acktr.envs.make import try_environment
from acktr.envs.spaces import fitting_policy
from acktr.errors import ConfigurationError
from acktr.presets import Configuration, resolve
from acktr.run.report import check_page

REMEMBERING = {"acktr_lstm": "Lstm", "acktr_gru": "Gru"}  # ACKTR with a memory, and of what kind
CHOICES = (*ALGORITHMS, *REMEMBERING)


@dataclass(frozen=True)
class Comparison:
    """The results of ``acktr compare``.

    :param rows: of the store, those of this comparison, by algorithm and seed
    :param summary: what became of the trainings
    :param table: the csv file
    :param picture: the figure; ``None`` if nothing has been trained
    :param page: the report; ``None`` also if none was asked for
    """

    rows: list[dict[str, str]]
    summary: Summary
    table: Path
    picture: Path | None
    page: Path | None


def compare(
    env_id: str,
    algos: Sequence[str] = ALGORITHMS,
    *,
    n_timesteps: int | None = None,
    n_seeds: int = 3,
    jobs: int | None = None,
    out: Path | None = None,
    report: bool = False,
    command: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Train algorithms on one environment, each with its tuned settings, and draw them.

    ACKTR has the preset of the environment, its peers have RL Baselines3 Zoo's settings. What ``out``
    already holds is not trained again.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param algos: of :data:`CHOICES`
    :param n_timesteps: environment steps of each training; by default those of ACKTR's preset
    :param n_seeds: seeds 0, 1, ... of each algorithm
    :param jobs: trainings at a time; by default one a core
    :param out: for csv files and picture; by default ``runs/compare-ENV``
    :param report: also write a page, ``report.html``
    :param command: what the user typed, for the manifest
    :param tell: called with a line whenever a training starts or ends
    :raises ConfigurationError: for an unknown algorithm or environment, a number below 1, a package
        that is missing, or a directory that cannot be written
    """
    algos = list(dict.fromkeys(algos))
    if not algos:
        raise ConfigurationError(f"There is nothing to compare: choose from {', '.join(CHOICES)}.")
    for algo in algos:
        if algo not in REMEMBERING:
            check_algorithm(algo, CHOICES)
    for name, value in (("--steps", n_timesteps), ("--seeds", n_seeds)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} is {value}: at least 1 is needed.")
    cores = choose_cores(jobs)
    preset = resolve(env_id).configuration
    steps, episodes = n_timesteps or preset.n_timesteps, preset.n_final_eval_episodes
    settings = {algo: {"policy": _with_memory(algo, preset)} for algo in algos if algo in REMEMBERING}
    name = env_id.replace("/", "-").replace(":", "-")
    store = Store(out or Path("runs") / f"compare-{name}")
    page = store.path / "report.html"
    if report:
        check_page(page)
    # All algorithms with the first seed first: a comparison that is stopped early has all of them.
    trials = [
        Trial(
            env_id, "acktr" if algo in settings else algo, seed, steps, algo,
            settings.get(algo, {}), eval_episodes=episodes,
        )
        for seed in range(n_seeds)
        for algo in algos
    ]  # fmt: skip
    summary = run_trials(trials, store, cores, command=command, tell=tell)
    found = {trial.key: row for trial in trials if (row := store.find(trial)) is not None}
    groups = {
        algo: [store.curve(trial.key) for trial in trials if trial.label == algo and trial.key in found]
        for algo in algos
    }
    groups = {algo: curves for algo, curves in groups.items() if curves}
    picture = plot_comparison(env_id, groups, store.path / "comparison.png") if groups else None
    rows = [found[t.key] for algo in algos for t in trials if t.label == algo and t.key in found]
    if report and groups:
        of_acktr = [t for t in trials if t.algo == "acktr" and t.key in found]
        runs = {f"{t.label}, seed {t.seed}": store.folder(t) / "run" for t in of_acktr}
        write_report(env_id, rows, groups, runs, page)
    return Comparison(rows, summary, store.table, picture, page if report and groups else None)


def _with_memory(algo: str, preset: Configuration) -> str:
    """Name the policy with the memory that an algorithm asks for, for what the environment observes."""
    policy = preset.policy
    assert isinstance(policy, str)  # a preset names it
    if policy == "auto":
        policy = fitting_policy(try_environment(preset.env_id, preset.env_kwargs))
    return policy.replace("Policy", f"{REMEMBERING[algo]}Policy")
