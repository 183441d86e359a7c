"""``acktr export``: the policy of a saved run as an ONNX file."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def export(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    out: Annotated[Positional[str], arg(metavar="FILE.onnx")],
    *,
    sampled: bool = False,
    best: bool = False,
    allow_import: bool = False,
) -> int:
    """Write the policy of a run as an ONNX file, which plays without torch and without acktr.

    Observations go in as the environment gives them, normalisation is inside; actions of the
    environment's space come out.

    :param run: a run directory
    :param out: the file to write
    :param sampled: draw actions, as in training, instead of the most probable ones
    :param best: use the model with the best evaluation instead of the last one
    :param allow_import: import modules and open files that config.yaml of the run names: runs their code
    """
    from acktr.run.directory import Run
    from acktr.run.export import export as export_run

    written = export_run(Run.open(run), Path(out), sampled=sampled, best=best, allow_import=allow_import)
    checked = "" if written.difference is None else f", at most {written.difference:.1e} off predict"
    print(f"{written.path}: {written.size / 1000:,.0f} kB, {written.metadata['actions']}{checked}")
    return 0
