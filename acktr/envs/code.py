"""The code that an environment is made of, so that a resumed run can tell whether it is the same."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gymnasium.envs.registration import load_env_creator

from acktr.envs.lookup import find_spec
from acktr.envs.together import is_together
from acktr.files.durable import open_plain

# Their versions are compared anyway.
_KNOWN = {"acktr", "envpool", "gymnasium", "mujoco", "numpy", "stable_baselines3", "torch"}
_KNOWN |= sys.stdlib_module_names - {"__main__"}
_MAX_FILE = 2**26


def environment_code(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the packages and the digests of the modules that make an environment.

    Modules outside of installed packages are followed into what they import of their like. Files that
    an argument names belong to it too.

    :param env_id: of an environment that was built, so that all is imported
    :param env_kwargs: its arguments
    """
    spec = find_spec(env_id)
    maker = spec.vector_entry_point if is_together(spec) else spec.entry_point
    makers = [maker, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
    makers += [value for value in spec.kwargs.values() if callable(value)]
    found: dict[str, str] = {}
    to_do = [name for maker in makers for name in _modules_of(maker)]
    seen = set(to_do)
    while to_do:
        name = to_do.pop()
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        top = name.partition(".")[0]
        if module is None or path is None or top in _KNOWN:
            continue
        if version := _version(top, Path(path)):
            found[top] = version
            continue
        content = _read(path)
        found[name] = _digest(content)
        new = {*_parents(name), *_imports(module, content)} - seen
        seen |= new
        to_do += new
    for text in _texts(env_kwargs):
        if os.path.isfile(text):
            found[text] = _digest(_read(text))
    return dict(sorted(found.items()))


def _modules_of(maker: Any) -> Iterator[str]:
    """Name the modules of what makes an environment: a class and its bases, or a function."""
    if isinstance(maker, str):
        try:
            maker = load_env_creator(maker)
        except (AttributeError, ImportError, ValueError):
            return  # of an engine that is not used
    while isinstance(maker, functools.partial):
        maker = maker.func
    if isinstance(maker, type):
        yield from (base.__module__ for base in inspect.getmro(maker))
    else:
        yield str(getattr(maker, "__module__", None) or type(maker).__module__)


def _version(package: str, path: Path) -> str | None:
    """Return the version of an installed package, ``None`` for code that lies elsewhere."""
    if not {"site-packages", "dist-packages"} & set(path.parts):
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package)
        return importlib.metadata.version(names[0]) if names else None


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _imports(module: ModuleType, content: bytes) -> Iterator[str]:
    """Name what a module imports when it is itself imported."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # compiled
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                with contextlib.suppress(ImportError):  # it would not have been imported
                    base = importlib.util.resolve_name(f"{'.' * node.level}{base}", module.__package__)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _read(path: str) -> bytes:
    try:
        with open_plain(Path(path)) as file:
            return file.read(_MAX_FILE)
    except OSError:
        return b""


def _digest(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()[:16]}"
