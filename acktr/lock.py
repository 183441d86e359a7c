"""A lock on a run directory, which the system opens again when its holder ends, however it ends."""

import os
import socket
from pathlib import Path
from typing import IO

from acktr.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Held inside ``with``; the file stays, which says nothing.

    :param path: the file that is locked
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> "Lock":
        """Take the lock.

        :raises ConfigurationError: another process holds it
        """
        file = self._path.open("a+", encoding="utf-8")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                file.close()
                raise ConfigurationError(
                    f"{self._path.parent} is in use: {holder} trains there; wait for it, or give "
                    "another directory with --out."
                ) from error
            except OSError:
                pass  # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
