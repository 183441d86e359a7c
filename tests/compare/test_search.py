"""A search for settings: its page, and what cannot be reported."""

import re

import pytest

from acktr.cli import main
from acktr.compare.search import JOURNAL, importances, open_study, report_study
from acktr.errors import ConfigurationError

optuna = pytest.importorskip("optuna")
pytest.importorskip("bokeh")


def search(folder, scores, name="Toy-v0"):
    """Make the journal of a search, with a trial for each score and a pruned one."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    drawn = {
        "<b>$$kl": optuna.distributions.FloatDistribution(1e-3, 10.0, log=True),
        "n_steps_pow": optuna.distributions.IntDistribution(4, 9),
    }
    for number, score in enumerate(scores):
        params = {"<b>$$kl": 10.0 ** (score / 10), "n_steps_pow": 4 + number % 3}
        trial = optuna.trial.create_trial(value=score, params=params, distributions=drawn)
        study.add_trial(trial)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    return open_study(folder)


def test_a_page_has_the_trials_and_what_mattered(tmp_path, capsys):
    study = search(tmp_path, [1.0, 3.0, 2.0, 8.0, 5.0, 4.0], name="<i>Toy-v0")
    assert sum(importances(study).values()) == pytest.approx(1.0)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Search for settings of &lt;i&gt;Toy-v0</h1>" in text
    assert "6 trials came to their end, others: 1 pruned" in text
    assert re.search(r"<h3>·b···kl: \d+%</h3>", text)
    assert "log10 of ·b···kl" in text
    assert re.search(r"<h3>n_steps_pow: \d+%</h3>", text)
    first = text.index('<th scope="row">3</th><td>8.0</td>')
    assert first < text.index('<th scope="row">4</th><td>5.0</td>')
    assert text.count("<noscript><img") == 3


def test_equal_scores_and_one_trial_are_reported(tmp_path):
    for name, scores in (("equal", [2.0, 2.0, 2.0]), ("one", [2.0])):
        (tmp_path / name).mkdir()
        report_study(search(tmp_path / name, scores), tmp_path / f"{name}.html")


def test_what_cannot_be_reported_is_refused(tmp_path, capsys):
    study = search(tmp_path, [])
    with pytest.raises(ConfigurationError, match="no trial of the search came to its end"):
        report_study(study, tmp_path / "page.html")
    assert main(["report", str(tmp_path), str(tmp_path)]) == 2
    assert "is a search, not a run: report it alone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == []
