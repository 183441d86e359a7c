"""Who may import whom, read from the syntax trees, and other promises about the files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "acktr").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *(f for d in ("benchmarks", "docs", "examples", "tests") for f in (ROOT / d).rglob("*.py")),
]

# What a module of acktr may import when it is itself imported. Anything else is an extra and is
# imported inside the function that needs it. TensorBoard hides behind torch's name.
CORE = {"torch", "stable_baselines3", "gymnasium", "numpy", "tyro", "pydantic", "yaml"}
CORE |= {"safetensors", "rich", "tqdm", "matplotlib"}
HIDDEN_EXTRAS = ("torch.utils.tensorboard", "gymnasium.envs.mujoco")

# Room: the rooms above it, which it never imports.
ABOVE = {
    "rollout": {"algorithm", "experiment", "cli"},
    "distributed": {"algorithm", "experiment", "cli"},
    "envs": {"algorithm", "experiment", "cli"},
    "checkpoint": {"algorithm", "presets", "runs", "saver", "training", "experiment", "compare", "cli"},
    "algorithm": {"envs", "presets", "runs", "experiment", "compare", "cli"},
    "presets": {"experiment", "compare", "cli"},
    "tables": {"runs", "saver", "training", "experiment", "compare", "cli"},
    "runs": {"saver", "training", "experiment", "compare", "cli"},
    "resuming": {"saver", "training", "experiment", "compare", "cli"},
    "saver": {"training", "experiment", "compare", "cli"},
    "training": {"experiment", "compare", "cli"},
    "experiment": {"compare", "cli"},
    "compare": {"cli"},
}


class Import(NamedTuple):
    """An imported name with its dots; deferred: not executed when the module is imported."""

    name: str
    where: str
    deferred: bool

    def within(self, *packages: str) -> bool:
        return any(f"{self.name}.".startswith(f"{package}.") for package in packages)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it runs later than the import of its module."""
    deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        inside = deferred or (is_type_checking(node) and child in node.body)
        yield child, inside
        yield from walk(child, inside)


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """What a file imports: ``from .a import b`` counts as both ``acktr.a`` and ``acktr.a.b``."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node, deferred in walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{shown(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found += [Import(alias.name, where, deferred) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            found += [Import(f"{base}.{alias.name}", where, deferred) for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            found.append(Import("torch.distributed", where, deferred))
    return tuple(found)


def room(path: Path) -> str:
    return path.relative_to(ROOT / "acktr").parts[0].removesuffix(".py")


def test_kfac_imports_torch_alone():
    allowed = {*sys.stdlib_module_names, "torch"}
    wrong = [
        f"{i.where} imports {i.name}"
        for path in PACKAGE
        if room(path) == "kfac"
        for i in imports(path)
        if i.name.split(".")[0] not in allowed and not i.within("acktr.kfac")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_room_imports_one_above_it():
    wrong = [
        f"{i.where} imports {i.name}"
        for path in PACKAGE
        for above in ABOVE.get(room(path), ())
        for i in imports(path)
        if i.within(f"acktr.{above}") or (above == "algorithm" and i.name == "acktr.ACKTR")
    ]
    assert not wrong, "\n".join(wrong)


def test_processes_speak_in_two_files_alone():
    allowed = {"acktr/kfac/comm.py", "acktr/distributed.py"}
    wrong = [
        i.where
        for path in SOURCES
        if shown(path) not in allowed and not shown(path).startswith("tests/")
        for i in imports(path)
        if i.within("torch.distributed")
    ]
    assert not wrong, "\n".join(wrong)


def test_extras_are_imported_where_they_are_used():
    allowed = {*sys.stdlib_module_names, *CORE, "acktr"}
    wrong = [
        f"{i.where} imports {i.name}"
        for path in PACKAGE
        for i in imports(path)
        if not i.deferred and (i.name.split(".")[0] not in allowed or i.within(*HIDDEN_EXTRAS))
    ]
    assert not wrong, "\n".join(wrong)


def test_kfac_works_without_stable_baselines3_and_gymnasium():
    code = "import sys; sys.modules.update(stable_baselines3=None, gymnasium=None); import acktr.kfac"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_file_holds_at_most_400_lines(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400


def test_no_path_of_one_machine_is_tracked():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w.~])/(?:work|root|home|farm|Users|tmp)/\w[^\s\"'`)]*")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    wrong = [
        f"{shown(path)}: {match}"
        for path in files
        if path.is_file()
        for match in machine.findall(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_version_is_the_same_everywhere():
    version = metadata.version("acktr")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
