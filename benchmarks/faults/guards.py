"""Whether every guard against a fault has a test that fails without it.

    python -m benchmarks.faults.guards [--only 5 8] [--out FILE]
    python -m benchmarks.faults.guards --markdown

``guards.yaml`` lists the guards. Their tests are run in a copy of the package, once as it is, where all
must pass, and once for each guard with that one taken out, where each of its tests must fail.
``guards.csv`` has a row for each guard. It ends with 1 if anything was not as it must be. ``--markdown``
runs nothing and prints the table of the documentation.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results" / "faults" / "guards.csv"
COPIED = ("acktr", "tests", "pyproject.toml")
COLUMNS = ("number", "fault", "guard", "what", "tests", "baseline", "without")
LIMIT = 300.0  # seconds for the tests of one guard; what takes longer hangs
BASELINE_LIMIT = 1800.0


class Guard(NamedTuple):
    """What keeps a fault from doing harm, and how it is taken out.

    :param fault: number of the fault
    :param name: file and name in the package, ``"lock.py, Lock"``
    :param what: what it does
    :param old: its text, which occurs once in its file
    :param new: what stands there without it
    :param tests: those that fail without it, ``"learner/test_kl.py::test_name"``, one or all cases
    """

    fault: int
    name: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Its file in the repository."""
        return Path("acktr", self.name.split(", ")[0])


def read_guards() -> tuple[dict[int, tuple[str, str]], list[Guard]]:
    """Return each fault with what happens then, by number, and all guards."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    guards = [Guard(**{**entry, "tests": tuple(entry["tests"])}) for entry in content["guards"]]
    return {number: tuple(texts) for number, texts in content["faults"].items()}, guards


def take_out(guard: Guard, folder: Path) -> None:
    """Take a guard out of a copy.

    :raises ValueError: its text does not occur exactly once
    """
    path = folder / guard.file
    text = path.read_text(encoding="utf-8")
    count = text.count(guard.old)
    if count != 1:
        raise ValueError(
            f"The text of the guard {guard.name} ({guard.what}) occurs {count} times in {guard.file}, "
            f"not once: {guard.old.splitlines()[0]!r}."
        )
    path.write_text(text.replace(guard.old, guard.new), encoding="utf-8")


def copy_to(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        else:
            shutil.copy(ROOT / name, folder / name)


def run_tests(folder: Path, tests: Iterable[str], limit: float) -> dict[str, str] | None:
    """Run tests of a copy.

    :param tests: names as in :class:`Guard`
    :param limit: seconds
    :return: ``"passed"``, ``"failed"`` or ``"skipped"`` for each case that was run; ``None`` if they
        did not end in time
    :raises RuntimeError: they could not be run
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
    command += ["--tb=short", f"--junitxml={report}", *(f"tests/{name}" for name in tests)]
    # The processes that tests start must find the copy too, wherever they run.
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except BaseException as error:
            # Ctrl-C does not reach a session of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    if process.returncode not in (0, 1) or not report.exists():
        raise RuntimeError(f"pytest ended with {process.returncode}:\n{output}")
    found = dict(_outcomes(report))
    if process.returncode == 1 and "failed" not in found.values():
        raise RuntimeError(f"Tests could not be run:\n{output}")
    return found


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(report).iter("testcase"):
        path = "/".join(case.attrib["classname"].split(".")[1:])
        if case.find("error") is not None:
            outcome = "error"
        elif case.find("failure") is not None:
            outcome = "failed"
        else:
            outcome = "passed" if case.find("skipped") is None else "skipped"
        yield f"{path}.py::{case.attrib['name']}", outcome


def outcomes_of(test: str, found: dict[str, str]) -> set[str]:
    """Return what became of the cases of a test."""
    return {outcome for case, outcome in found.items() if case == test or case.startswith(f"{test}[")}


def without(guard: Guard) -> str:
    """Run the tests of a guard without it.

    :return: ``"fail"`` if all did, ``"hang"`` if they did not end, ``"error"`` if they could not be run,
        else ``"pass: "`` and which
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_to(Path(folder))
        take_out(guard, Path(folder))
        try:
            found = run_tests(Path(folder), guard.tests, LIMIT)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return "error"
    if found is None:
        return "hang"
    passed = [test for test in guard.tests if "failed" not in outcomes_of(test, found)]
    return f"pass: {' '.join(passed)}" if passed else "fail"


def baseline(tests: Iterable[str]) -> dict[str, str]:
    """Run tests with all guards in.

    :raises RuntimeError: they did not end in time, or would not run in the copy
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        where = "import importlib.util as u; print(u.find_spec('acktr').origin)"
        env = {**os.environ, "PYTHONPATH": str(folder)}
        told = subprocess.check_output([sys.executable, "-c", where], cwd=folder, env=env, text=True)
        if not Path(told.strip()).resolve().is_relative_to(folder.resolve()):
            raise RuntimeError(f"The tests would run with {told.strip()}, not with the copy.")
        found = run_tests(folder, tests, BASELINE_LIMIT)
    if found is None:
        raise RuntimeError(f"The tests did not end within {BASELINE_LIMIT:g} seconds.")
    return found


def measure(guards: list[Guard], faults: dict[int, tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Yield a row for each guard."""
    found = baseline(dict.fromkeys(test for guard in guards for test in guard.tests))
    for guard in guards:
        passed = all(outcomes_of(test, found) == {"passed"} for test in guard.tests)
        yield {
            "number": str(guard.fault),
            "fault": faults[guard.fault][0],
            "guard": guard.name,
            "what": guard.what,
            "tests": " ".join(guard.tests),
            "baseline": "pass" if passed else "fail",
            "without": without(guard),
        }


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows, and keep those of other faults."""
    kept, faults = [], {int(row["number"]) for row in rows}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if int(row["number"]) not in faults]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: int(row["number"])))


def markdown(faults: dict[int, tuple[str, str]], guards: list[Guard]) -> str:
    """Return the table of the documentation."""
    lines = ["| # | fault | what happens | guard | test |", "| --- | --- | --- | --- | --- |"]
    last = None
    for guard in guards:
        head = (str(guard.fault), *faults[guard.fault]) if guard.fault != last else ("", "", "")
        last = guard.fault
        tests = ", ".join(f"`{test.split('::')[1].split('[')[0]}`" for test in guard.tests)
        lines.append(f"| {' | '.join(head)} | {guard.what}: `{guard.name}` | {tests} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="faults by their numbers")
    parser.add_argument("--out", type=Path, default=OUT, help="rows of faults left out stay as they are")
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation")
    arguments = parser.parse_args()
    faults, guards = read_guards()
    if arguments.markdown:
        print(markdown(faults, guards), end="")
        return 0
    chosen = [g for g in guards if not arguments.only or g.fault in arguments.only]
    rows = []
    begun = time.monotonic()
    for row in measure(chosen, faults):
        rows.append(row)
        write_rows(arguments.out, rows)
        seconds = f"{time.monotonic() - begun:.0f} s"
        shown = (row["number"], row["baseline"], row["without"], row["guard"], row["what"], seconds)
        print(*shown, sep="  ", flush=True)
    bad = [row for row in rows if row["baseline"] != "pass" or row["without"] not in ("fail", "hang")]
    print(f"{len(rows) - len(bad)} of {len(rows)} guards have tests that fail without them.")
    return int(bool(bad) or not rows)


if __name__ == "__main__":
    sys.exit(main())
