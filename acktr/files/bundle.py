"""Named trees as a set of files with a manifest: what checkpoints and saved models are made of.

::

    NAME.json           the tree
    NAME.safetensors    its tensors, if it has any
    manifest.json       format, version, and the size and SHA-256 of each file; over itself a checksum

The digests find damage. They are no signature: who can write the files can write the manifest. That
reading is safe does not depend on them: JSON and safetensors hold data alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from acktr.errors import (
    AcktrError,
    CheckpointVersionError,
    CheckpointWriteError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from acktr.files.codec import Absent, Encoded, Unstorable, decode, encode

VERSION = 3
MANIFEST = "manifest.json"

# From an older version to the next one: a function of components, and of what names them in messages.
# Whoever knows what is in them registers it.
MIGRATIONS: dict[int, Callable[[dict[str, Any], str], dict[str, Any]]] = {}

_MEBI = 2**20
MAX_MANIFEST = _MEBI
MAX_JSON = 256 * _MEBI
MAX_TENSOR_HEADER = 32 * _MEBI
_HEADER_ENTRY = 100  # bytes, about, in it for one tensor besides its name
MAX_FILES = 4096
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}\.(json|safetensors)")

# What reading a file can raise that is not what it says it is.
_DECODING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class Manifest(NamedTuple):
    """The contents of a manifest.

    :param kind: ``"model"`` or ``"checkpoint"``
    :param version: of the format
    :param files: size and SHA-256 by file name
    :param info: further plain values
    """

    kind: str
    version: int
    files: dict[str, tuple[int, str]]
    info: dict[str, Any]


class Packed(NamedTuple):
    """A component as bytes.

    :param json: of its tree
    :param tensors: its safetensors file, empty if there are none
    :param missing: what is only named, by the path to it
    """

    json: bytes
    tensors: bytes
    missing: dict[str, str]

    def tree(self, name: str) -> Any:
        """Return the component again.

        :param name: names it in messages
        """
        with decoding(name, "the state"):
            return decode(json.loads(self.json), load_tensors(self.tensors or None, name, name))


def pack(
    kind: str,
    components: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    name_missing: bool = False,
) -> dict[str, bytes]:
    """Turn components into files, the manifest last.

    :param kind: ``"model"`` or ``"checkpoint"``
    :param components: for each name a tree, or what :func:`pack_component` made of one
    :param info: plain values for the manifest
    :param name_missing: put a name in the place of a value that cannot be stored, and list it in the
        manifest under ``missing``
    :raises Unstorable: a value that cannot be stored, unless it may be named
    :raises CheckpointWriteError: a component that would be too large to be read again
    """
    files: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for name, tree in components.items():
        packed = tree if isinstance(tree, Packed) else pack_component(name, tree, name_missing)
        files[f"{name}.json"] = packed.json
        if packed.tensors:
            files[f"{name}.safetensors"] = packed.tensors
        missing.update({f"{name}: {path}": of for path, of in packed.missing.items()})
    content: dict[str, Any] = {
        "format": f"acktr-{kind}",
        "version": VERSION,
        "info": {**info, **({"missing": missing} if name_missing else {})},
        "files": {name: {"size": len(data), "sha256": _digest(data)} for name, data in files.items()},
    }
    content["checksum"] = _digest(_dump(content, sort_keys=True))
    files[MANIFEST] = json.dumps(content, indent=1, sort_keys=True).encode()
    return files


def pack_component(name: str, tree: Any, name_missing: bool = False) -> Packed:
    """Turn one component into bytes, from now on independent of it.

    :param name: of the component
    :param tree: the component
    :param name_missing: as for :func:`pack`
    :raises Unstorable: as :func:`pack`
    :raises CheckpointWriteError: as :func:`pack`
    """
    structure, tensors, missing = encode(tree, name_missing=name_missing)
    packed = Packed(_dump(structure), safetensors.torch.save(tensors) if tensors else b"", missing)
    problem = _too_large(len(packed.json), int.from_bytes(packed.tensors[:8], "little"))
    if problem:
        raise CheckpointWriteError(
            f"{name} cannot be saved ({problem}): keep large data in tensors or arrays, or out of what "
            "is saved."
        )
    return packed


def encode_part(tree: Any, *path: str) -> Encoded:
    """Encode a part of a component, and refuse what :func:`pack` would refuse of it.

    :param tree: the part
    :param path: to its place in the component
    :raises Unstorable: a value that cannot be stored, or too many of them
    """
    encoded = encode(tree, *path)
    header = sum(len(name) + _HEADER_ENTRY for name in encoded.tensors)
    problem = _too_large(len(_dump(encoded.structure)), header)
    if problem:
        raise Unstorable(problem)
    return encoded


def _too_large(json_size: int, header_size: int) -> str | None:
    if json_size > MAX_JSON:
        return f"its state has {json_size:,} bytes besides its arrays, and only {MAX_JSON:,} are read"
    if header_size > MAX_TENSOR_HEADER:
        return f"its state has so many arrays that their list alone takes {header_size:,} bytes"
    return None


def read_manifest(data: bytes, kind: str, where: str) -> Manifest:
    """Read and check a manifest.

    :param data: the file's content
    :param kind: what it must be the manifest of
    :param where: names it in messages
    :raises DamagedCheckpointError: it is not a manifest, or was changed
    :raises CheckpointVersionError: of another format or version
    :raises UnsafeCheckpointError: it names a file that is not one of a bundle's
    """
    with decoding(where, "the manifest"):
        content = json.loads(data)
        if content["format"] != f"acktr-{kind}":
            raise CheckpointVersionError(
                f"{where} is of the format {content['format']!r}, not acktr-{kind}: give a file of the "
                "right kind."
            )
        version = content["version"]
        if type(version) is not int or version > VERSION:
            raise CheckpointVersionError(
                f"{where} is of format version {version}, and this acktr reads up to {VERSION}: "
                "install a newer acktr."
            )
        if version != VERSION and version not in MIGRATIONS:
            raise CheckpointVersionError(
                f"{where} is of format version {version}, which this acktr no longer reads: load and "
                "save it with an older acktr first."
            )
        checksum = content.pop("checksum")
        if checksum != _digest(_dump(content, sort_keys=True)):
            raise DamagedCheckpointError(
                f"The manifest of {where} does not have its checksum: the file was changed or damaged."
            )
        files = {
            str(name): (_natural(entry["size"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        }
        info = dict(content["info"])
    for name in files:
        if not _NAME.fullmatch(name) or ".." in name or name == MANIFEST:
            raise UnsafeCheckpointError(
                f"The manifest of {where} names the file {name[:80]!r}, which is none of a checkpoint: "
                "nothing of it was read."
            )
    size = sum(size for size, _ in files.values())
    if size > largest_file():
        raise UnsafeCheckpointError(
            f"{where} has {size:,} bytes, more than half of this machine's memory: not read."
        )
    if len(files) > MAX_FILES:
        raise UnsafeCheckpointError(f"The manifest of {where} names {len(files)} files: too many.")
    return Manifest(kind, version, files, info)


def largest_file() -> float:
    """Return how many bytes the files of a bundle may have together, for this machine to read them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, OSError, ValueError):  # not on Windows
        return math.inf


