"""The speed benchmark: its arithmetic, its count of operations, its files. No test asserts a time."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import SPEED_PAGE, speed_page
from benchmarks.speed import accelerator as speed_accelerator
from benchmarks.speed import measure as speed
from benchmarks.speed import memory as speed_memory
from benchmarks.speed.flops import block_sizes, update_flops
from benchmarks.speed.process import WARM_UP, Measurement, Pace
from benchmarks.speed.profile import PHASES, Profiler, draw
from benchmarks.speed.ratios import Group, Line, groups, pairwise, summarize
from benchmarks.speed.report import learning_table, profile_table, width_table

ROOT = Path(__file__).parents[2]


class Parent:
    """The measuring process's end of a connection, which asks for repetitions of 0 seconds."""

    def __init__(self, repetitions):
        self.left, self.heard = repetitions, []

    def send(self, message):
        self.heard.append(message)

    def recv(self):
        self.left -= 1
        return 0.0 if self.left >= 0 else None


def test_a_pace_leaves_the_warm_up_out_and_counts_whole_updates():
    parent = Parent(repetitions=3)
    pace = Pace(parent)
    pace.facts = {"flops": 7.0}
    work = [0.0]
    while pace(work[-1]):
        work.append(work[-1] + 10.0)
    facts, *measured = parent.heard
    assert facts == {"flops": 7.0}
    assert [m.work for m in measured] == [10.0, 10.0, 10.0]
    assert work[-1] == 10.0 * (WARM_UP + 3)


def test_a_ratio_is_that_of_neighbours_in_time():
    # 4/2, 9/3, 10/10: not the ratio of the medians, 9/3.
    assert pairwise([4.0, 9.0, 10.0], [2.0, 3.0, 10.0]) == (1.0, 2.0, 3.0)


def test_the_fastest_side_below_the_line_counts():
    line = Line("a case", "ours", ("slow", "fast"), target=2.0)
    side = groups(quick=True)[0].sides["ACKTR"]
    group = Group("case", dict.fromkeys(("ours", "slow", "fast"), side), (line,), 1.0, 2)
    rates = {"ours": (30.0, 50.0), "slow": (1.0, 1.0), "fast": (10.0, 20.0)}
    measured = {k: [Measurement(rate, 1.0, {}) for rate in v] for k, v in rates.items()}
    summary = summarize(group, line, measured)
    assert summary["bottom"] == "fast"
    assert (summary["minimum"], summary["median"], summary["maximum"]) == (2.5, 2.75, 3.0)
    assert (summary["top_rate"], summary["bottom_rate"]) == (40.0, 15.0)
    assert summary["met"]


def test_every_line_names_sides_of_its_group():
    for group in (*groups(), *speed_accelerator.groups(), *speed_memory.groups()):
        assert {s for line in group.lines for s in (line.top, *line.bottom)} <= set(group.sides)


def test_the_accelerators_sides_run_where_there_is_none():
    """In miniature, on the CPU, one process after the other."""
    pytest.importorskip("envpool")
    (group,) = (g for g in speed_accelerator.groups(True, "cpu") if g.name == "peers")
    kept = {name: group.sides[name] for name in ("ACKTR", "A2C, ACKTR's environments")}
    lines = tuple(line for line in group.lines if {line.top, *line.bottom} <= set(kept))
    ((results, rows),) = speed.measure([replace(group, sides=kept, lines=lines)], True)
    assert [line["ratio"] for line in results["ratios"]] == ["peers"]
    assert len(rows) == 2 * group.repetitions


def test_a_memory_is_taken_apart_by_phases():
    """In miniature: nothing of its update is charged to the rollout."""
    (group,) = (g for g in speed_memory.groups(True) if g.name == "profile")
    kept = {"CartPole, 64 units": group.sides["CartPole, 64 units"]}
    ((results, _),) = speed.measure([replace(group, sides=kept)], True)
    phases = results["profile"]["CartPole, 64 units"]
    assert all(phases[name] > 0 for name in PHASES)


