"""Writing a run's values for TensorBoard."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import TensorBoardOutputFormat

from acktr.files.durable import WriteErrors, refuse_links


class TensorBoard(TensorBoardOutputFormat):
    """Writes for TensorBoard; after a resume what was written beyond the checkpoint is hidden.

    :param folder: the directory
    :param steps: those of the checkpoint; ``None`` for a new run
    :param errors: what is done if it cannot be written; then nothing more is written there
    :raises UnsafeCheckpointError: the directory is a link
    """

    def __init__(
        self, folder: Path, steps: int | None = None, errors: WriteErrors | None = None
    ) -> None:
        refuse_links(folder)
        self._folder = folder
        self._errors = errors or WriteErrors()
        self._is_closed = True
        _leave_to_the_caller()
        with self._about():
            super().__init__(str(folder))
            if steps is not None:
                self.writer.close()
                self.writer = type(self.writer)(str(folder), purge_step=steps + 1)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the values of one dump.

        :raises CheckpointWriteError: it could not be written, and nothing is to go on without it
        """
        if not self._is_closed:
            with self._about():
                super().write(key_values, key_excluded, step)

    def close(self) -> None:
        """Close the file."""
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(OSError):
                self.writer.close()

    @contextlib.contextmanager
    def _about(self) -> Iterator[None]:
        with self._errors.about(self._folder, "Nothing more is written there."):
            try:
                yield
            except OSError:
                self._is_closed = True
                with contextlib.suppress(OSError, AttributeError):  # there may be none yet
                    self.writer.close()  # ends its thread
                raise


_previous = threading.excepthook


def _leave_to_the_caller() -> None:
    """Have TensorBoard's thread not print that it could not write: whoever calls it is told too."""
    global _previous
    if threading.excepthook is not _told:
        _previous, threading.excepthook = threading.excepthook, _told


def _told(raised: Any) -> None:
    of_tensorboard = type(raised.thread).__name__ == "_AsyncWriterThread"
    if not (of_tensorboard and isinstance(raised.exc_value, OSError)):
        _previous(raised)
