"""A search for settings by Optuna: read from its journal, its importances, its page."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import acktr
from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError, printable
from acktr.run.panels import Panel, line
from acktr.run.report import Page, Section, Table, check_page, write_page

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.log"
_BEST = 5  # trials in the table of figures


def open_study(folder: Path) -> Study:
    """Open the study of a search; a journal of JSON, from which nothing is run.

    :param folder: that holds ``study.log``
    :raises ConfigurationError: Optuna is not installed, or cannot read it
    """
    if not is_installed("optuna"):
        raise ConfigurationError(
            'A search needs Optuna, which is not installed: run `pip install "acktr[zoo]"`.'
        )
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage)
    except Exception as error:  # whatever Optuna says of a file that is none of its own
        raise ConfigurationError(
            f"{path} is no study that Optuna can read ({error!r}): remove it, or give another --out."
        ) from error


def finished(study: Study) -> list[FrozenTrial]:
    """Return the trials that came to their end, with a finite score."""
    from optuna.trial import TrialState

    trials = study.get_trials(states=[TrialState.COMPLETE])
    return [trial for trial in trials if trial.value is not None and np.isfinite(trial.value)]


def importances(study: Study) -> dict[str, float]:
    """Return the share of the scores' variance that each setting accounts for, the greatest first.

    By PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv 2304.10255), which Optuna has; empty where less
    than two trials came to their end.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(finished(study)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that all trials are equally good
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def report_study(study: Study, out: Path) -> Path:
    """Write a page about a search: its trials, and how much each setting mattered.

    :param study: of :func:`open_study`
    :param out: the file, ``.html``
    :return: ``out``
    :raises ConfigurationError: no trial came to its end, Bokeh is not installed, or the file cannot be
        written
    """
    check_page(out)
    trials = finished(study)
    if not trials:
        raise ConfigurationError(
            "There is nothing to report: no trial of the search came to its end; give it --trials more."
        )
    shares = importances(study)
    names = list(shares) or sorted({name for trial in trials for name in trial.params})
    states = Counter(trial.state.name.lower() for trial in study.trials)
    others = ", ".join(f"{n} {state}" for state, n in sorted(states.items()) if state != "complete")
    trained = f"{len(trials)} trials came to their end{f', others: {others}' if others else ''}"
    best = sorted(trials, key=_score, reverse=True)
    columns = ("trial", "score", *map(_plain, names))
    page = Page(
        title=f"Search for settings of {printable(study.study_name)}",
        subtitle=f"{trained}; by acktr {acktr.__version__}.",
        summary=Table("Figures", columns, [_row(trial, names) for trial in best[:_BEST]]),
        missing=[],
        notes=[],
        sections=[Section("How much each setting mattered", ["trials"], _panels(trials, shares, names))],
        films=[],
        tables=[Table("All trials", columns, [_row(trial, names) for trial in best])],
    )
    return write_page(page, out)


def _panels(trials: list[FrozenTrial], shares: dict[str, float], names: list[str]) -> list[Panel]:
    numbers = np.array([trial.number for trial in trials])
    scores = np.array([_score(trial) for trial in trials])
    course = [*line(0, numbers, scores, kind="points"), *line(0, numbers, np.maximum.accumulate(scores))]
    panels = [Panel("Score of each trial", "Line: the best until then.", "trial", course)]
    for name in names:
        drawn = [trial for trial in trials if isinstance(trial.params.get(name), int | float)]
        values = np.array([trial.params[name] for trial in drawn], dtype=float)
        scale = all(getattr(trial.distributions[name], "log", False) for trial in drawn)
        x = f"log10 of {_plain(name)}" if scale else _plain(name)
        points = line(
            0,
            np.log10(values) if scale else values,
            np.array([_score(trial) for trial in drawn]),
            kind="points",
        )
        share = f"{_plain(name)}: {shares[name]:.0%}" if name in shares else _plain(name)
        note = "The score of each trial; the share of the scores' variance by PED-ANOVA."
        panels.append(Panel(share, note, x, points))
    return [panel for panel in panels if panel.lines]


def _row(trial: FrozenTrial, names: list[str]) -> list[str]:
    values = (trial.params.get(name, "–") for name in names)
    cells = (f"{x:.4g}" if isinstance(x, float) else printable(str(x)) for x in values)
    return [str(trial.number), f"{_score(trial):,.1f}", *cells]


def _score(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _plain(name: str) -> str:
    # A page gives it to Bokeh, in whose texts $$ is mathematics and @ a value.
    return re.sub(r"[^\w.]", "·", name)
