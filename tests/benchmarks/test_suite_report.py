"""Tables and figures of a suite: from the csv alone, the same at each call, and honest about gaps."""

import re
from dataclasses import replace

import pytest

from acktr.compare.store import Store
from benchmarks.report import BEGIN, END, SUITES_BEGIN, SUITES_END, page
from benchmarks.suites import Algorithm, Suite
from benchmarks.suites import figures as suite_figures
from benchmarks.suites import provenance as suite_provenance
from benchmarks.suites import tables as suite_tables
from benchmarks.suites.data import SuiteData, collapsed
from benchmarks.suites.normalised import aggregate_table
from benchmarks.suites.provenance import provenance
from tests.helpers.small_suite import FINALS, SESSION, outcome, small_suite


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_suite(tmp_path_factory.mktemp("results"))


def line(text, *beginning):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(beginning)} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_provenance_names_code_machine_and_gaps(data):
    text = provenance(data)
    assert "`python -m benchmarks.run small`: 18 of 24 runs" in text
    assert "commit 01234567+" in text
    assert "torch 2.13.0" in text
    assert "ACKTR had the same settings on all tasks." in text
    assert "2 of 8 runs of ppo, 4 of 8 runs of trpo are missing." in text


def test_many_gaps_are_counted_and_not_named(data, monkeypatch):
    monkeypatch.setattr(suite_provenance, "_MOST_NAMED", 1)
    assert provenance(data).endswith("**Not complete:** 6 runs are missing.")


def test_scores(data):
    table = suite_tables.scores_table(data)
    row = line(table, "HalfCheetah-v5", "acktr")
    assert row[2:4] == ["4/4", "6000, 5000, 5500, 2000"]
    assert row[4] == "5250 [2000, 6000]"  # of 5000 and 5500
    assert row[-1] == "seed 3 collapsed"
    assert row[-3:-1] == ["100", "10,000"]
    assert line(table, "Reacher-v5", "trpo")[2:5] == ["1/4", "-10.0", "-10.0 (one seed: no interval)"]


def test_differences_are_those_of_seeds_that_both_have(data, monkeypatch):
    monkeypatch.setattr(suite_tables, "PRESET", "acktr")
    table = suite_tables.difference_table(data)
    # On HalfCheetah a thousand less on each of three seeds, 0.3 of it on the line at 300,000 steps; on
    # Reacher 1, 2 and 1.5 less, whose standard deviation is 0.5.
    gains = ["-300 ± 0.00 (3)", "-1000 ± 0.00 (3)", "-0.45 ± 0.09 (3)", "-1.50 ± 0.29 (3)"]
    assert line(table, "ppo")[1:] == gains
    assert line(table, "trpo")[3:] == ["-1.80 (1)", "-6.00 (1)"]
    assert "| acktr |" not in table
    # On both tasks ppo lies within the seeds of acktr, and trpo on HalfCheetah, whose worst has 2000.
    assert table.endswith("every task: none. Below its worst on every task: none.")


def test_changes_beyond_all_seeds_of_the_preset_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(suite_tables, "PRESET", "acktr")
    ends = {"acktr": (5.0, 3.0), "ppo": (6.0, 7.0), "trpo": (2.0,)}
    tasks = ("HalfCheetah-v5", "Reacher-v5")
    data = small_suite(tmp_path, {(env, label): own for env in tasks for label, own in ends.items()})
    assert suite_tables.outside(data) == (
        "Of 2 changes, above the preset's best seed on every task: ppo. "
        "Below its worst on every task: trpo."
    )


def test_a_seed_without_a_value_is_in_no_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(suite_tables, "PRESET", "acktr")
    data = small_suite(tmp_path)
    data.rows["HalfCheetah-v5", "ppo"][0]["return_300k"] = ""  # no episode had ended by then
    gains = line(suite_tables.difference_table(data), "ppo")[1:3]
    assert gains == ["-300 ± 0.00 (2)", "-1000 ± 0.00 (3)"]


