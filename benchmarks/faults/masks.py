"""Forbidden actions among those that policies with masks take, counted by the environment itself.

    python -m benchmarks.faults.masks [--steps 200000] [--out DIR]

Each of the suite's tasks is learned for so many steps, one of them with a memory too. A wrapper asks the
environment what is forbidden at the moment at which an action comes, whatever the learner had been told.
``policy_masks.csv`` has a row for each task. It ends with 1 if anything forbidden was taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR
from benchmarks import masked_tasks
from benchmarks.faults.measure import OUT, append, existing, write_manifest

COLUMNS = ("environment", "policy", "steps", "taken", "forbidden")
N_ENVS = 8
TASKS = (
    *((f"invalid-{kind}-v0", "MlpPolicy") for kind in masked_tasks.INVALID),
    ("pettingzoo-connect_four-v0", "MlpPolicy"),
    ("jobshop-6x4-v0", "MlpPolicy"),
    ("jobshop-6x4-v0", "MlpGruPolicy"),
)


class Watched(gym.Wrapper):
    """Counts actions, and those among them that the environment forbids when they come.

    :param env: an environment with ``action_masks()``
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.taken = self.forbidden = 0

    def step(self, action: Any) -> Any:
        """Take a step, and count it."""
        allowed = np.asarray(self.env.get_wrapper_attr("action_masks")(), bool)
        self.taken += 1
        self.forbidden += not allowed[places(self.action_space, action)].all()
        return super().step(action)


def places(space: spaces.Space, action: Any) -> np.ndarray:
    """Return where a mask speaks of each part of an action.

    :param space: ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    """
    if isinstance(space, spaces.Discrete):
        return np.array([int(action)])
    parts = np.asarray(action, int).ravel()
    widths = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(len(parts), 2)
    return parts + np.concatenate(([0], np.cumsum(widths)[:-1]))


def count(steps: int, known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Learn each task that is not known yet."""
    for name, policy in TASKS:
        if (name, policy) in known:
            continue
        envs = [Watched(gym.make(f"{masked_tasks.MODULE}:{name}")) for _ in range(N_ENVS)]
        with closing(DummyVecEnv([partial(_same, env) for env in envs])) as vec_env:
            model = ACKTR(policy, vec_env, seed=0).learn(steps)
        numbers = {key: sum(getattr(env, key) for env in envs) for key in ("taken", "forbidden")}
        yield {"environment": name, "policy": policy, "steps": model.num_timesteps, **numbers}


def _same(env: gym.Env) -> gym.Env:
    return env


def main(arguments: list[str] | None = None) -> int:
    """Count what is not counted yet.

    :return: 1 if anything forbidden was taken, else 0
    """
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.masks", description=about)
    parser.add_argument("--steps", type=int, default=200_000, help="of each task")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "policy_masks.csv"
    known = {(row["environment"], row["policy"]) for row in existing(table)}
    append(table, COLUMNS, count(options.steps, known))
    total = {key: sum(int(row[key]) for row in existing(table)) for key in COLUMNS[2:]}
    said = f"python -m benchmarks.faults.masks --steps {options.steps}"
    write_manifest(options.out / "policy_masks.json", said, total)
    print(json.dumps(total, indent=2))
    return int(total["forbidden"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
