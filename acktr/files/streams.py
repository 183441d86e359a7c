"""Output that cannot be written is dropped, and never ends the work that it tells of."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class Dropping:
    """A text stream that drops what cannot be written: the pipe is gone, the disk full, the end closed.

    :param stream: the one that is written to
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop; what the encoding lacks is replaced."""
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written, as far as it goes."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def occupy_standard_descriptors() -> None:
    """Open those of standard input, output and error that are closed (``2>&-``), to nowhere.

    Else the next file that is opened takes its place, and what libraries print there goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one


@contextlib.contextmanager
def dropping() -> Iterator[None]:
    """Make standard output and standard error such streams, for everything that prints inside ``with``.

    It is done to the streams and not where something is printed: libraries print too, rich ends the
    process when its pipe is gone, and Python itself exits with 120 when it cannot flush at its end.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Dropping(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _let_go(stream)


def _let_go(stream: TextIO | None) -> None:
    """Flush a stream; if that fails, send what it still holds, and all that follows, to nowhere."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, stream.fileno())
            finally:
                os.close(nowhere)