def test_aggregates(data):
    table = aggregate_table(data)
    # On HalfCheetah 6000, 5500 beat all three, 5000 two and a tie: (3 + 2.5 + 3) / 12; on Reacher -4,
    # -4.5 beat all, -5 two and a tie, -6 one and a tie: (3 + 2.5 + 3 + 1.5) / 12.
    assert line(table, "ppo")[3].startswith(f"{(8.5 / 12 + 10 / 12) / 2:.2f} [")
    assert line(table, "ppo")[2].startswith("1.00 [")
    assert line(table, "acktr")[3] == "–"
    # IQMs of 5250 against 4500 and 2000 on HalfCheetah, of -4.75 against -6 and -10 on Reacher.
    assert table.endswith(
        "ACKTR's IQM is at least that of ppo on 2 of 2 tasks, that of trpo on 2 of 2 tasks, "
        "of all of them on 2 of the 2 tasks that all have learned."
    )


def test_efficiency_and_time(data):
    # The IQM's line goes from -285 to 5250 and reaches 4500 at 87 % of the steps.
    assert line(suite_tables.efficiency_table(data), "HalfCheetah-v5")[1:] == [
        "4500 (ppo)", "1376", "2482", "5250", "870,000"
    ]  # fmt: skip
    text = suite_tables.time_table(data)
    assert line(text, "HalfCheetah-v5")[1:] == [
        "4500", "87", "1000", "1000", "11.5", "0, 1, 2, in turns"
    ]  # fmt: skip
    assert text.endswith("Median of the 2 tasks where it is reached: 10.9.")


def test_seconds_are_those_of_seeds_learned_in_turns(tmp_path):
    data = small_suite(tmp_path)
    (slow,) = [t for t in data.wanted if (t.env_id, t.label, t.seed) == ("HalfCheetah-v5", "ppo", 0)]
    result = outcome(slow, 5000.0)
    result.curve.points[:] = [
        replace(point, cpu_seconds=10 * point.cpu_seconds) for point in result.curve.points
    ]
    Store(tmp_path).add(slow, result, {}, {**SESSION, "date": "2026-01-02"})
    row = line(suite_tables.time_table(SuiteData("small", data.suite, tmp_path)), "HalfCheetah-v5")
    assert row[3:] == ["1000", "1000", "11.5", "1, 2, in turns"]
    (ours,) = [row for row in suite_tables.summary_table(data).splitlines() if "HalfCheetah" in row]
    assert ours == "| HalfCheetah-v5 | 5250 | 4500 | 2000 | 870,000 | 11.5 |"


def test_a_second_ppo_may_be_the_best_peer(tmp_path):
    tuned = {("HalfCheetah-v5", label): (900.0, 1000.0, 1100.0) for label in ("ppo", "trpo")}
    data = small_suite(tmp_path, {**FINALS, **tuned})
    suite = data.suite.model_copy(
        update={"algorithms": {**data.suite.algorithms, "ppo defaults": Algorithm(algo="ppo")}}
    )
    trials = SuiteData("small", suite, tmp_path).wanted
    for trial in trials:
        if (trial.env_id, trial.label, trial.seed) == ("HalfCheetah-v5", "ppo defaults", 0):
            Store(tmp_path).add(trial, outcome(trial, 5100.0), {}, SESSION)
    data = SuiteData("small", suite, tmp_path)
    assert data.target("HalfCheetah-v5") == ("ppo defaults", 5100.0)
    assert data.target("HalfCheetah-v5", tuned=True) == ("ppo", 1000.0)
    table = suite_tables.efficiency_table(data)
    assert line(table, "HalfCheetah-v5")[1] == "5100 (ppo defaults)"
    assert "Reached by 300,000 steps on 0 and" in table
    assert "Without ppo defaults: by 300,000 steps on 1 and" in table
    table = suite_tables.summary_table(data)
    assert line(table, "task")[1:5] == ["ACKTR", "PPO", "TRPO", "PPO, SB3's defaults"]
    assert line(table, "HalfCheetah-v5")[1:5] == ["5250", "1000", "1000", "5100"]
    assert line(table, "Reacher-v5")[4] == "–"


