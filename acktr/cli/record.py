"""``acktr record``: film episodes of a saved run."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from acktr.cli.arguments import given_number
from acktr.errors import ConfigurationError
from acktr.run.units import whole_number


def record(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    *,
    episodes: Annotated[str, arg(metavar="N")] = "1",
    seed: Annotated[str | None, arg(metavar="S", help_behavior_hint="")] = None,
    camera: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    out: Annotated[str | None, arg(metavar="FILE.mp4", help_behavior_hint="")] = None,
    best: bool = False,
    allow_import: bool = False,
) -> int:
    """Film episodes with the deterministic policy of a run, one after another in one film.

    :param run: a run directory
    :param episodes: how many
    :param seed: another one gives other episodes (default: the run's)
    :param camera: of a MuJoCo model, by name or number, or free (default: one that follows the body)
    :param out: the film to write (default: episode.mp4 in the run directory)
    :param best: use the model with the best evaluation instead of the last one
    :param allow_import: import modules and open files that config.yaml of the run names: runs their code
    """
    from acktr.run.directory import Run
    from acktr.run.play import record as record_run
    from acktr.run.trackers import track_film

    count, number = whole_number("--episodes", episodes), given_number("--seed", seed)
    opened = Run.open(run)
    path, evaluation = record_run(
        opened,
        None if out is None else Path(out),
        best=best,
        episodes=count,
        seed=number,
        camera=camera,
        allow_import=allow_import,
    )
    played = [
        f"return {returned:.1f} in {length:,} steps"
        for returned, length in zip(evaluation.returns, evaluation.lengths, strict=True)
    ]
    print(f"{path}: {', then '.join(played)}")
    try:
        track_film(opened, path)
    except ConfigurationError as error:  # the film is there
        print(f"acktr: {error}", file=sys.stderr)
    return 0
