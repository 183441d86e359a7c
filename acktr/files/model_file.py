"""Saved models: a ``.zip`` as SB3's callbacks expect it, of JSON and safetensors; nothing is unpickled.

SB3's own files hold pickles, whose loading may run anything. They are loaded under ``trust=True`` alone.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import stable_baselines3
from stable_baselines3.common.utils import get_system_info

from acktr.errors import CheckpointWriteError, DamagedCheckpointError, UnsafeCheckpointError
from acktr.files.bundle import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST,
    Manifest,
    check_file,
    decoding,
    pack,
    read_manifest,
    unpack,
)
from acktr.files.durable import write_file

# Components of a model file that are no parameters: arguments and attributes, and what belongs to the
# model and lies in its environments.
DATA, NORMALIZATION = "data", "normalization"

# For people and tools; never read as data.
_EXTRAS = {"_stable_baselines3_version", "system_info.txt"}

ModelPath = str | os.PathLike[str] | io.BufferedIOBase


class ModelFile(NamedTuple):
    """A model file that was read and checked, and not yet decoded.

    :param where: names it in messages
    :param manifest: what it tells of itself
    :param files: by name
    :param system_info: of the machine that saved it
    """

    where: str
    manifest: Manifest
    files: dict[str, bytes]
    system_info: str

    def decode(
        self, names: set[str] | None = None, given: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return components by name.

        :param names: of those wanted; ``None`` for all
        :param given: see :func:`acktr.files.bundle.unpack`
        """
        wanted = {
            name: data
            for name, data in self.files.items()
            if names is None or name.rsplit(".", 1)[0] in names
        }
        return unpack(wanted, self.manifest, self.where, given)


def write_model(path: ModelPath, components: Mapping[str, Any]) -> dict[str, str]:
    """Write a model file, whole or not at all.

    :param path: a path, to which ``.zip`` is added if it has no suffix, or a file open for writing
    :param components: trees by name
    :return: what could not be stored and is only named, by the path to it
    :raises CheckpointWriteError: it could not be written
    """
    files = pack("model", components, {"acktr": _version()}, name_missing=True)
    files["_stable_baselines3_version"] = stable_baselines3.__version__.encode()
    files["system_info.txt"] = get_system_info(print_info=False)[1].encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    if isinstance(path, io.BufferedIOBase):
        path.write(buffer.getvalue())
    else:
        place = with_suffix(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_file(place, buffer.getvalue())
        except OSError as error:
            raise CheckpointWriteError(f"{place} could not be written ({error.strerror}).") from error
    missing: dict[str, str] = read_manifest(files[MANIFEST], "model", str(path)).info["missing"]
    return missing


def with_suffix(path: str | os.PathLike[str]) -> Path:
    """Return the path that :func:`write_model` writes to."""
    place = Path(path)
    return place.with_name(f"{place.name}.zip") if place.suffix == "" else place


def read_model(path: ModelPath) -> ModelFile:
    """Read and check a model file.

    :param path: a path, with or without ``.zip``, or a file open for reading
    :raises CheckpointError: of the kind that tells why it cannot be used
    """
    with _opened(path) as (file, where):
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, where)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
            # RuntimeError: a member is encrypted.
            problem = " ".join(str(error).split())
            raise DamagedCheckpointError(f"{where} is no readable zip file ({problem}).") from error
        except (ValueError, LookupError, UnicodeError, MemoryError, OverflowError) as error:
            raise DamagedCheckpointError(f"{where} is a damaged zip file ({error}).") from error


def read_component(path: ModelPath, name: str) -> Any:
    """Read one component of a model file; ``None`` if the file has none of this name.

    :param path: as for :func:`read_model`
    :param name: of the component
    :raises CheckpointError: of the kind that tells why the file cannot be used
    """
    if is_foreign(path):
        raise foreign_refusal(shown(path))
    return read_model(path).decode({name}).get(name)


def is_foreign(path: ModelPath) -> bool:
    """Whether a file is one of SB3's own, with pickles in it."""
    with contextlib.suppress(Exception), _opened(path) as (file, _), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        return MANIFEST not in names and ("data" in names or any(n.endswith(".pth") for n in names))
    return False


def foreign_refusal(where: str) -> UnsafeCheckpointError:
    """Say that a file would have to be unpickled."""
    return UnsafeCheckpointError(
        f"{where} is a file of Stable-Baselines3's own format, whose pickles may run any code when they "
        "are read: if you trust where it comes from, load it with trust=True and save it again."
    )


def shown(path: ModelPath) -> str:
    """Name a model file in a message."""
    return str(getattr(path, "name", "the open file") if isinstance(path, io.BufferedIOBase) else path)


def _read(archive: zipfile.ZipFile, where: str) -> ModelFile:
    members = archive.infolist()
    names = [member.filename for member in members]
    if MANIFEST not in names:
        raise DamagedCheckpointError(f"{where} has no {MANIFEST}: it is no model of acktr's.")
    if len(names) > MAX_FILES or len(set(names)) != len(names):
        raise UnsafeCheckpointError(f"{where} has {len(names)} members, some of one name: not read.")
    # Uncompressed, nothing can be larger than the file: a zip bomb needs compression or overlaps.
    size = _size(archive)
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnsafeCheckpointError(
                f"{member.filename[:80]!r} of {where} is compressed, which acktr never does: not read."
            )
    if sum(member.file_size for member in members) > size:
        raise UnsafeCheckpointError(f"{where} claims to hold more than its {size} bytes: not read.")
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
        raise UnsafeCheckpointError(f"The manifest of {where} is absurdly large: not read.")
    manifest = read_manifest(archive.read(MANIFEST), "model", where)
    for name in names:
        if name not in manifest.files and name not in {MANIFEST, *_EXTRAS}:
            raise UnsafeCheckpointError(
                f"{where} has the member {name[:80]!r}, which its manifest does not name: not read."
            )
    files = {}
    for name in manifest.files:
        if name not in names:
            raise DamagedCheckpointError(f"{name} of {where} is missing.")
        with decoding(where, name):
            files[name] = archive.read(name)
        check_file(name, files[name], manifest, where)
    info = archive.read("system_info.txt") if "system_info.txt" in names else b""
    return ModelFile(where, manifest, files, info.decode(errors="replace"))


def _size(archive: zipfile.ZipFile) -> int:
    file = archive.fp
    assert file is not None
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size


@contextlib.contextmanager
def _opened(path: ModelPath) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(path, io.BufferedIOBase):
        yield path, shown(path)  # type: ignore[misc]
        return
    place = Path(path)
    if not place.is_file() and place.with_name(f"{place.name}.zip").is_file():
        place = place.with_name(f"{place.name}.zip")
    try:
        if not place.is_file():
            # A pipe would be waited for, and a device has no end.
            raise FileNotFoundError(errno.ENOENT, "no plain file")
        file = place.open("rb")
    except OSError as error:
        raise DamagedCheckpointError(
            f"{place} cannot be opened ({error.strerror}): give the path of a saved model."
        ) from error
    with file:
        yield file, str(place)


def _version() -> str:
    from importlib.metadata import version

    return version("acktr")
