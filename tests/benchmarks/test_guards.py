"""Every fault has a guard, every guard a test, and the documentation lists them as they were checked."""

import csv
import importlib
from pathlib import Path

import pytest

from benchmarks.faults import guards

FAULTS, GUARDS = guards.read_guards()
ROOT = Path(__file__).parents[2]


def test_every_fault_has_a_guard_and_every_guard_a_test():
    assert list(FAULTS) == list(range(1, 34))
    assert {guard.fault for guard in GUARDS} == set(FAULTS)
    assert all(guard.tests for guard in GUARDS)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.fault} {guard.what}")
def test_a_guard_can_be_taken_out(guard, tmp_path):
    path = tmp_path / guard.file
    path.parent.mkdir(parents=True)
    path.write_text((ROOT / guard.file).read_text())
    guards.take_out(guard, tmp_path)
    compile(path.read_text(), str(path), "exec")
    with pytest.raises(ValueError, match="occurs 0 times"):
        guards.take_out(guard._replace(old="is nowhere"), tmp_path)
    for test in guard.tests:
        file, name = test.split("::")
        module = importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))
        assert hasattr(module, name.split("[")[0])


def test_the_documentation_lists_what_was_checked():
    assert guards.markdown(FAULTS, GUARDS) in (ROOT / "docs/reliability.md").read_text()
    with guards.OUT.open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = [(str(g.fault), g.name, g.what, " ".join(g.tests)) for g in GUARDS]
    assert [(r["number"], r["guard"], r["what"], r["tests"]) for r in rows] == listed
    assert all(r["baseline"] == "pass" and r["without"] in ("fail", "hang") for r in rows)


def test_outcomes_are_those_of_all_cases():
    found = {"a.py::b[1]": "passed", "a.py::b[2]": "failed", "a.py::bc": "skipped"}
    assert guards.outcomes_of("a.py::b", found) == {"passed", "failed"}
    assert guards.outcomes_of("a.py::b[1]", found) == {"passed"}
    assert guards.outcomes_of("a.py::absent", found) == set()
