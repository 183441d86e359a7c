"""Signals as requests to stop: the run is saved and ends, once."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
SAVED = 143

# SIGUSR1 is what batch systems send some time before they end a job. Both mean: saved, to be resumed.
_CODES = {"SIGINT": INTERRUPTED, "SIGTERM": SAVED, "SIGUSR1": SAVED}


class StopOnSignal:
    """Inside ``with``, the first signal asks to stop.

    A second Ctrl-C ends the process at once; what is being saved is then not saved, and what was saved
    before stays whole. Other signals, however often they come, change nothing more.

    :param where: the directory that is named when a signal comes; ``None`` to say nothing
    """

    def __init__(self, where: object = None) -> None:
        self.code: int | None = None
        self._where = where
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.code is not None

    def __enter__(self) -> "StopOnSignal":
        for name in _CODES:
            number = getattr(signal, name, None)
            if number is not None:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if self.requested:
            if name == "SIGINT":
                raise KeyboardInterrupt
            return
        self.code = _CODES[name]
        more = "; Ctrl-C again leaves at once" if name == "SIGINT" else ""
        if self._where is None:
            return
        print(
            f"\nacktr: {name}: stopping after this update and saving in {self._where}{more}.",
            file=sys.stderr,
        )