def test_seconds_of_another_processor_do_not_count(tmp_path):
    data = small_suite(tmp_path)
    elsewhere = {**SESSION, "machine": {**SESSION["machine"], "cpu": "a slow CPU"}}
    for trial in data.wanted:
        if (trial.env_id, trial.label) == ("HalfCheetah-v5", "acktr"):
            settings = {"algo": "acktr", "steps": trial.n_timesteps, "lambda": 0.9}
            Store(tmp_path).add(trial, outcome(trial, 5000.0), settings, elsewhere)
    data = SuiteData("small", data.suite, tmp_path)
    assert line(suite_tables.scores_table(data), "HalfCheetah-v5", "acktr")[-3:-1] == ["–", "–"]
    assert line(suite_tables.time_table(data), "HalfCheetah-v5")[2:] == [
        "–", "1000", "1000", "–", "all on a CPU"
    ]  # fmt: skip
    text = provenance(data)
    assert "one thread each on a CPU with 2 cores and a slow CPU with 2 cores" in text
    assert "Seconds are those of runs on a CPU." in text
    ours = {env: data.rows[env, "acktr"][0]["settings"] for env in data.envs}
    assert (
        f"ACKTR's settings, by their fingerprints: {ours['HalfCheetah-v5']} on HalfCheetah-v5; "
        f"{ours['Reacher-v5']} on Reacher-v5."
    ) in text
    figure = suite_figures.curves(data, "cpu_seconds")
    assert [line.get_label() for line in figure.axes[0].lines] == ["ppo", "trpo"]


def test_one_legend_says_what_line_and_band_are(tmp_path):
    data = small_suite(tmp_path)
    for figure in (suite_figures.curves(data, "steps"), suite_figures.profiles(data)):
        (legend,) = figure.legends
        assert re.fullmatch("line: .*; band: its 95% bootstrap interval", legend.get_title().get_text())
        labels = [text.get_text() for text in legend.get_texts()]
        assert [label.split()[0] for label in labels] == ["acktr", "ppo", "trpo"]
        assert all(panel.get_legend() is None for panel in figure.axes)
    assert (
        "band: from the least to the greatest seed of acktr" in suite_figures.ends(data).get_supxlabel()
    )


def test_a_suite_may_compare_no_seconds(tmp_path):
    data = small_suite(tmp_path)
    assert "Time to PPO's final return" in suite_tables.text(data)
    silent = SuiteData("small", data.suite.model_copy(update={"compare_seconds": False}), tmp_path)
    assert "Time to PPO's final return" not in suite_tables.text(silent)
    assert [path.name for path in suite_figures.make(silent)] == ["steps.png", "profile.png"]


def test_many_labels_are_drawn_as_ends_and_older_curves_go(tmp_path, monkeypatch):
    data = small_suite(tmp_path)
    suite_figures.make(data)
    monkeypatch.setattr(suite_figures, "_MOST_LINES", 2)
    assert [path.name for path in suite_figures.make(data)] == ["ends.png", "profile.png"]
    text = suite_tables.text(data)
    assert "small/ends.png" in text
    assert "small/steps.png" not in text
    halfcheetah, _ = suite_figures.ends(data).axes
    rows = [label.get_text() for label in halfcheetah.get_yticklabels()]
    assert rows == ["acktr", "ppo", "trpo"]
    points = halfcheetah.lines[0].get_xydata().tolist()
    assert points == [[6000, 0], [5000, 0], [5500, 0], [2000, 0]]


