"""Files that are there whole or not at all, whatever happens in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write a file beside its place and put it there; an earlier one stays whole until then.

    :raises OSError: nothing was changed
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files beside its place and put it there.

    What was at the place before is removed just before the new one takes it.

    :param path: the directory
    :param files: content by name, written in this order
    :raises OSError: nothing was changed
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, data in files.items():
            _write_and_sync(temporary / name, data)
        sync_directory(temporary)
        if path.exists():
            remove_directory(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Take a directory away at once, so that no half of it is ever seen, and then delete it."""
    away = path.with_name(f".{path.name}.removed.{os.getpid()}")
    os.replace(path, away)
    shutil.rmtree(away, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Bring what was written to a file onto the disk; none is fine too."""
    if path.exists():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring the names in a directory onto the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
