"""Files that are there whole or not at all, whatever happens in between and lies in their place.

A directory may come from somebody else and hold links, pipes and second names of files elsewhere: what
is written here never goes through one, and what is read is a plain file.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from acktr.errors import CheckpointWriteError, UnsafeCheckpointError

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def write_file(path: Path, data: bytes) -> None:
    """Write a file beside its place and put it there; an earlier one stays whole until then.

    A link at its place is replaced, and what it points to stays as it is.

    :raises OSError: nothing was changed
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        remove_file(temporary)
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
        remove(temporary)
        temporary.mkdir()
        for name, data in files.items():
            _write_and_sync(temporary / name, data)
        sync_directory(temporary)
        if os.path.lexists(path):
            remove_directory(path)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Take a directory away at once, so that no half of it is ever seen, and then delete it."""
    away = path.with_name(f".{path.name}.removed.{os.getpid()}")
    os.replace(path, away)
    remove(away)


def remove(path: Path) -> None:
    """Delete a file or a directory as far as possible; of a link the link, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_file(path)


def remove_file(path: Path) -> None:
    """Delete a file as far as possible; of a link the link."""
    with contextlib.suppress(OSError):
        path.unlink()


def create_file(path: Path) -> BinaryIO:
    """Make an empty file, open for writing, in the place of whatever file, link or pipe is there.

    :raises OSError: it cannot be made
    """
    remove_file(path)
    return path.open("xb")  # x: not if it is there again, be it as a link


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading that is one: a pipe would be waited for, a device has no end.

    :raises OSError: it cannot be opened, or is no file
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115  # its caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no plain file")
    return file


def refuse_links(*directories: Path) -> None:
    """Refuse directories to be written into that are links: they would lead elsewhere.

    :raises UnsafeCheckpointError: naming the first
    """
    for path in directories:
        if path.is_symlink():
            raise UnsafeCheckpointError(
                f"{path} is a link, and what is written there would go elsewhere: remove it, or put a "
                "directory in its place."
            )


class WriteErrors:
    """Handles files of a run that cannot be written.

    :param goes_on: warn, once for each file until it can be written again, in the place of an error
    """

    def __init__(self, goes_on: bool = False) -> None:
        self.goes_on = goes_on
        self._told: set[Path] = set()

    @property
    def unwritten(self) -> list[str]:
        """Names of the files whose last state could not be written."""
        return sorted(path.name for path in self._told)

    @contextlib.contextmanager
    def about(self, path: Path, lost: str = "") -> Iterator[None]:
        """Write a file inside ``with``.

        :param path: the file
        :param lost: a sentence about what that means, for the warning
        :raises CheckpointWriteError: it could not be written, and nothing is to go on without it
        """
        try:
            yield
        except (OSError, CheckpointWriteError) as error:
            refusal = error if isinstance(error, CheckpointWriteError) else write_refusal(path, error)
            if not self.goes_on:
                raise refusal from error
            if path not in self._told:
                self._told.add(path)
                text = f"{refusal} Training goes on. {lost}".strip()
                warnings.warn(text, UserWarning, stacklevel=3)
        else:
            self._told.discard(path)


def write_refusal(path: Path, error: OSError) -> CheckpointWriteError:
    """Say that a file could not be written, and why."""
    return CheckpointWriteError(
        f"{path} could not be written ({error.strerror or error}): make room, or look at who may write "
        "there."
    )


def sync_file(path: Path) -> None:
    """Bring what was written to a file onto the disk; none is fine too."""
    if path.exists() and not path.is_symlink():
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
    with create_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
