"""The command line: train, evaluate, plot, record, report, export, push, pull, compare, sweep.

Exit codes: 0 done, 2 bad arguments or configuration, 3 diverged, 4 checkpoint unusable, 5 an
environment or its process failed, 130 saved and stopped by Ctrl-C, 143 saved and stopped by SIGTERM,
SIGUSR1 or SIGHUP. Output that cannot be written is dropped and changes none of them.
"""

import contextlib
import functools
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

import acktr
from acktr.cli.arguments import as_sentence
from acktr.cli.compare import compare
from acktr.cli.evaluate import evaluate
from acktr.cli.export import export
from acktr.cli.plot import plot
from acktr.cli.pull import pull
from acktr.cli.push import push
from acktr.cli.record import record
from acktr.cli.report import report
from acktr.cli.stop import INTERRUPTED, ignore_signals
from acktr.cli.sweep import sweep
from acktr.cli.train import train
from acktr.errors import AcktrError, ConfigurationError
from acktr.files.streams import dropping, occupy_standard_descriptors

_COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "record": record,
    "report": report,
    "export": export,
    "push": push,
    "pull": pull,
    "compare": compare,
    "sweep": sweep,
}
_DESCRIPTION = "Natural-gradient reinforcement learning with Kronecker-factored curvature."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: without the program's name; by default those of the process
    :return: the exit code
    """
    if arguments is None:
        occupy_standard_descriptors()
    with dropping():
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
    if arguments is None:
        ignore_signals()  # all is done; a Ctrl-C in Python's own end would be told as an error
    return code


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"acktr {acktr.__version__}")
        return 0
    try:
        return _understand(arguments or ["--help"])()
    except AcktrError as error:
        print(f"acktr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exit_:
        # tyro leaves this way after --help.
        return exit_.code if isinstance(exit_.code, int) else 0


def _understand(arguments: list[str]) -> Callable[[], int]:
    """Return the command that is meant, with its arguments.

    :raises ConfigurationError: none is
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in _COMMANDS.items()},
                prog="acktr",
                description=_DESCRIPTION,
                args=arguments,
            )
            return command
    except SystemExit as exit_:
        if exit_.code != ConfigurationError.exit_code:
            raise
        program = " ".join(["acktr", *(arguments[:1] if arguments[0] in _COMMANDS else ())])
        raise ConfigurationError(as_sentence(said.getvalue(), program)) from None


def _later(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Let tyro read the arguments of a command without running it."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return bind
