"""The errors that acktr raises on purpose, one class for each exit code of the command line."""

_MESSAGE = 8000  # characters


def printable(text: str, limit: int = _MESSAGE) -> str:
    """Show text from a file so that a terminal obeys nothing in it.

    :param text: any
    :param limit: characters; of more the middle is left out
    :return: without control characters but line ends and tabs, and without those that turn the direction
    """
    if len(text) > limit:
        text = f"{text[: limit * 3 // 4]} […] {text[-limit // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class AcktrError(Exception):
    """Base of every error that acktr raises on purpose: one sentence, with what to do about it.

    What it quotes of a file may hold anything; its text holds nothing that a terminal would obey.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigurationError(AcktrError, ValueError):
    """A wrong argument, key or environment (exit code 2)."""

    exit_code = 2


class DivergenceError(AcktrError, ValueError):
    """A value that is not finite, found before it could reach the parameters (exit code 3).

    It is a ``ValueError`` so that hyperparameter tuners prune the trial instead of ending the study.
    """

    exit_code = 3


class WorkerError(AcktrError, RuntimeError):
    """An environment raised or returned what it must not, or its process died or hangs (exit code 5)."""

    exit_code = 5


class CheckpointError(AcktrError):
    """A saved model, checkpoint or run directory that cannot be used or written (exit code 4).

    Its subclasses say why; all of them name the path, and the part of it that is wrong.
    """

    exit_code = 4


class DamagedCheckpointError(CheckpointError):
    """A file that is missing, truncated or changed, or that its manifest does not tell the truth of."""


class UnsafeCheckpointError(CheckpointError):
    """A file that would have to be trusted: pickles inside, paths that lead outside, absurd sizes."""


class CheckpointVersionError(CheckpointError):
    """A file in a format that this version does not read."""


class CheckpointMismatchError(CheckpointError, ValueError, RuntimeError):
    """A file of other spaces, another architecture or another setting than what it is to go into.

    SB3 raises a ``ValueError`` for spaces and names, and torch a ``RuntimeError`` for parameters that
    do not fit: programs that catch either catch this.
    """


class CheckpointWriteError(CheckpointError):
    """A checkpoint that could not be written; the earlier ones are as they were."""
