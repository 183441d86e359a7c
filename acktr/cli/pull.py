"""``acktr pull``: a run from the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def pull(
    repo: Annotated[Positional[str], arg(metavar="ORG/NAME")],
    *,
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
) -> int:
    """Fetch a run that `acktr push` has shared, as a run directory; nothing of it is executed.

    :param repo: the repository
    :param out: the run directory to make (default: runs/NAME)
    """
    from acktr.run.hub import pull as pull_run

    print(pull_run(repo, None if out is None else Path(out)).path)
    return 0