def test_the_operations_of_an_update_are_those_counted_by_hand():
    # Two layers, 2 -> 3 -> 1, batch 5. Products: 2*5*2*3 = 60 and 2*5*3*1 = 30.
    assert update_flops([(2, 3), (3, 1)], batch=5) == {
        "forward": 60 + 30,
        "backward": 60 + 2 * 30,
        "fisher_backward": 30,
        "factors": 10 * (2**2 + 3**2) + 10 * (3**2 + 1**2),
        "inverses": (3**3 + 3**3) + (4**3 + 1**3),
        # S^-1 G: 2*3*3*3, times A^-1: 2*3*3*3; then 2*1*1*4 and 2*1*4*4.
        "precondition": 54 + 54 + 8 + 32,
        "quadratic": 54 + 54 + 8 + 32,
    }


def test_blocks_of_a_factor_take_fewer_operations():
    assert block_sizes(5, None) == [5]
    assert block_sizes(5, 2) == [2, 2, 1]
    # A of 3 + 1 in two blocks of 2, the bias last: 2*5*(2**2 + 1**2); S of 4 in two of 2: 2*5*8.
    flops = update_flops([(3, 4)], batch=5, max_factor_size=2, inverse_period=4)
    assert flops["factors"] == 10 * 5 + 10 * 8
    assert flops["inverses"] == (4 * 2**3) / 4
    # (4 x 4) gradient: every product costs 2 * (2 * 2**2) * 4.
    assert flops["precondition"] == flops["quadratic"] == 2 * 64


def test_time_is_charged_to_the_innermost_phase():
    profiler = Profiler()
    inner = profiler.timed(lambda: sum(range(20_000)), "factors")
    outer = profiler.timed(inner, "inference")
    outer()
    seconds = profiler.totals()
    assert list(seconds) == list(PHASES)
    assert seconds["factors"] > 0
    # Outside of a rollout the policy is evaluated for its gradient.
    assert seconds["forward and backward"] > seconds["inference"] == 0


def test_tables_and_picture_hold_every_phase(tmp_path):
    profile = {"one": dict.fromkeys(PHASES, 2.0), "two": dict.fromkeys(PHASES, 200.0)}
    assert profile_table(profile).splitlines()[-1].endswith("| 1600 |")
    draw(profile, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 0
    widths = [{"side": "64", "flops": 4e6, "factors_mib": 0.5, "forward": 1e6, "inverses": 3e6}]
    assert width_table(widths).splitlines()[-1] == "| 64 | 4 Mflop | 25% | 75% | 0.5 MiB |"


def test_the_page_says_what_the_results_say():
    text = SPEED_PAGE.read_text(encoding="utf-8")
    assert speed_page(text) == text, "run python -m benchmarks.report"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--only", "nonsense"), "There is no ratio 'nonsense': choose from first-order, a2c"),
        (("--seconds", "0"), "--seconds is 0: it must be above 0."),
        (("--repetitions", "0"), "--repetitions is 0: it must be at least 1."),
        (("--device", "cuda"), "--device cuda needs a CUDA device, and there is none here."),
    ],
)
def test_wrong_input_gives_one_sentence(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert speed.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_whole_measurement_in_miniature(tmp_path):
    pytest.importorskip("mujoco")
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--only", "a2c", "profile", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "ratios.json").read_text(encoding="utf-8"))
    assert set(results) == {"ratios", "widths", "profile"}
    assert all(set(phases) == set(PHASES) for phases in results["profile"].values())
    assert results["profile"]["CartPole"]["inverses"] > 0
    assert (tmp_path / "profile.png").is_file()
    auto, *others = results["ratios"]
    assert {line["ratio"] for line in results["ratios"]} == {"a2c"}
    assert len(others) == 2
    assert auto["target"] == 1.7
    assert auto["minimum"] <= auto["median"] <= auto["maximum"]
    with (tmp_path / "speed.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(speed.COLUMNS)
    assert [row["repetition"] for row in rows if row["ratio"] == "a2c"] == ["0", "1"] * 5
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["speed.csv"]["command"] == "python -m benchmarks.speed --quick --only a2c profile"
    assert {"torch", "stable-baselines3"} <= set(manifest["versions"])


def test_the_learning_table_gives_every_seed(tmp_path):
    path = tmp_path / "learning.csv"
    rows = [("A-v1", "off", 0, 1.0), ("A-v1", "off", 1, 3.4), ("A-v1", "on", 0, 2.0)]
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["env,options,seed,last_100_return", *lines]), encoding="utf-8")
    assert learning_table(path).splitlines()[2:] == [
        "| A-v1 | off | 1, 3 | 1 | 2 | 3 |",
        "| A-v1 | on | 2 | 2 | 2 | 2 |",
    ]
