"""Tries the package on every Python that it supports: ``python -m benchmarks.pythons``.

    python -m benchmarks.pythons [--only 3.10 3.13] [--extras zoo onnx] [--envs DIR] [--out DIR]

The wheel is built once. Each interpreter that is found (on the path, among pyenv's and uv's) gets a
fresh environment, into which pip installs the wheel as anyone would, without constraints; what
:mod:`benchmarks.pythons.checks` lists is run there. Then each extra is installed, in an environment of
its own that holds nothing else but what it sees of the first. An environment takes up to 6 GB, as pip's
torch on Linux brings CUDA, and is removed when its Python is done.

``pythons.csv`` has a row for each check, ``manifest.json`` the versions that pip chose. Rows of other
Pythons, and of other extras, are kept. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import Path as ZipPath

from acktr.run.directory import versions
from benchmarks.pythons.checks import Check, checks

OUT = Path(__file__).resolve().parents[1] / "results" / "pythons"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
COLUMNS = ("python", "extra", "check", "outcome")
LEFT_OUT = ("dev",)  # an extra for a clone: `make setup` pins it
# Where interpreters lie that are not on the path; the last in order of version is taken.
PLACES = (
    "{pyenv}/versions/{version}.*/bin/python{version}",
    "{data}/uv/python/cpython-{version}.*/bin/python{version}",
)
# Of these the versions are kept.
PACKAGES = (
    "torch",
    "numpy",
    "stable-baselines3",
    "gymnasium",
    "mujoco",
    "ale-py",
    "envpool",
    "sb3-contrib",
)
PACKAGES += ("rl-zoo3", "moviepy", "matplotlib", "pydantic", "tyro", "safetensors", "scipy", "box2d")
_INSTALL = "pip install"
_WITHOUT = ("PYTHONPATH", "VIRTUAL_ENV")
_LONGEST = 160  # of a sentence in a cell
_SECONDS = 3600


class Interpreter(NamedTuple):
    """A Python: its minor version, such as "3.12", its full one, and where it is."""

    minor: str
    full: str
    path: str


# Interpreters -------------------------------------------------------------------------------


def find_interpreters(minors: Iterable[str] = PYTHONS) -> Iterator[Interpreter]:
    """Return an interpreter of each version, of those that are found and run.

    :param minors: versions such as "3.12"
    """
    for minor in minors:
        for path in _candidates(minor):
            full = _version(path)
            # A shim of pyenv is on the path for versions that are not switched on.
            if full is not None and full.startswith(f"{minor}."):
                yield Interpreter(minor, full, path)
                break


def _candidates(minor: str) -> Iterator[str]:
    on_path = shutil.which(f"python{minor}")
    if on_path is not None:
        yield on_path
    places = {
        "pyenv": os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv",
        "data": os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share",
    }
    for place in PLACES:
        root, _, pattern = place.format(**places, version=minor).partition("*")
        folder, _, begin = root.rpartition("/")
        found = [str(path) for path in Path(folder).glob(f"{begin}*{pattern}")]
        yield from sorted(found, key=_numbers, reverse=True)


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path)]


def _version(path: str) -> str | None:
    code = "import platform; print(platform.python_version())"
    try:
        answer = subprocess.run(
            [path, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


# Environments -------------------------------------------------------------------------------


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout and return its path.

    :param folder: an empty one
    """
    root = Path(__file__).resolve().parents[2]
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*line, str(root)], check=True, timeout=_SECONDS)
    (wheel,) = folder.glob("*.whl")
    return wheel


def extras(wheel: Path) -> list[str]:
    """Return the extras that a user may ask for."""
    (info,) = (entry for entry in ZipPath(wheel).iterdir() if entry.name.endswith(".dist-info"))
    declared = PathDistribution(info).metadata.get_all("Provides-Extra") or []  # type: ignore[arg-type]
    return [extra for extra in declared if extra not in LEFT_OUT]


class Environment:
    """A fresh virtual environment, with a directory in which everything is run.

    :param interpreter: makes it
    :param folder: for it; must not exist
    :param base: an environment whose packages it sees as well
    """

    def __init__(self, interpreter: Interpreter, folder: Path, base: Environment | None = None) -> None:
        self.python = folder / "bin" / "python"
        self.run_in = folder / "run"
        self._folder = folder
        subprocess.run([interpreter.path, "-m", "venv", str(folder)], check=True, timeout=_SECONDS)
        self.run_in.mkdir()
        if base is not None:
            line = f"import site; site.addsitedir({base.packages!r})\n"
            Path(self.packages, "base.pth").write_text(line, encoding="utf-8")

    @property
    def packages(self) -> str:
        (folder,) = self._folder.glob("lib/python*/site-packages")
        return str(folder)

    def install(self, wheel: Path, extra: str) -> str:
        """Install the wheel and return the outcome."""
        name = f"acktr[{extra}]" if extra else "acktr"
        requirement = f"{name} @ {wheel.as_uri()}"
        arguments = ("-m", "pip", "install", "--quiet", requirement)
        outcome = self.run(Check(_INSTALL, arguments))
        return self.run(Check("pip check", ("-m", "pip", "check"))) if outcome == "ok" else outcome

    def run(self, check: Check) -> str:
        """Run a check, see :func:`run`."""
        return run(check, self.python, self.run_in)

    def installed(self) -> dict[str, str]:
        """Return the versions of :data:`PACKAGES`."""
        line = [str(self.python), "-m", "pip", "list", "--format=json"]
        answer = subprocess.run(line, capture_output=True, check=True, env=_environ(), timeout=_SECONDS)
        names = {p["name"].lower().replace("_", "-"): p["version"] for p in json.loads(answer.stdout)}
        return {name: names[name] for name in (*PACKAGES, "pip") if name in names}

    def remove(self) -> None:
        """Remove it with all its files."""
        shutil.rmtree(self._folder)


