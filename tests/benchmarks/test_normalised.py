"""What a suite with held-out tasks says of them all: each half, the worst task, the ratio to PPO."""

import pytest

from benchmarks.suites import Suite, clock
from benchmarks.suites import figures as suite_figures
from benchmarks.suites import tables as suite_tables
from benchmarks.suites.data import SuiteData, task_name
from benchmarks.suites.normalised import aggregate_table, by_task_table
from benchmarks.suites.provenance import provenance
from tests.helpers.small_suite import small_suite

SIDES = {
    "acktr defaults": {"algo": "acktr"},
    "acktr preset": {"algo": "acktr", "set": {"gamma": 0.9}},
    "ppo": {},
}
# The random policy has -285 on HalfCheetah and -42.9 on Reacher.
CHEETAH, REACHER = "HalfCheetah-v5", "Reacher-v5"
FINALS = {
    (CHEETAH, "acktr defaults"): (4715.0, 4715.0),
    (CHEETAH, "acktr preset"): (2215.0, 2215.0),
    (CHEETAH, "ppo"): (3715.0, 3715.0),
    (REACHER, "acktr defaults"): (-23.0, -23.0),
    (REACHER, "ppo"): (-3.0, -3.0),
}


def two_halves(path, finals=FINALS, **fields):
    fields = {"held_out": [REACHER], "ours": "acktr defaults", "reference": "all", **fields}
    return small_suite(path, finals, seeds=2, algorithms=SIDES, **fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_halves(tmp_path_factory.mktemp("results"))


def lines(text, *beginning):
    found = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(beginning)} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_each_half_has_rows_of_its_own(data):
    table = aggregate_table(data)
    (row,) = lines(table, "tuning", "acktr defaults")
    assert row[2:] == ["1", "1.00 [1.00, 1.00]", "1.00 [1.00, 1.00]", "–", f"1.00 ({CHEETAH})"]
    (row,) = lines(table, "held out", "acktr defaults")
    assert row[2:] == ["1", "0.50 [0.50, 0.50]", "0.50 [0.50, 0.50]", "–", f"0.50 ({REACHER})"]
    (row,) = lines(table, "all", "ppo")
    # The IQM of 0.8 and 1, two seeds each; ours is better on one task of two.
    assert row[2:] == [
        "2", "0.90 [0.90, 0.90]", "0.90 [0.90, 0.90]", "0.50 [0.50, 0.50] on 2", f"0.80 ({CHEETAH})",
    ]  # fmt: skip
    assert not lines(table, "held out", "acktr preset")
    assert "The IQM of acktr defaults is at least that of acktr preset on 1 of 1 tasks" in table


def test_every_task_has_its_ratio_to_ppo(data):
    table = by_task_table(data)
    (row,) = lines(table, CHEETAH)
    assert row[1:] == [
        "tuning", "-285", "4715 (acktr defaults)", "1.00", "0.50", "0.80", "1.25", "-0.50",
    ]  # fmt: skip
    (row,) = lines(table, REACHER)
    assert row[1:] == ["held out", "-42.9", "-3.00 (ppo)", "0.50", "–", "1.00", "0.50", "–"]
    assert (
        "Median of acktr defaults / ppo: 0.87 (all, 2), 1.25 (tuning, 1), 0.50 (held out, 1)." in table
    )
    assert table.endswith(f"Below 0.9: {REACHER} 0.50.")


def test_time_is_compared_with_ours(data):
    table = suite_tables.time_table(data)
    (row,) = lines(table, CHEETAH)
    # On lines from -285 ours has 3715 after 80 % of its steps, at a tenth of the seconds a step.
    assert row[1:6] == ["3715", "80", "1000", "1000", "12.5"]
    (row,) = lines(table, REACHER)
    assert row[2] == "not reached"
    assert table.endswith("where it is reached: 12.5; tuning (1): 12.5.")


def test_the_page_is_whole_where_runs_are_missing(tmp_path):
    assert suite_tables.text(two_halves(tmp_path / "none", {})) == ""
    one = {(CHEETAH, "acktr defaults"): (4715.0,)}
    text = suite_tables.text(two_halves(tmp_path / "one", one))
    # Nothing to compare with: no score of 1.
    assert "1 of 12 runs" in text
    assert "Over all tasks" not in text
    two = {**one, (CHEETAH, "ppo"): (-300.0,)}
    text = suite_tables.text(two_halves(tmp_path / "two", two))
    assert "**Not complete:** 3 of 4 runs of acktr defaults, 4 of 4 runs of acktr preset" in text
    # PPO is no better than chance, so nothing is divided by it.
    assert lines(text, CHEETAH, "tuning")[0][4:] == ["1.00", "-0.00", "–"]
    assert lines(text, REACHER, "held out")[0][3:] == ["–", "–", "–", "–"]


def test_a_task_that_nobody_learns_is_left_out(tmp_path):
    finals = {(CHEETAH, label): (-300.0, -310.0) for label in SIDES}
    data = two_halves(tmp_path, finals)
    assert not any(data.normalized(label) for label in data.labels)
    assert lines(by_task_table(data), CHEETAH)[0][4:] == ["–"] * 5


def test_figures(data, monkeypatch):
    assert {path.name for path in suite_figures.make(data)} == {"steps.png", "time.png", "profile.png"}


def test_tasks_go_by_their_ids():
    assert task_name("benchmarks.tasks:dmc-walker-walk-v0") == "dmc-walker-walk-v0"
    assert task_name(CHEETAH) == CHEETAH


def test_settings_that_hold_steps_have_no_fingerprints(tmp_path):
    steps = {CHEETAH: 1_000_000, REACHER: 500_000}
    assert "fingerprints" not in provenance(two_halves(tmp_path, steps=steps))


def test_ours_is_a_label():
    fields = {"title": "", "about": "", "steps": 1, "seeds": [0], "envs": [CHEETAH]}
    with pytest.raises(ValueError, match="ours is 'acktr', which is not among algorithms"):
        Suite(**fields, algorithms={"ppo": {}}, ours="acktr")
    assert SuiteData("odd", Suite(**fields, algorithms={"ppo": {}})).ours == "acktr"


def test_time_of_runs_that_shared_their_cores_is_that_of_short_runs_in_turns(tmp_path):
    data = two_halves(tmp_path, compare_seconds=False)
    assert clock.table(data) == ""
    with (data.path / "clock.csv").open("w") as file:
        file.write("env,label,round,steps,cpu_seconds,settings\n")
        for label, seconds in (("acktr defaults", 2.0), ("ppo", 8.0)):
            for i, factor in enumerate((1.0, 1.5)):
                file.write(f"{CHEETAH},{label},{i},1000,{seconds * factor},x\n")
    (row,) = lines(clock.table(data), CHEETAH)
    # Ours has PPO's 3715 after 80 % of as many steps.
    assert row[1:2] == ["3715"]
    assert row[4:] == ["400", "100", "5.0"]
    (row,) = lines(suite_tables.text(data), CHEETAH, "3715")
    assert row[-1] == "5.0"
