"""Whether a change of the code changes a bit of what is learned: digests of before and of now.

``python -m benchmarks.digests --before COMMIT`` checks that commit out beside this tree, trains the same
configurations with both for 20 updates, and compares digests of parameters, buffers, logged values,
normalisation statistics and generator state. Rounding differs between processors, so that none is kept.

This file is run by both sides, and speaks to each in its own words.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

ROOT = Path(__file__).parents[1]
os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported: pictures without a screen
UPDATES = 20
_FAILED = "failed:"

_SPACES = {
    "MultiDiscrete": (spaces.Box(-1, 1, (5,), np.float32), spaces.MultiDiscrete([3, 2])),
    "MultiBinary": (spaces.Box(-1, 1, (5,), np.float32), spaces.MultiBinary(3)),
    "Dict": (
        spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)}),
        spaces.Discrete(3),
    ),
    "Image": (spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3)),
}


class Toy(gym.Env):
    """Draws observations; the reward depends on both, episodes end by chance or by time."""

    def __init__(self, kind: str) -> None:
        self.observation_space, self.action_space = _SPACES[kind]
        self._steps = 0

    def _observe(self) -> Any:
        space = self.observation_space
        space.seed(int(self.np_random.integers(2**31)))
        return space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward = float(np.sum(action)) - float(self.np_random.random())
        return self._observe(), reward, bool(self.np_random.random() < 0.05), self._steps == 40, {}


for _kind in _SPACES:
    gym.register(f"Digest{_kind}-v0", entry_point=Toy, kwargs={"kind": _kind})

# Environment, and what changes of its preset, in the words that settings had in 0.1.0.
_SMALL = {"n_envs": 2, "n_steps": 16}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "HalfCheetah, preset": ("HalfCheetah-v5", {}),
    "CartPole, preset": ("CartPole-v1", {}),
    "Pendulum, preset": ("Pendulum-v1", {}),
    "MultiDiscrete": ("DigestMultiDiscrete-v0", {"normalize.norm_obs": False}),
    "MultiBinary": ("DigestMultiBinary-v0", {}),
    "Dict": ("DigestDict-v0", {}),
    "Dict, shared trunk": (
        "DigestDict-v0",
        {"policy_kwargs.share_features_extractor": True, "n_critic_updates": 1},
    ),
    "images, joint": ("DigestImage-v0", {**_SMALL, "policy": "CnnPolicy"}),
    "images, apart": (
        "DigestImage-v0",
        {**_SMALL, "policy_kwargs": {"share_features_extractor": False}},
    ),
    "Breakout, preset": ("ALE/Breakout-v5", {**_SMALL, "n_critic_updates": 8, "critic_batch_size": 16}),
    "pixels, preset": (
        "HalfCheetah-v5",
        {**_SMALL, "pixels": True, "n_critic_updates": 4, "critic_batch_size": 16},
    ),
    "conjugate gradients": ("Pendulum-v1", {"cg_iterations": 3, "critic_kfac_kwargs.cg_iterations": 2}),
    "sub-sampling": ("CartPole-v1", {"sub_sampling_factor": 2}),
    "sub-sampling with CG": ("Pendulum-v1", {"sub_sampling_factor": 2, "cg_iterations": 2}),
    "Adam critic, normalised": (
        "Pendulum-v1",
        {"critic_norm": "euclidean", "normalize_value_targets": True, "critic_batch_size": 64},
    ),
    "adaptive damping and sigma": (
        "Pendulum-v1",
        {"kfac_kwargs.adapt_damping": True, "critic_std": "adaptive", "normalize_value_targets": True},
    ),
    "dropout": ("DigestDict-v0", {"policy_kwargs.activation_fn": "Dropout"}),
    "as published": (
        "HalfCheetah-v5",
        {
            "kl_feedback": False,
            "corrected_learning_rate": None,
            "learning_rate": "lin_0.25",
            "target_kl": 0.001,
            "kfac_kwargs.fisher": "monte-carlo",
            "momentum": 0.9,
            "critic_trust_region": None,
            "critic_learning_rate": 0.001,
        },
    ),
}
RESUMED = {"resumed: HalfCheetah": "HalfCheetah, preset", "resumed: Breakout": "Breakout, preset"}
LOADED = {
    "saved and loaded: CartPole": "CartPole, preset",
    "saved and loaded: Adam": "Adam critic, normalised",
}
TWO_RANKS = "two ranks: Pendulum"


def _first(*names: str) -> Any:
    """Import the first of several modules that there is: they have moved."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return importlib.import_module(names[-1])