def run(check: Check, python: Path, folder: Path) -> str:
    """Run a check and return ``ok``, with a warning that it printed, or what failed in one line.

    :param check: what is run
    :param python: the interpreter
    :param folder: where
    """
    line = [str(python), *check.arguments]
    settings: dict[str, Any] = {"cwd": folder, "env": _environ(), "timeout": _SECONDS}
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, **settings)
    except subprocess.TimeoutExpired:
        return f"not over after {_SECONDS} s"
    printed = without_paths(f"{done.stdout}\n{done.stderr}")
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}: {last_line(printed)}"
    if done.returncode != check.exit_code:
        return f"exit code {done.returncode}: {last_line(printed)}"
    if check.says not in " ".join(printed.split()):
        return f"does not say {check.says!r}: {last_line(printed)}"
    if check.exit_code:
        return "ok: refused"
    warned = [] if check.name == _INSTALL else warnings(printed)
    return f"ok, but warns: {warned[0]} (×{len(warned)})" if warned else "ok"


def _environ() -> dict[str, str]:
    """Return the environment variables of everything that is run."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _WITHOUT},
        "OMP_NUM_THREADS": "1",
        "PIP_CONSTRAINT": os.devnull,  # nor those of this machine
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def without_paths(printed: str) -> str:
    """Return an output without what is of this machine: addresses, and folders before a file's name."""
    printed = re.sub(r"\b(?:file|https?)://\S+", "…", printed)
    return re.sub(r"(?<![\w.~])/(?:[\w.+@-]+/)+", "", printed)


def last_line(printed: str) -> str:
    """Return the line of an output that says what went wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "error:"))]  # of pip
    line = next(reversed(errors or lines), "nothing")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def warnings(printed: str) -> list[str]:
    """Return the warnings of an output."""
    found = re.findall(r"\b(?:\w*Warning|WARNING): .*", printed)
    return [line.strip()[:_LONGEST] for line in found]


# The table ----------------------------------------------------------------------------------


def try_python(
    interpreter: Interpreter, wheel: Path, folder: Path, chosen: Collection[str] | None = None
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Install and check everything; yields a row after each check, and the versions so far.

    :param interpreter: in which
    :param wheel: of the package
    :param folder: for environments; they are removed
    :param chosen: extras; all by default
    """
    base = Environment(interpreter, folder / interpreter.minor)
    todo = checks(interpreter.minor)
    found: dict[str, str] = {}
    for extra in ("", *(extra for extra in extras(wheel) if chosen is None or extra in chosen)):
        name = f"{interpreter.minor}-{extra}"
        environment = Environment(interpreter, folder / name, base) if extra else base
        outcome = environment.install(wheel, extra)
        found = {**environment.installed(), **found}
        row = {"python": interpreter.minor, "extra": extra}
        yield {**row, "check": _INSTALL, "outcome": outcome}, found
        for check in todo[extra]:
            yield {**row, "check": check.name, "outcome": environment.run(check)}, found
        if extra:
            environment.remove()
    base.remove()


def read(out: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Return the rows and the manifest of earlier trials.

    :param out: the directory of results
    """
    rows: list[dict[str, str]] = []
    if (out / "pythons.csv").exists():
        with (out / "pythons.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    manifest = out / "manifest.json"
    return rows, json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}


def write(out: Path, rows: Iterable[Mapping[str, str]], manifest: Mapping[str, Any]) -> None:
    """Write rows and manifest."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pythons.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every Python that is found, and write what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pythons", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=PYTHONS, default=PYTHONS, help="these versions")
    parser.add_argument("--extras", nargs="+", help="these extras, and the wheel alone")
    parser.add_argument(
        "--envs", type=Path, help="where environments are made (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    rows, manifest = read(options.out)
    interpreters = {found.minor: found for found in find_interpreters(options.only)}
    failed = False
    with tempfile.TemporaryDirectory(dir=options.envs) as folder:
        wheel = build_wheel(Path(folder, "wheel"))
        for minor in options.only:
            again = None if options.extras is None else {"", *options.extras}
            rows = [r for r in rows if r["python"] != minor or (again and r["extra"] not in again)]
            before = manifest.pop(minor, {}).get("versions", {}) if again else {}
            if minor not in interpreters:
                print(f"{minor}: not found", file=sys.stderr)
                manifest[minor] = {"date": date.today().isoformat(), "python": None}
                continue
            about = versions()
            kept = {"date": date.today().isoformat(), "python": interpreters[minor].full}
            kept |= {key: about[key] for key in ("git_commit", "platform")}
            for row, found in try_python(interpreters[minor], wheel, Path(folder), again):
                rows.append(row)
                failed |= not row["outcome"].startswith("ok")
                manifest[minor] = {**kept, "versions": {**before, **found}}
                write(options.out, rows, manifest)
                print(*row.values(), sep=" | ", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (PYTHONS.index(row["python"]), row["extra"]))
    write(options.out, rows, manifest)
    return int(failed)
