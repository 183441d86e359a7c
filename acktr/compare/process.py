"""The process that trains one trial and adds the result to its store, or says why it cannot.

``python -m acktr.compare.process FILE.json`` is what :mod:`acktr.compare.runner` starts.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from acktr.compare import peer_checkpoint, peers
from acktr.compare.curve import LearningCurve
from acktr.compare.store import Store, session
from acktr.compare.trial import Outcome, Trial, complete_settings, configuration, settings_hash
from acktr.envs.lookup import EVALUATION_SEED, MAX_EVALUATION_ENVS
from acktr.errors import AcktrError, DivergenceError
from acktr.files.durable import write_file
from acktr.files.reading import MAX_TEXT, read_plain
from acktr.files.streams import dropping


def train(trial: Trial, folder: Path) -> Outcome:
    """Train and evaluate. A training that diverged is an outcome too, without an evaluation.

    :param trial: what to train
    :param folder: for files; ACKTR leaves its run directory there, a peer its last checkpoint, and
        training goes on from what it holds
    :raises ConfigurationError: if it cannot be built
    """
    # Some peers have so many rollouts that notes at each would cost them time.
    curve = LearningCurve(trial.n_timesteps, folder if trial.algo == "acktr" else None)
    train_one = _train_acktr if trial.algo == "acktr" else _train_peer
    diverged, figures = "no", {}
    try:
        with contextlib.closing(curve):
            figures = train_one(trial, curve, folder)
    except DivergenceError as error:
        curve.stop()
        diverged = "yes"
        print(error, file=sys.stderr)
    return Outcome(
        {
            "steps": curve.num_timesteps,
            **curve.scores(),
            "seconds": curve.seconds,
            "cpu_seconds": curve.cpu_seconds,
            "fps": curve.num_timesteps / max(curve.seconds, 1e-9),
            "diverged": diverged,
            **figures,
        },
        curve,
    )


def _train_acktr(trial: Trial, curve: LearningCurve, folder: Path) -> dict[str, Any]:
    """Train as ``acktr train`` does; return the backend and the figures of the evaluation."""
    from acktr.run.directory import Run, holds_run
    from acktr.run.experiment import Experiment

    with Experiment(configuration(trial)) as experiment:
        run = Run(folder / "run")
        run.path.mkdir(parents=True, exist_ok=True)
        resume = holds_run(run.path)
        evaluation = experiment.train(run, callbacks=[curve], resume=resume, tell=print).evaluation
    names = {"mean_return": "eval_mean", "std_return": "eval_std", "episodes": "eval_episodes"}
    figures = {names[key]: value for key, value in (evaluation or {}).items() if key in names}
    return {"backend": experiment.configuration.backend, **figures}


def _train_peer(trial: Trial, curve: LearningCurve, folder: Path) -> dict[str, Any]:
    """Train a peer; return the backend and the figures of the evaluation."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    from acktr.run.masks import MaskedPlayer

    settings = complete_settings(trial)
    model = peers.build_model(trial.algo, trial.env_id, settings, trial.seed)
    env = model.get_env()
    assert env is not None
    with contextlib.closing(env):
        peer_checkpoint.restore(model, curve, folder, trial.seed)
        if model.num_timesteps:
            print(f"{trial.algo} goes on from step {model.num_timesteps:,}, in new episodes.")
        callbacks = [curve, peer_checkpoint.PeerCheckpoint(folder, curve)]
        try:
            # SB3 counts what is still to do.
            n_to_do = trial.n_timesteps - model.num_timesteps
            model.learn(n_to_do, callback=callbacks, reset_num_timesteps=False)
        except ValueError as error:
            # What torch's distributions say of NaN and infinite parameters.
            what, found, _values = str(error).partition("found invalid values")
            if not found:
                raise
            raise DivergenceError(f"{trial.algo} has lost its numbers: {what}{found}.") from error
    figures = {"backend": "gymnasium"}
    if trial.eval_episodes == 0:
        return figures
    seed, n_envs = trial.seed + EVALUATION_SEED, min(trial.eval_episodes, MAX_EVALUATION_ENVS)
    eval_env = peers.build_env(trial.env_id, settings, n_envs, seed, training=False)
    with contextlib.closing(eval_env):
        sync_envs_normalization(env, eval_env)
        played: Any = MaskedPlayer(model, eval_env) if trial.algo == peers.MASKED else model
        returns, _lengths = evaluate_policy(
            played, eval_env, trial.eval_episodes, return_episode_rewards=True
        )
    mean, std = float(np.mean(returns)), float(np.std(returns))
    return {**figures, "eval_mean": mean, "eval_std": std, "eval_episodes": trial.eval_episodes}


def main(path: Path) -> int:
    """Train what a file asks for and add the outcome to its store.

    :param path: JSON with the fields of a :class:`Trial` under ``trial``, and ``store``, ``core``
    :return: the exit code
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if job["cores"] is not None:
        # Before torch starts its threads. All of this process stays there.
        os.sched_setaffinity(0, job["cores"])
    import torch

    from acktr.run.memory import keep_freed_memory

    # As `acktr train` does, and for the peers too: large batches of images gain from it.
    keep_freed_memory()
    torch.set_num_threads(job["threads"])
    trial = Trial(**job["trial"])
    now = session(job["command"], job["threads"])
    try:
        settings = complete_settings(trial)
        outcome = train(trial, path.parent)
    except AcktrError as error:
        print(f"acktr: {error}", file=sys.stderr)
        return error.exit_code
    if outcome.curve.resumed_at:
        now["resumed_at"] = outcome.curve.resumed_at
    Store(Path(job["store"])).add(trial, outcome, settings, now)
    return 0


def write_job(
    path: Path, trial: Trial, store: Path, cores: Sequence[int] | None, command: str, threads: int = 1
) -> None:
    """Write the file that :func:`main` reads.

    :param path: in the folder that the trial may write to
    :param trial: what to train
    :param store: where the result goes
    :param cores: to run on; ``None`` for any
    :param command: what the user typed, for the manifest
    :param threads: that torch computes with
    """
    job = {
        "trial": asdict(trial),
        "origin": _origin(trial),
        "store": str(store),
        "cores": None if cores is None else list(cores),
        "threads": threads,
        "command": command,
    }
    # Whole or not at all: without it nobody goes on with what was half done.
    write_file(path, json.dumps(job, indent=1).encode())


def can_go_on(path: Path, trial: Trial) -> bool:
    """Tell whether a process that was killed left a checkpoint that the same code can go on from.

    :param path: the file of :func:`write_job`
    :param trial: which is to be trained
    """
    folder = path.parent
    left = folder.glob("run/checkpoints/*" if trial.algo == "acktr" else peer_checkpoint.FILE)
    if not any(left):
        return False
    try:
        return json.loads(read_plain(path, MAX_TEXT))["origin"] == _origin(trial)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _origin(trial: Trial) -> dict[str, str]:
    """Settings and code, on which a trial's figures depend beside its name."""
    return {"settings": settings_hash(complete_settings(trial)), "code": _code_hash()}


@functools.cache
def _code_hash() -> str:
    # Not the commit, which a commit of results changes too and an installed package does not have.
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def _end_with_parent() -> None:
    # The runner holds the other end of this pipe: it closes when the runner ends, however that happens.
    # Not sys.stdin, whose lock Python needs when it ends.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    with dropping():  # its log may be full
        code = main(Path(sys.argv[1]))
    sys.exit(code)
