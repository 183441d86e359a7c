"""Checks of a received configuration: no modules run and no files opened that nobody asked for."""

from collections.abc import Iterator, Mapping
from typing import Any

from acktr.envs.lookup import import_module
from acktr.errors import ConfigurationError


def check_received(
    settings: Mapping[str, Any],
    where: str,
    *,
    allow_import: bool,
    typed: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a configuration that names a module or a file; it may be somebody else's.

    Classes of policies are refused where they are looked up, see :mod:`acktr.presets.classes`.

    :param settings: of a run
    :param where: names their file
    :param allow_import: import the module of its environment, and let it open the files
    :param typed: settings that the user gives anew: what they name, he knows
    :raises ConfigurationError: naming what would be imported or opened
    """
    env_id, typed = str(settings["env_id"]), typed or {}
    module = env_id.rpartition(":")[0]
    if module and typed.get("env_id") != env_id:
        import_module(module, f"the environment {env_id!r} in {where}", allow_import=allow_import)
    known = dict(_paths(typed.get("env_kwargs"), "env_kwargs"))
    for name, path in _paths(settings.get("env_kwargs"), "env_kwargs"):
        if not allow_import and known.get(name) != path:
            raise ConfigurationError(
                f"{name} in {where} is {path!r}, which the environment may open or import: if you trust "
                "it, pass --allow-import, in Python allow_import=True."
            )


def _paths(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield what may be the name of a file or of a module in one, with the names of the settings."""
    if isinstance(value, str):
        if any(c in value for c in "/\\:") or value.startswith((".", "~")):
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths(item, f"{name}.{index}")
