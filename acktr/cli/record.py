"""``acktr record``: film an episode of a saved run."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def record(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    *,
    out: Annotated[str | None, arg(metavar="FILE.mp4")] = None,
    best: bool = False,
    allow_import: bool = False,
) -> int:
    """Film one episode with the deterministic policy of a run.

    :param run: a run directory
    :param out: the film to write (default: episode.mp4 in the run directory)
    :param best: use the model with the best evaluation instead of the last one
    :param allow_import: import modules and open files that config.yaml of the run names: runs their code
    """
    from acktr.experiment import record as record_run
    from acktr.runs import Run

    film = None if out is None else Path(out)
    path, evaluation = record_run(Run.open(run), film, best=best, allow_import=allow_import)
    print(f"{path}: return {evaluation.returns[0]:.1f} in {evaluation.lengths[0]} steps")
    return 0