def _in_present_words(moved: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Name settings as they are named now, by dotted keys."""
    kept = {key: value for key, value in changes.items() if key.partition(".")[0] not in moved.MOVED}
    old: dict[str, Any] = {}
    for key in changes.keys() - kept.keys():
        name, _, inner = key.partition(".")
        if inner:
            old.setdefault(name, {})[inner] = changes[key]
        else:
            old[name] = changes[key]
    return {**kept, **dict(_dotted(moved.current_settings(old, "a configuration")[0]))}


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _experiment(name: str, updates: int) -> Any:
    env_id, changes = CONFIGURATIONS[name]
    changes = {"backend": "gymnasium", "eval_interval": 0, "n_final_eval_episodes": 0, **changes}
    loader = _first("acktr.presets.loader")
    try:
        moved = importlib.import_module("acktr.learner.moved")
    except ImportError:  # before they moved
        pass
    else:
        changes = _in_present_words(moved, changes)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    first = loader.resolve(env_id, overrides=overrides, options={"seed": 3}).configuration
    n_steps = first.algorithm_arguments()["n_steps"] or max(512 // first.n_envs, 16)
    steps = n_steps * first.n_envs * updates
    options = {"seed": 3, "n_timesteps": steps}
    configuration = loader.resolve(env_id, overrides=overrides, options=options).configuration
    return _first("acktr.run.experiment", "acktr.experiment").Experiment(configuration)


class _Logged(BaseCallback):
    """Hashes what each update has logged; times are nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        kept = {key: values[key] for key in sorted(values) if not key.startswith("time/")}
        self.digest.update(repr([(key, float(x)) for key, x in kept.items()]).encode())

    def _on_step(self) -> bool:
        return True


def _parts(model: Any) -> Iterator[bytes]:
    for name, tensor in [*model.policy.named_parameters(), *model.policy.named_buffers()]:
        yield name.encode()
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        moments = [normalize.ret_rms]
        if normalize.norm_obs:
            found = normalize.obs_rms
            moments += list(found.values()) if isinstance(found, dict) else [found]
        for part in moments:
            yield (
                repr(part.count).encode()
                + np.asarray(part.mean).tobytes()
                + np.asarray(part.var).tobytes()
            )
    yield torch.get_rng_state().numpy().tobytes()
    yield repr((model.num_timesteps, model._n_updates)).encode()


def _digest(model: Any, logged: _Logged) -> dict[str, str]:
    state = hashlib.sha256()
    for part in _parts(model):
        state.update(part)
    return {"state": state.hexdigest()[:16], "logged": logged.digest.hexdigest()[:16]}


def _learn(name: str) -> dict[str, str]:
    logged = _Logged()
    with _experiment(name, UPDATES) as experiment:
        experiment.model.learn(experiment.configuration.n_timesteps, log_interval=1, callback=logged)
        return _digest(experiment.model, logged)


def _resume(name: str) -> dict[str, str]:
    run_class = _first("acktr.run.directory", "acktr.runs").Run
    logged = _Logged()
    with tempfile.TemporaryDirectory() as folder:
        run = run_class(Path(folder))
        for updates in (UPDATES // 2, UPDATES):
            with _experiment(name, updates) as experiment:
                experiment.train(run, callbacks=[logged], resume=updates == UPDATES)
                digest = _digest(experiment.model, logged)
    return digest


def _load(name: str) -> dict[str, str]:
    acktr, logged = importlib.import_module("acktr"), _Logged()
    with _experiment(name, UPDATES) as experiment, tempfile.TemporaryDirectory() as folder:
        half = experiment.configuration.n_timesteps // 2
        experiment.model.learn(half, log_interval=1, callback=logged)
        experiment.model.save(f"{folder}/model")
        model = acktr.ACKTR.load(f"{folder}/model", env=experiment.env, device="cpu")
        model.learn(half, log_interval=1, callback=logged, reset_num_timesteps=False)
        return _digest(model, logged)


def _jobs() -> dict[str, Callable[[], dict[str, str]]]:
    jobs: dict[str, Callable[[], dict[str, str]]] = {}
    for name in CONFIGURATIONS:
        jobs[name] = lambda name=name: _learn(name)
    for name, of in RESUMED.items():
        jobs[name] = lambda of=of: _resume(of)
    for name, of in LOADED.items():
        jobs[name] = lambda of=of: _load(of)
    return jobs


def _make(only: list[str]) -> None:
    """Print a line of JSON for each configuration."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, job in _jobs().items():
        if not only or any(part in name for part in only):
            try:
                made: Mapping[str, str] = job()
            except Exception as error:  # told beside the others
                made = {"state": f"{_FAILED} {type(error).__name__}: {error}"[:300], "logged": ""}
            print(json.dumps({"name": name, **made}), flush=True)


def _make_as_rank() -> None:
    """Train one configuration in one of several processes and print both digests in order."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed = _first("acktr.distributed")
    start = getattr(distributed, "joined", None) or _first("acktr.distributed.launch").joined
    with start("cpu"):
        made = _learn("Pendulum, preset")
    line = json.dumps({"name": f"{TWO_RANKS}, rank {os.environ['RANK']}", **made})
    os.write(1, f"{line}\n".encode())  # whole: the other rank writes too


def _run(checkout: Path, only: list[str]) -> dict[str, tuple[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    script = [str(Path(__file__).resolve())]
    commands = [[sys.executable, *script, "--make", *only]]
    if not only or any(part in TWO_RANKS for part in only):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        commands.append([sys.executable, *launch, *script, "--make-as-rank"])
    found = {}
    for command in commands:
        done = subprocess.run(command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True)
        for line in filter(lambda line: line.startswith("{"), done.stdout.splitlines()):
            row = json.loads(line)
            found[row["name"]] = (row["state"], row["logged"])
    return dict(sorted(found.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digests", description=__doc__)
    parser.add_argument("--before", help="the commit to compare with")
    parser.add_argument("--make", action="store_true", help="print the digests of the acktr on the path")
    parser.add_argument("--make-as-rank", action="store_true", help="the same as one of several ranks")
    parser.add_argument("only", nargs="*", help="parts of names; all configurations without one")
    given = parser.parse_args()
    if given.make or given.make_as_rank:
        _make_as_rank() if given.make_as_rank else _make(given.only)
        return 0
    if not given.before:
        parser.error("--before is needed: the commit to compare with")
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, "before")
        git = ["git", "-C", str(ROOT), "worktree"]
        add = [*git, "add", "--detach", str(checkout), given.before]
        subprocess.run(add, check=True, capture_output=True)
        try:
            before = _run(checkout, given.only)
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)
    now = _run(ROOT, given.only)
    differing = 0
    for name in dict.fromkeys([*before, *now]):
        pair = before.get(name, ("absent", "")), now.get(name, ("absent", ""))
        same = pair[0] == pair[1] and not pair[0][0].startswith(_FAILED)
        differing += not same
        line = f"{'same ' if same else 'OTHER'}  {name:<34} {' '.join(pair[0])}"
        print(line if same else f"{line} -> {' '.join(pair[1])}")
    print(f"{len(before)} configurations, {differing} of them other than at {given.before}.")
    return int(differing > 0 or not before)


if __name__ == "__main__":
    sys.exit(main())
