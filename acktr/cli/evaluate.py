"""``acktr evaluate``: play episodes with a saved run."""

import json
import sys
from typing import Annotated

from tyro.conf import Positional, arg

from acktr.errors import printable
from acktr.run.units import whole_number


def evaluate(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    *,
    episodes: Annotated[str, arg(metavar="N")] = "20",
    json_: Annotated[bool, arg(name="json")] = False,
    best: bool = False,
    allow_import: bool = False,
) -> int:
    """Play episodes with the deterministic policy of a run and report their returns.

    What was plainly wrong with its training is said too.

    :param run: a run directory
    :param episodes: how many
    :param json_: print JSON, with the return of each episode
    :param best: use the model with the best evaluation instead of the last one
    :param allow_import: import modules and open files that config.yaml of the run names: runs their code
    """
    from acktr.run.directory import Run
    from acktr.run.health import advise_run
    from acktr.run.play import evaluate as evaluate_run

    count = whole_number("--episodes", episodes)
    opened = Run.open(run)
    evaluation = evaluate_run(opened, count, best=best, allow_import=allow_import)
    summary = evaluation.summary()
    env_id = opened.read_configuration()["env_id"]
    advice = advise_run(opened.path)
    if json_:
        model = str(opened.model_path(best))
        details = {"returns": evaluation.returns, "lengths": evaluation.lengths}
        answer = {"env_id": env_id, "model": model, **summary, **details, "advice": advice}
        print(json.dumps(answer))
    else:
        print(
            f"{printable(env_id)}: return {summary['mean_return']:.1f} ± {summary['std_return']:.1f} "
            f"over {count} episodes (from {summary['min_return']:.1f} to "
            f"{summary['max_return']:.1f}, mean length {summary['mean_length']:.0f})"
        )
        if advice:
            print(f"acktr: {' '.join(advice)}", file=sys.stderr)
    return 0
