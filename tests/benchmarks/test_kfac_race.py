"""The race of optimisers: all learn, what was cut goes on, and the page shows what is written."""

import csv

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("pytorch_optimizer")

from benchmarks.kfac import race, report
from benchmarks.kfac.networks import TASKS


@pytest.mark.parametrize("optimizer", race.GRIDS)
@pytest.mark.parametrize("network", TASKS)
def test_every_optimiser_lowers_the_loss_of_every_network(network, optimizer, monkeypatch):
    monkeypatch.setitem(race.GOALS, network, 0.0)
    found = race.run(network, optimizer, race.GRIDS[optimizer][1], seed=0, most=10)
    assert not found.met
    assert found.curve[-1][2] < found.curve[0][2]


def test_a_race_that_was_cut_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "MOST", 10)
    monkeypatch.setattr(race, "GRIDS", {name: grid[:2] for name, grid in race.GRIDS.items()})
    monkeypatch.setitem(race.GOALS, "MLP", 2.2)
    race.main(["--networks", "MLP", "--out", str(tmp_path)])
    whole = (tmp_path / "race.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert {row["seed"] for row in rows if row["optimizer"] == "K-FAC"} == {"0", "1", "2", "3"}
    (tmp_path / "race.csv").write_text("".join(whole.splitlines(keepends=True)[:2]))
    race.main(["--networks", "MLP", "--out", str(tmp_path)])
    steps = [(row["optimizer"], row["settings"], row["seed"], row["steps"]) for row in rows]
    again = csv.DictReader((tmp_path / "race.csv").read_text().splitlines())
    assert [(row["optimizer"], row["settings"], row["seed"], row["steps"]) for row in again] == steps
    assert "MLP, 2.2" in report.table(tmp_path)
    assert report.draw(tmp_path).stat().st_size > 10_000