def test_both_on_another_processor_than_most_are_timed_there(tmp_path):
    data = small_suite(tmp_path)
    for label in ("acktr", "ppo"):  # in two sessions: no seed was learned in turns
        slow = {**SESSION, "command": label, "machine": {**SESSION["machine"], "cpu": "a slow CPU"}}
        for trial in data.wanted:
            if (trial.env_id, trial.label) == ("Reacher-v5", label) and trial.seed < 3:
                final = {"acktr": -4.0, "ppo": -6.0}[label]
                Store(tmp_path).add(trial, outcome(trial, final), {"algo": label}, slow)
    data = SuiteData("small", data.suite, tmp_path)
    assert data.processor == "a CPU"
    row = line(suite_tables.time_table(data), "Reacher-v5")
    assert row[4] == "1000"
    assert row[5] != "–"
    assert row[6] == "all on a slow CPU"
    assert line(suite_tables.scores_table(data), "Reacher-v5", "ppo")[-3:-1] == ["–", "–"]


def test_peers_that_were_stopped_are_named(tmp_path):
    data = small_suite(tmp_path)
    assert "Stopped" not in provenance(data)
    trial = next(t for t in data.wanted if (t.env_id, t.label, t.seed) == ("Reacher-v5", "ppo", 1))
    resumed = {**SESSION, "resumed_at": [200_000, 1_204_224]}
    Store(tmp_path).add(trial, outcome(trial, -7.0), {"algo": "ppo", "steps": 1_000_000}, resumed)
    text = provenance(SuiteData("small", data.suite, tmp_path))
    assert (
        "Stopped and continued in new episodes: "
        "ppo on Reacher-v5, seed 1, after 200,000 and 1,204,224 steps." in text
    )


def test_a_task_whose_seconds_do_not_count_has_no_panel_of_them(tmp_path, monkeypatch):
    data = small_suite(tmp_path)
    timed = SuiteData.timed
    monkeypatch.setattr(
        SuiteData,
        "timed",
        lambda self, env, label: [] if env == "Reacher-v5" else timed(self, env, label),
    )
    titles = [panel.get_title() for panel in suite_figures.curves(data, "cpu_seconds").axes]
    assert titles == ["HalfCheetah-v5"]
    assert len(suite_figures.curves(data, "steps").axes) == 2


def batches(path, finals):
    suite = Suite(
        title="Batches", about="Made up.", steps=1_000_000, seeds=[0, 1], envs=["HalfCheetah-v5"],
        algorithms={
            "small": {"algo": "acktr", "set": {"n_envs": 8, "n_steps": 64}},
            "large": {"algo": "acktr", "set": {"n_envs": 8, "n_steps": 256}},
        },
        batches=[("small", "large")],
    )  # fmt: skip
    store = Store(path)
    for trial in suite.trials():
        if trial.label in finals:
            store.add(trial, outcome(trial, finals[trial.label][trial.seed]), {}, SESSION)
    return SuiteData("batches", suite, path)


def test_what_a_larger_batch_keeps(tmp_path):
    data = batches(tmp_path, {"small": (3715.0, 3715.0), "large": (1715.0, 1715.0)})
    # The random policy has -285: gains of 4000 and 2000, and of 1000 after a quarter of the steps.
    assert line(suite_tables.text(data), "HalfCheetah-v5", "large", "0.50 [0.50, 0.50]") == [
        "HalfCheetah-v5", "large", "0.50 [0.50, 0.50]", "2.00 [2.00, 2.00]",
        "1000 [1000, 1000]",
    ]  # fmt: skip


