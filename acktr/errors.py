"""The errors that acktr raises on purpose, one class for each exit code of the command line."""


class AcktrError(Exception):
    """Base of every error that acktr raises on purpose: one sentence, with what to do about it."""

    exit_code = 1


class ConfigurationError(AcktrError, ValueError):
    """A wrong argument, key or environment (exit code 2)."""

    exit_code = 2


class DivergenceError(AcktrError, ValueError):
    """A value that is not finite, found before it could reach the parameters (exit code 3).

    It is a ``ValueError`` so that hyperparameter tuners prune the trial instead of ending the study.
    """

    exit_code = 3


class CheckpointError(AcktrError):
    """A saved model or run directory that cannot be used (exit code 4)."""

    exit_code = 4
