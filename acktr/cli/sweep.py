"""``acktr sweep``: a search for settings by RL Baselines3 Zoo and Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from acktr.errors import ConfigurationError, printable
from acktr.run.units import whole_number

if TYPE_CHECKING:
    from optuna import Study


def sweep(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    *,
    trials: Annotated[str, arg(metavar="N", help_behavior_hint="")] = "20",
    steps: Annotated[str, arg(metavar="N", help_behavior_hint="")] = "50000",
    seed: Annotated[str, arg(metavar="N", help_behavior_hint="")] = "0",
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
) -> int:
    """Search for settings of an environment with RL Baselines3 Zoo and Optuna.

    The same command goes on with a search, until it has had all of its trials. At the end it says what
    is best as `acktr train` takes it, and draws how much each setting mattered.

    :param env: a registered id, or module:id to import the module that registers it
    :param trials: trainings in all (default: 20)
    :param steps: of each, as in 50000 or 5e4 (default: 50000)
    :param seed: of the search and the trainings (default: 0)
    :param out: for the study and the Zoo's files (default: sweeps/ENV)
    """
    given = (("trials", trials), ("steps", steps), ("seed", seed))
    counts = {name: whole_number(f"--{name}", text) for name, text in given}
    for name, least in (("trials", 1), ("steps", 1), ("seed", 0)):
        if counts[name] < least:
            raise ConfigurationError(f"--{name} must be at least {least}, not {counts[name]}.")
    from acktr import zoo
    from acktr.compare.search import JOURNAL, open_study
    from acktr.presets import resolve
    from acktr.run.experiment import Experiment

    zoo.check_installed()
    zoo.check_environment(env)
    with Experiment(resolve(env).configuration):
        pass  # what `acktr train` refuses is refused before anything is written
    module, _, env_id = env.rpartition(":")
    folder = Path("sweeps") / env_id if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    before = 0
    if (folder / JOURNAL).exists():
        study = open_study(folder)
        if study.study_name != env_id:
            raise ConfigurationError(
                f"{folder / JOURNAL} is a study of {printable(study.study_name)}, not of {env_id}: give "
                "another --out."
            )
        before = len(study.trials)
    command = ["train", "--env", env_id, "-n", str(counts["steps"])]
    # With the same seed a search that goes on would draw again what it has drawn.
    command += ["--seed", str(counts["seed"] + before)]
    command += ["-optimize", "--no-optim-plots", "--max-total-trials", str(counts["trials"])]
    # A journal of JSON, which a search that was cut goes on from; the Zoo's pickles are never read.
    command += ["--storage", str(folder / JOURNAL), "--study-name", env_id]
    command += ["--log-folder", str(folder / "zoo")]
    code = zoo.main([*command, *(["--gym-packages", module] if module else [])])
    return code or _conclude(folder, env)


def _conclude(folder: Path, env: str) -> int:
    from acktr.compare.search import finished, open_study, report_study
    from acktr.envs.lookup import is_installed

    study = open_study(folder)
    done = finished(study)
    if not done:
        raise ConfigurationError(
            f"No trial of {folder} came to its end, all were pruned or failed: give --trials more, or "
            "--steps."
        )
    best = study.best_trial
    print(f"best of {len(done)} trials that came to their end: {best.value:.1f}, by trial {best.number}")
    print(f"acktr train {env} --set {' '.join(_changes(env, best.params))}")
    if len(done) > 1:
        print(_draw(study, folder / "importance.png"))
    if is_installed("bokeh"):
        print(report_study(study, folder / "report.html"))
    return 0


def _changes(env: str, params: dict[str, Any]) -> list[str]:
    """Return what a trial had and the preset has not, as ``--set`` takes it."""
    from acktr import zoo
    from acktr.presets import resolve
    from acktr.schedules import written

    known = resolve(env).configuration.algorithm_arguments()
    found = zoo.convert(params)
    theirs, ours = vars(found.pop("natural")), vars(known["natural"])
    found |= {f"natural.{name}": value for name, value in theirs.items() if value != ours[name]}
    return [f"{name}={'null' if x is None else written(x)}" for name, x in found.items()]


def _draw(study: Study, path: Path) -> Path:
    """Draw the share of the scores' variance that each setting accounts for."""
    from matplotlib.figure import Figure

    from acktr.compare.plot import save
    from acktr.compare.search import importances

    found = importances(study)
    figure = Figure(figsize=(6, 0.5 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(found)[::-1], list(found.values())[::-1])
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.set_title(f"{study.study_name}, {len(study.trials)} trials", fontsize="medium")
    return save(figure, path)
