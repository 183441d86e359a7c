"""One training of one algorithm with one seed, in a process of its own.

``python -m acktr.compare.trial FILE.json`` is what :mod:`acktr.compare.runner` starts: it trains, plays
the final evaluation and adds the result to the store, or exits with a code above 0 and says why.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acktr import gone
from acktr.checkpoint.durable import write_file
from acktr.compare import peer_checkpoint, peers
from acktr.compare.curve import LearningCurve
from acktr.errors import AcktrError, ConfigurationError, DivergenceError
from acktr.output import dropping
from acktr.reading import MAX_TEXT, read_plain

if TYPE_CHECKING:
    from acktr.presets import Configuration

ALGORITHMS = ("acktr", *peers.PEERS)
# Environments of an evaluation start from seeds that training with small seeds does not use.
_EVALUATION_SEED = 1_000_000
_MAX_EVALUATION_ENVS = 10
# ACKTR's settings that are not the same for all tasks and machines though the preset is, and what only
# says who launches the same updates.
_NOT_HASHED = ("env_id", "seed", "preset", "device", "cuda_graphs")
# Settings that came after results, and the value that means what was before: it is left out, so that
# those results stay the results of their settings.
_CAME_LATER: Mapping[str, Any] = {"corrected_learning_rate": None, "std_scale": 1.0}


@dataclass(frozen=True)
class Trial:
    """What to train.

    :param env_id: an id that :func:`acktr.envs.make_vec_env` accepts
    :param algo: one of :data:`ALGORITHMS`
    :param seed: seeds everything
    :param n_timesteps: environment steps
    :param label: names the algorithm with its settings in tables and pictures
    :param settings: changes to ACKTR's preset (a dotted key reaches into a mapping), or to the Zoo's
        settings of a peer
    :param preset: of ACKTR, if not that of the environment's family
    :param eval_episodes: played with the deterministic policy at the end; 0 for none
    """

    env_id: str
    algo: str
    seed: int
    n_timesteps: int
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    eval_episodes: int = 20

    @property
    def key(self) -> str:
        """A name for files, which no other trial of a store has."""
        return file_name(self.env_id, self.label, str(self.seed))


def file_name(*parts: str) -> str:
    """Return a name for files that is made of the parts."""
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in "_".join(parts))


@dataclass(frozen=True)
class Outcome:
    """What came out.

    :param scores: values for the columns of the store's table
    :param curve: the points of the learning curve
    """

    scores: dict[str, Any]
    curve: LearningCurve


def check_algorithm(algo: str) -> None:
    """Refuse an algorithm that is unknown, or whose package is not installed.

    :raises ConfigurationError: naming the known ones, or with the pip line
    """
    if algo not in ALGORITHMS:
        raise ConfigurationError(f"There is no algorithm {algo!r}: choose from {', '.join(ALGORITHMS)}.")
    peers.check_installed(algo)


def complete_settings(trial: Trial) -> dict[str, Any]:
    """Return every setting that a trial trains with, as plain values.

    :raises ConfigurationError: for an unknown algorithm, environment or setting
    """
    check_algorithm(trial.algo)
    if trial.algo == "acktr":
        # Those that are gone as they were in results from before.
        settings = {**gone.DEFAULTS, **_configuration(trial).model_dump(mode="json")}
        as_before = {key for key, value in _CAME_LATER.items() if settings[key] == value}
        return {k: v for k, v in settings.items() if k not in _NOT_HASHED and k not in as_before}
    return peers.peer_settings(trial.algo, trial.env_id, trial.n_timesteps, trial.settings)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return ten hexadecimal digits that name settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


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


def _configuration(trial: Trial) -> "Configuration":
    # Imported here: a peer's training needs nothing of ACKTR.
    from acktr.presets import resolve

    # Evaluations during training would count as time of learning; they change nothing else.
    settings = {**trial.settings, "eval_interval": 0, "n_final_eval_episodes": trial.eval_episodes}
    return resolve(
        trial.env_id,
        preset=trial.preset,
        overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
        options={"n_timesteps": trial.n_timesteps, "seed": trial.seed},
    ).configuration


def _train_acktr(trial: Trial, curve: LearningCurve, folder: Path) -> dict[str, Any]:
    """Train as ``acktr train`` does; return the backend and the figures of the evaluation."""
    from acktr.experiment import Experiment
    from acktr.runs import Run, holds_run

    with Experiment(_configuration(trial)) as experiment:
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
    seed, n_envs = trial.seed + _EVALUATION_SEED, min(trial.eval_episodes, _MAX_EVALUATION_ENVS)
    eval_env = peers.build_env(trial.env_id, settings, n_envs, seed, training=False)
    with contextlib.closing(eval_env):
        sync_envs_normalization(env, eval_env)
        returns, _lengths = evaluate_policy(
            model, eval_env, trial.eval_episodes, return_episode_rewards=True
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

    from acktr.compare.store import Store, session
    from acktr.memory import keep_freed_memory

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
    """What a trial's figures depend on beside its name: settings and code."""
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
