"""``acktr push``: a finished run on the Hugging Face Hub."""

from typing import Annotated

from tyro.conf import Positional, arg


def push(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    repo: Annotated[Positional[str], arg(metavar="ORG/NAME")],
    *,
    private: bool = False,
) -> int:
    """Share a run on the Hugging Face Hub: model, settings, figures, tables, picture, film and a card.

    :param run: a run directory
    :param repo: the repository, made where it does not exist; an earlier run in it is replaced
    :param private: make it a private one
    """
    from acktr.run.directory import Run
    from acktr.run.hub import push as push_run

    print(push_run(Run.open(run), repo, private=private))
    return 0
