"""Reading of files that others may have written: plain, of bounded size; JSON; YAML that stays small."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_TEXT = 2**20  # bytes of a configuration or a preset
MAX_NODES = 100_000  # values in it, each counted as often as an alias repeats it
MAX_DEPTH = 100  # of lists and mappings within each other
_INTEGERS = 2**63  # whole numbers are below


def read_plain(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a plain file that is not larger than it may be.

    A pipe would be waited for, a device has no end, and a file with holes takes no room on the disk.

    :param path: the file
    :param limit: bytes
    :raises OSError: it cannot be opened, is no plain file, or is larger
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        data = file.read(limit + 1) if about.st_size <= limit else b""
    if max(about.st_size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return data


def parse_json(data: bytes | str) -> Any:
    """Read JSON.

    :raises ValueError: it is none, or its lists and mappings lie too deep within each other
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it has too many levels of lists and mappings") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a file of YAML: None, booleans, numbers, strings, lists and mappings alone.

    :param path: the file
    :raises OSError: see :func:`read_plain`
    :raises ValueError: it is none, is too large, or holds something else
    """
    return parse_yaml(read_plain(Path(path), MAX_TEXT).decode("utf-8"))


def parse_yaml(text: str) -> Any:
    """Read YAML, as :func:`read_yaml` does.

    :raises ValueError: it is none, is too large, or holds something else
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT:,} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # What stands for a number and is none, such as 0x_, is no error of YAML's.
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """``safe_load`` that reads ``1e-3`` as a number, as YAML 1.2 does, and no dates, as it does.

    Aliases cost nothing to read, and may stand for more than any memory holds once somebody looks at all
    of it: what they repeat is counted.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # values below a node, and their depth
        self._nodes: list[yaml.Node] = []  # so that no two ever have one id

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, and count what is below it."""
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it has more than {MAX_DEPTH} levels of lists and mappings")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.YAMLError("an alias stands for a part of itself")
        if not alias:
            self._count(node)
        return node

    def _count(self, node: Any) -> None:
        if node.tag not in _TAGS:
            raise yaml.YAMLError(f"it has a value of the kind {node.tag}, which is not read")
        below: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        parts = [self._sizes[id(part)] for part in below]
        weight = 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1
        size = weight + sum(count for count, _ in parts)
        depth = 1 + max((deep for _, deep in parts), default=0)
        if size > MAX_NODES or depth > MAX_DEPTH:
            raise yaml.YAMLError(
                f"with its aliases written out it has more than {MAX_NODES:,} values, or {MAX_DEPTH} "
                "levels"
            )
        self._sizes[id(node)] = size, depth
        self._nodes.append(node)

    def construct_yaml_int(self, node: Any) -> int:
        """Read an integer that fits into 64 bits."""
        value = int(super().construct_yaml_int(node))
        if not -_INTEGERS <= value < _INTEGERS:
            raise ValueError("a whole number has more than 64 bits")
        return value


_PREFIX = "tag:yaml.org,2002:"
_TAGS = {f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_Loader.add_constructor(f"{_PREFIX}int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    f"{_PREFIX}float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(f"{_PREFIX}null", re.compile("None$"), ["N"])  # as Python writes it
# A class has its own resolvers from the first one that is added.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