def check_file(name: str, data: bytes, manifest: Manifest, where: str) -> None:
    """Compare a file with what the manifest says of it.

    :raises DamagedCheckpointError: naming the file
    """
    size, digest = manifest.files[name]
    if len(data) != size:
        raise DamagedCheckpointError(
            f"{name} of {where} has {len(data)} bytes where its manifest says {size}: it was cut off or "
            "changed."
        )
    if _digest(data) != digest:
        raise DamagedCheckpointError(
            f"{name} of {where} does not have the checksum of its manifest: it was changed or damaged."
        )


def unpack(
    files: Mapping[str, bytes],
    manifest: Manifest,
    where: str,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Turn checked files back into components.

    :param files: all that the manifest names, checked by :func:`check_file`
    :param manifest: theirs
    :param where: names them in messages
    :param given: for each component, values in the place of stored or of named ones, by path; ``None``
        where no value may be missing
    :raises DamagedCheckpointError: a file is not what it says it is, naming the component
    :raises UnsafeCheckpointError: absurd sizes
    :raises acktr.files.codec.Absent: a value that was named and is not given
    """
    components = {}
    for name in files:
        component, extension = name.rsplit(".", 1)
        if extension != "json":
            if f"{component}.json" not in files:
                raise DamagedCheckpointError(f"{component}.json of {where} is missing.")
            continue
        own = None if given is None else given.get(component, {})
        with decoding(where, name, absent=own is not None):
            structure = _load_json(files[name], name, where)
            tensors = load_tensors(files.get(f"{component}.safetensors"), component, where)
            components[component] = decode(structure, tensors, own)
    for version in range(manifest.version, VERSION):
        with decoding(where, f"the state, of version {version}"):
            components = MIGRATIONS[version](components, where)
    return components


def _load_json(data: bytes, name: str, where: str) -> Any:
    if len(data) > MAX_JSON:
        raise UnsafeCheckpointError(f"{name} of {where} is larger than {MAX_JSON} bytes: not read.")
    return json.loads(data)


def load_tensors(data: bytes | None, component: str, where: str) -> dict[str, Tensor]:
    """Read tensors, none if there is no file of them.

    :param data: a safetensors file
    :param component: names it in messages
    :param where: names the whole in messages
    :raises UnsafeCheckpointError: its header is absurdly large
    """
    if data is None:
        return {}
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > len(data) - 8:
        raise DamagedCheckpointError(f"{component}.safetensors of {where} is cut off in its header.")
    if header > MAX_TENSOR_HEADER:
        raise UnsafeCheckpointError(
            f"{component}.safetensors of {where} has a header of {header} bytes: more than any network "
            "needs, and not read."
        )
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    return tensors


@contextlib.contextmanager
def decoding(where: str, part: str, absent: bool = False) -> Iterator[None]:
    """Turn whatever the decoding of a file raises into one sentence.

    :param where: names the whole
    :param part: names the part
    :param absent: let pass :class:`~acktr.files.codec.Absent`, for a caller that knows what to do
    :raises DamagedCheckpointError: in the place of errors that are not about checkpoints
    """
    try:
        yield
    except _DECODING as error:
        if absent and isinstance(error, Absent):
            raise
        if isinstance(error, CheckpointVersionError | DamagedCheckpointError | UnsafeCheckpointError):
            raise
        kind = "" if isinstance(error, AcktrError) else f"{type(error).__name__}: "
        problem = " ".join(f"{kind}{error}".split())[:200]
        raise DamagedCheckpointError(f"{part} of {where} cannot be read ({problem}).") from error


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _dump(value: Any, sort_keys: bool = False) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
