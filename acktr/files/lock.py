"""A lock on a run directory, which the system opens again when its holder ends, however it ends."""

import os
import socket
import stat
from pathlib import Path

from acktr.errors import ConfigurationError, UnsafeCheckpointError
from acktr.files.durable import write_refusal

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Neither through a link nor waiting for the other end of a pipe.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Lock:
    """A lock that is held inside ``with``; that its file stays says nothing.

    :param path: the file that is locked
    :param wait: until whoever holds it lets it go, in the place of an error
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self._path = path
        self._wait = wait
        self._descriptor: int | None = None

    def __enter__(self) -> "Lock":
        """Take the lock.

        :raises ConfigurationError: another process holds it
        :raises UnsafeCheckpointError: something else lies in the place of its file
        :raises CheckpointWriteError: its file cannot be made
        """
        descriptor = self._open()
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        try:
            if self._path.is_symlink():
                raise self._refusal()
            descriptor = os.open(self._path, _FLAGS, 0o666)
        except OSError as error:
            if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
                raise self._refusal() from error
            raise write_refusal(self._path, error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._refusal()
        return descriptor

    def _take(self, descriptor: int) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                text = os.read(descriptor, 200).decode(errors="replace")
                holder = "".join(c for c in text if c.isprintable()).strip()
                raise ConfigurationError(
                    f"{self._path.parent} is in use: {holder or 'another process'} trains there; wait "
                    "for it, or give another directory with --out."
                ) from error
            except OSError:
                pass  # a file system without locks
        if os.fstat(descriptor).st_nlink > 1:
            return  # a file elsewhere is the same one, and is not to be written
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            pass  # a full disk: the lock is held, and only its holder's name is missing

    def _refusal(self) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"{self._path} is a link or no plain file, and writing there would go elsewhere: remove it."
        )
