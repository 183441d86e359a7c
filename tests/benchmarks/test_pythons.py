"""The trial of every Python: what it finds and runs, and what of it fits the present interpreter."""

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.pythons import environments as pythons
from benchmarks.pythons import report as pythons_report
from benchmarks.pythons.checks import INSTALLS_NOTHING, Check, checks, readme_blocks

EXTRAS = [e for e in metadata.metadata("acktr").get_all("Provides-Extra") if e not in pythons.LEFT_OUT]
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def python(code, **expected):
    return Check("code", ("-c", code), **expected)


def test_every_extra_is_checked_on_every_python():
    for minor in pythons.PYTHONS:
        assert checks(minor).keys() == {"", *EXTRAS}
        assert all(checks(minor).values())


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("minor", pythons.PYTHONS)
def test_an_extra_brings_something_or_is_known_to_bring_nothing(extra, minor):
    where = {"python_version": minor, "python_full_version": f"{minor}.0", "extra": extra}
    lines = [Requirement(line) for line in metadata.requires("acktr")]
    brought = [r.name for r in lines if r.marker and r.marker.evaluate(where)]
    assert bool(brought) == (minor not in INSTALLS_NOTHING.get(extra, ()))


def test_the_pythons_are_those_that_the_package_promises():
    about = metadata.metadata("acktr")
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(about.get_all("Classifier")))
    assert promised == list(pythons.PYTHONS[: len(promised)])
    assert about["Requires-Python"] == f">={promised[0]}"


def test_the_readme_is_shortened_and_whole():
    example, kfac = readme_blocks()
    assert "model.learn(20000, progress_bar=True)" in example
    assert "ACKTR.load" in example
    assert "kfac.step(forward=" in kfac
    for block in (example, kfac):
        compile(block, "README.md", "exec")


def test_the_present_interpreter_saves_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(pythons, "_WITHOUT", ("VIRTUAL_ENV",))
    (check,) = (check for check in checks(MINOR)[""] if check.name == "save, load, go on")
    assert pythons.run(check, Path(sys.executable), tmp_path) == "ok"


@pytest.mark.slow
def test_the_present_interpreter_does_all_that_the_wheel_alone_can_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pythons, "_WITHOUT", ("VIRTUAL_ENV",))
    found = {c.name: pythons.run(c, Path(sys.executable), tmp_path) for c in checks(MINOR)[""]}
    assert set(found.values()) == {"ok"}, found


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (python("print(1)"), "ok"),
        (python("print('some  thing')", says="some thing"), "ok"),
        (python("print(1)", says="2"), "does not say '2': 1"),
        (
            python("open('none')"),
            "exit code 1: FileNotFoundError: [Errno 2] No such file or directory: 'none'",
        ),
        (python("import sys; sys.exit(2)", exit_code=2), "ok: refused"),
        (python("import os; print(1, flush=True); os.kill(os.getpid(), 11)"), "killed by SIGSEGV: 1"),
        (python("print('A/B/c.py:1: UserWarning: old\\n' * 2)"), "ok, but warns: UserWarning: old (×2)"),
        (python("print('WARNING: it is old')"), "ok, but warns: WARNING: it is old (×1)"),
        (
            python("import sys; print('ERROR: no x'); print('a hint', file=sys.stderr); sys.exit(1)"),
            "exit code 1: ERROR: no x",
        ),
    ],
)
def test_an_outcome_is_one_line(check, outcome, tmp_path):
    assert pythons.run(check, Path(sys.executable), tmp_path) == outcome


def test_nothing_of_this_machine_is_in_an_outcome():
    printed = "x.py at /opt/here/x.py and file:///opt/a.whl, https://example.org/simple/ of a/b, 1/2"
    assert pythons.without_paths(printed) == "x.py at x.py and … … of a/b, 1/2"


def test_interpreters_are_found_by_what_they_say_of_themselves(tmp_path, monkeypatch):
    def put(path, version):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 1\n")
        path.chmod(0o755)

    # A shim that is switched off, two of pyenv's in order of version, one of uv's, one that is another.
    put(tmp_path / "bin" / "python3.10", "")
    for version in ("3.10.9", "3.10.13"):
        put(tmp_path / "pyenv/versions" / version / "bin" / "python3.10", version)
    put(tmp_path / "data/uv/python/cpython-3.12.4-linux/bin/python3.12", "3.12.4")
    put(tmp_path / "pyenv/versions/3.13.0/bin/python3.13", "2.7.18")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    found = [(minor, full) for minor, full, _ in pythons.find_interpreters()]
    assert found == [("3.10", "3.10.13"), ("3.12", "3.12.4")]


def test_results_of_other_pythons_are_kept_and_a_missing_one_is_named(tmp_path, monkeypatch, capsys):
    other = {"python": "3.12", "extra": "", "check": "pip install", "outcome": "ok"}
    stale = {**other, "python": "3.10", "outcome": "exit code 1: a | b"}
    about = {"3.12": {"date": "2026-01-01", "python": "3.12.1", "versions": {"torch": "2.13.0"}}}
    pythons.write(tmp_path, [stale, other], about)
    monkeypatch.setattr(pythons, "find_interpreters", lambda only: iter(()))
    monkeypatch.setattr(pythons, "build_wheel", lambda folder: folder)
    assert pythons.main(["--only", "3.10", "--out", str(tmp_path)]) == 0
    assert "3.10: not found" in capsys.readouterr().err
    rows, manifest = pythons.read(tmp_path)
    assert rows == [other]
    assert manifest["3.12"] == about["3.12"]
    assert manifest["3.10"]["python"] is None
    page = pythons_report.tables(tmp_path)
    assert "|  | interpreter | not found | 3.12.1 |" in page
    assert "|  | pip install | – | ok |" in page
    assert "| torch | – | 2.13.0 |" in page


def test_a_python_is_tried_extra_by_extra_and_its_environments_removed(tmp_path, monkeypatch):
    class Environment:
        def __init__(self, interpreter, folder, base=None):
            self.folder = folder
            self.folder.mkdir()

        def install(self, wheel, extra):
            return "exit code 1: ERROR: none" if extra == "hub" else "ok"

        def installed(self):
            return {"torch": "2.13.0"}

        def run(self, check):
            return "ok"

        def remove(self):
            self.folder.rmdir()

    monkeypatch.setattr(pythons, "Environment", Environment)
    monkeypatch.setattr(pythons, "extras", lambda wheel: EXTRAS)
    interpreter = pythons.Interpreter("3.12", "3.12.1", sys.executable)
    rows = [row for row, _ in pythons.try_python(interpreter, tmp_path, tmp_path)]
    assert len(rows) == sum(1 + len(of) for of in checks("3.12").values())
    assert [row["extra"] for row in rows if row["outcome"] != "ok"] == ["hub"]
    assert not list(tmp_path.iterdir())


def test_the_wheel_tells_its_extras(tmp_path):
    folder = tmp_path / "acktr-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: acktr\nProvides-Extra: atari\nProvides-Extra: dev\n")
    wheel = Path(shutil.make_archive(str(tmp_path / "acktr-1"), "zip", tmp_path, "acktr-1.dist-info"))
    assert pythons.extras(wheel) == ["atari"]
