"""``acktr compare``: from the command to table, csv and picture."""

import csv

import pytest

from acktr.cli import main
from acktr.compare import comparison, runner, trial

TOY = "tests.helpers.toy_envs:Toy-v0"


def test_compare_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    arguments = ["compare", TOY, "--algos", "acktr,a2c", "--steps", "320", "--out", str(tmp_path)]
    assert main([*arguments, "--seeds", "1"]) == 0
    captured = capsys.readouterr()
    assert "acktr" in captured.out
    assert "evaluation" in captured.out
    assert f"picture  {tmp_path / 'comparison.png'}" in captured.out
    assert "[2/2]" in captured.err
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["algo"], row["seed"], row["diverged"]) for row in rows] == [
        ("a2c", "0", "no"), ("acktr", "0", "no")
    ]  # fmt: skip
    assert list((tmp_path / "trials").glob("*_acktr_0/run/model.zip"))
    # A second seed, whose trainings cannot start: the first ones are neither lost nor made again.
    picture = (tmp_path / "comparison.png").read_bytes()
    monkeypatch.setattr(runner, "_PROGRAM", ("false",))
    assert main([*arguments, "--seeds", "2"]) == 1
    captured = capsys.readouterr()
    assert "acktr, seed 1 failed: it ended with code 1" in captured.err
    assert "[2/2]" in captured.err
    assert (tmp_path / "comparison.png").read_bytes() == picture
    # A page of what is there.
    pytest.importorskip("bokeh")
    assert main([*arguments, "--seeds", "1", "--report"]) == 0
    assert f"page     {tmp_path / 'report.html'}\n" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<h1>acktr, a2c on {TOY}</h1>" in text
    assert "<h2>Inside ACKTR</h2>" in text


def test_acktr_with_a_memory_beside_acktr_without(tmp_path, monkeypatch):
    """The policy is that of what the environment observes; masks are asked for."""
    chosen = []
    monkeypatch.setattr(
        comparison, "run_trials", lambda trials, *_, **__: chosen.extend(trials) or runner.Summary()
    )
    env_id = "tests.helpers.masked_envs:StrictDiscrete-v0"
    algos = "acktr,acktr_lstm,acktr_gru"
    command = ["compare", env_id, "--algos", algos, "--seeds", "1", "--out", str(tmp_path)]
    assert main([*command, "--steps", "160"]) == 0
    assert [(t.algo, t.label, t.settings) for t in chosen] == [
        ("acktr", "acktr", {}),
        ("acktr", "acktr_lstm", {"policy": "MlpLstmPolicy"}),
        ("acktr", "acktr_gru", {"policy": "MlpGruPolicy"}),
    ]
    configuration = trial.configuration(chosen[1])
    assert configuration.policy == "MlpLstmPolicy"


@pytest.mark.slow
def test_memory_and_masks_are_compared(tmp_path):
    env_id = "tests.helpers.masked_envs:StrictDiscrete-v0"
    command = ["compare", env_id, "--algos", "acktr_gru,ppo_mask", "--seeds", "1", "--steps", "2048"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "comparison.png").is_file()
