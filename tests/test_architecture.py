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

# The rooms from top to bottom: each imports those below it only, annotations included.
ROOMS = (
    "cli", "zoo", "compare", "run", "presets", "learner", "rollout", "envs", "networks", "distributed",
    "files", "kfac",
)  # fmt: skip
# Files beside them, which know no room.
GROUND = {"devices", "errors", "schedules"}


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


def modules() -> dict[str, Path]:
    """The modules of the package by their dotted names."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE
    }


def dependencies() -> dict[str, set[str]]:
    """The modules that each module names in an import, wherever it stands: deferred, or for types."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        named = set()
        for i in imports(path):
            # `from acktr import distributed` needs that module, and not all that acktr offers.
            module = i.name if i.name in known else i.name.rpartition(".")[0]
            if module in known and module != "acktr":
                named.add(module)
        found[name] = named - {name}
    return found


def test_every_room_is_known():
    assert {room(path) for path in PACKAGE} == {*ROOMS, *GROUND, "__init__", "__main__"}


def test_no_room_imports_one_above_it():
    place = {name: row for row, name in enumerate(ROOMS)} | dict.fromkeys(GROUND, len(ROOMS))
    known = modules()
    wrong = [
        f"{name} imports {other}"
        for name, others in dependencies().items()
        for other in others
        if room(known[name]) in place and place[room(known[other])] < place[room(known[name])]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others():
    left = dependencies()
    while ends := [name for name, others in left.items() if not others]:
        left = {name: others - set(ends) for name, others in left.items() if name not in ends}
    # What only leads to a circle is none itself.
    while starts := [name for name in left if not any(name in others for others in left.values())]:
        left = {name: others for name, others in left.items() if name not in starts}
    assert not left, "\n".join(f"{name} imports {', '.join(sorted(left[name]))}" for name in left)


def test_only_the_face_of_the_learner_knows_acktr():
    """No function below ``learner/algorithm.py`` takes an ACKTR."""
    below = ROOMS[ROOMS.index("learner") :]
    wrong = [
        shown(path)
        for path in PACKAGE
        if room(path) in below and path.name != "algorithm.py"
        if any(i.within("acktr.learner.algorithm") or i.name == "acktr.ACKTR" for i in imports(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_processes_speak_in_three_files_alone():
    allowed = {"acktr/kfac/comm.py", "acktr/distributed/launch.py", "acktr/distributed/messages.py"}
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
