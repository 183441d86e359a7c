"""Signals as requests to stop: the run is saved and ends, once."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130
SAVED = 143

# SIGUSR1 is what batch systems send some time before they end a job, SIGHUP what comes when a terminal
# is closed. All but SIGINT mean: saved, to be resumed.
_CODES = {"SIGINT": INTERRUPTED, "SIGTERM": SAVED, "SIGUSR1": SAVED, "SIGHUP": SAVED}


class StopOnSignal:
    """Inside ``with``, the first signal asks to stop.

    A second Ctrl-C ends the process at once; what is being saved is then not saved, and what was saved
    before stays whole. Other signals, however often they come, change nothing more.

    The handler notes the signal and does nothing else: it runs in the middle of anything, also of a
    print. What it means is said by :meth:`asked`, from code that may wait or fail.

    :param where: the directory that is named after a signal; ``None`` to say nothing
    """

    def __init__(self, where: object = None) -> None:
        self.code: int | None = None
        self._where = where
        self._unsaid: str | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.code is not None

    def asked(self) -> bool:
        """Tell whether a signal came; the first time that one did, say what happens now."""
        if self._unsaid is not None:
            name, self._unsaid = self._unsaid, None
            more = "; Ctrl-C again leaves at once" if name == "SIGINT" else ""
            if self._where is not None:
                print(
                    f"\nacktr: {name}: stopping after this update and saving in {self._where}{more}.",
                    file=sys.stderr,
                )
        return self.requested

    def __enter__(self) -> "StopOnSignal":
        for name in _CODES:
            number = getattr(signal, name, None)
            # What nohup ignores stays ignored: the run is to outlive its terminal.
            ignored = name == "SIGHUP" and signal.getsignal(number or 0) is signal.SIG_IGN
            if number is not None and not ignored:
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
        self.code, self._unsaid = _CODES[name], name


def ignore_signals() -> None:
    """Ignore all signals from now on: the work is done, and Python's shutdown must not be disturbed."""
    for name in _CODES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