def test_there_is_nothing_to_say_of_one_batch(tmp_path):
    assert "larger batch" not in suite_tables.text(batches(tmp_path, {"small": (3715.0, 3715.0)}))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("small", "huge"), "'huge', which is not among"),
        (("large", "small"), "large and small must differ in n_steps alone, the smaller first"),
        (("small", "other"), "small and other must differ in n_steps alone"),
        (("small", "a2c"), "small and a2c must differ in n_steps alone"),
        (("unsaid", "large"), "unsaid and large must differ in n_steps alone"),
    ],
)
def test_pairs_of_batches_are_checked(pair, message):
    algorithms = {
        "small": {"algo": "acktr", "set": {"n_envs": 8, "n_steps": 64}},
        "large": {"algo": "acktr", "set": {"n_envs": 8, "n_steps": 256}},
        "other": {"algo": "acktr", "set": {"n_envs": 4, "n_steps": 256}},
        "a2c": {"set": {"n_envs": 8, "n_steps": 256}},
        "unsaid": {"algo": "acktr", "set": {"n_envs": 8}},
    }
    with pytest.raises(ValueError, match=message):
        Suite(
            title="", about="", steps=1, seeds=[0], envs=["CartPole-v1"], algorithms=algorithms,
            batches=[pair],
        )  # fmt: skip


def test_steps_per_second_of_pairs(tmp_path):
    data = small_suite(tmp_path)
    suite = data.suite.model_copy(update={"speeds": [("acktr", "ppo"), ("ppo", "trpo")]})
    (slow,) = [t for t in data.wanted if (t.env_id, t.label, t.seed) == ("HalfCheetah-v5", "ppo", 2)]
    result = outcome(slow, 5000.0)
    result.scores["cpu_seconds"] *= 4
    Store(tmp_path).add(slow, result, {}, SESSION)
    text = suite_tables.text(SuiteData("small", suite, tmp_path))
    assert line(text, "HalfCheetah-v5", "acktr") == [
        "HalfCheetah-v5", "acktr", "ppo", "10,000", "1,000", "10.00", "10.00 – 40.00", "3"
    ]  # fmt: skip
    assert line(text, "Reacher-v5", "ppo")[-1] == "1"
    assert "Every seed" not in text
    assert suite_figures.make(SuiteData("small", suite, tmp_path)) == []


def test_pairs_of_speeds_are_checked():
    with pytest.raises(ValueError, match="speeds names 'sac', which is not among algorithms"):
        Suite(
            title="", about="", steps=1, seeds=[0], envs=["CartPole-v1"], algorithms={"acktr": {}},
            speeds=[("acktr", "sac")],
        )  # fmt: skip


def test_what_is_not_there_is_left_out(tmp_path):
    assert suite_tables.text(small_suite(tmp_path / "nothing", {})) == ""
    finals = {key: value for key, value in FINALS.items() if key[1] == "acktr"}
    alone = small_suite(tmp_path / "alone", finals)
    text = suite_tables.text(alone)
    assert "8 of 8 runs of ppo" in text
    assert "Sample efficiency" not in text
    assert line(text, "HalfCheetah-v5", "acktr")
    assert [path.name for path in suite_figures.make(alone)] == ["steps.png", "time.png"]
    finals["HalfCheetah-v5", "ppo"] = finals["HalfCheetah-v5", "trpo"] = (9000.0,)
    text = suite_tables.text(small_suite(tmp_path / "lost", finals))
    assert line(text, "HalfCheetah-v5", "9000 (ppo)")[-1] == "not reached"
    assert "at least that of ppo on 0 of 1 tasks, that of trpo on 0 of 1 tasks" in text


def test_a_second_report_changes_nothing(data):
    first = {path: path.read_bytes() for path in suite_figures.make(data)}
    assert [path.name for path in first] == ["steps.png", "time.png", "profile.png"]
    empty = f"{BEGIN}\n{END}\n{SUITES_BEGIN}\n{SUITES_END}\n"
    text = page(empty, data=[data])
    assert "![Return over steps](../benchmarks/results/small/steps.png)" in text
    assert {path: path.read_bytes() for path in suite_figures.make(data)} == first
    assert page(text, data=[data]) == text


@pytest.mark.parametrize(
    ("best", "last", "expected"),
    [(1000, 499, True), (1000, 501, False), (-4, -5.9, False), (-4, -6.1, True)],
)
def test_collapse(best, last, expected):
    assert collapsed({"best_100_return": str(best), "last_100_return": str(last)}) is expected
