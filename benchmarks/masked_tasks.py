"""Tasks with invalid actions, under ids of gymnasium's registry: the suite ``masks``.

``acktr train benchmarks.masked_tasks:jobshop-6x4-v0`` learns one. All have ``action_masks()``, and say
what an invalid action does where nobody asks for masks.
"""

import os
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.tasks import import_package

MODULE = "benchmarks.masked_tasks"
COLUMNS = 7  # of Connect Four
LONGEST = 5  # operation of a job, time units
JOBS, MACHINES = 6, 4
# sb3-contrib's environments: their arguments, of which most actions are forbidden.
INVALID = {
    "Discrete": {"dim": 80, "n_invalid_actions": 60},
    "MultiDiscrete": {"dims": [6, 6, 6], "n_invalid_actions": 9},
    "MultiBinary": {"dims": 10, "n_invalid_actions": 5},
}


def invalid(kind: str) -> gym.Env:
    """Build sb3-contrib's test environment for a kind of action space, with random numbers of its own.

    It pays 1 for the action that it shows; a forbidden one is never that.

    :param kind: a key of :data:`INVALID`
    :raises ConfigurationError: sb3-contrib is not installed, with the pip line
    """
    base = getattr(import_package("invalid", "sb3_contrib.common.envs"), f"InvalidActionEnv{kind}")

    class Seeded(base):
        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                self.action_space.seed(seed)
            return super().reset(seed=seed, options=options)

        def _choose_next_state(self) -> None:
            # It draws from the generator that all numpy shares, which no seed of an environment reaches.
            before = np.random.get_state()  # noqa: NPY002
            np.random.seed(int(self.np_random.integers(2**31)))  # noqa: NPY002
            super()._choose_next_state()
            np.random.set_state(before)  # noqa: NPY002

    return Seeded(**INVALID[kind])


class ConnectFour(gym.Env):
    """PettingZoo's Connect Four against a player who draws from his legal moves.

    Who begins is drawn. A win pays 1, a defeat -1, a draw nothing. A move into a full column loses.
    Observations are the own pieces and the other's, ``(84,)``, zeros and ones.

    :raises ConfigurationError: a package is not installed, with the pip line
    """

    def __init__(self) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        # Not connect_four_v3, which warns that PettingZoo has a registry now, or that it had none.
        module = import_package("pettingzoo", "pettingzoo.classic.connect_four.connect_four")
        self._game = module.raw_env()
        self._mine = self._game.possible_agents[0]
        self.observation_space = spaces.Box(0.0, 1.0, (84,), np.float32)
        self.action_space = spaces.Discrete(COLUMNS)

    def action_masks(self) -> np.ndarray:
        """Tell which columns have room, ``(7,)``."""
        return self._game.observe(self._mine)["action_mask"].astype(bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._game.reset()
        players = self._game.possible_agents
        self._mine = players[self.np_random.integers(2)]
        if self._mine != players[0]:
            self._answer(players[0])
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_masks()[int(action)]:
            return self._observe(), -1.0, True, False, {}
        self._game.step(int(action))
        if not self._over():
            self._answer(self._game.agent_selection)
        return self._observe(), float(self._game.rewards[self._mine]), self._over(), False, {}

    def _answer(self, player: str) -> None:
        legal = np.flatnonzero(self._game.observe(player)["action_mask"])
        self._game.step(int(self.np_random.choice(legal)))

    def _over(self) -> bool:
        return any(self._game.terminations.values())

    def _observe(self) -> np.ndarray:
        return self._game.observe(self._mine)["observation"].astype(np.float32).ravel()


class JobShop(gym.Env):
    """A job shop: each job has to visit every machine once, in an order of its own.

    At each time unit every free machine takes one of the jobs that wait for it, and none where none
    does. A job waits at one machine only, so that what one machine may take does not depend on what
    others take, and a mask of the parts says all there is to say. A forbidden choice leaves the machine
    idle. Every time unit costs 1: the return is minus the time at which the last job is done. Routes and
    times are drawn for each episode.

    :param jobs: how many
    :param machines: how many
    """

    def __init__(self, jobs: int, machines: int) -> None:
        self._jobs, self._machines = jobs, machines
        self.action_space = spaces.MultiDiscrete([jobs + 1] * machines)  # the last is none
        self.observation_space = spaces.Box(0.0, 1.0, (jobs * (machines + 3) + machines,), np.float32)

    def action_masks(self) -> np.ndarray:
        """Tell which jobs wait for each machine that is free: none may be taken where none does."""
        masks = np.zeros((self._machines, self._jobs + 1), bool)
        for job in np.flatnonzero(self._waiting()):
            machine = self._routes[job, self._done[job]]
            masks[machine, job] = self._busy[machine] == 0
        masks[:, -1] = ~masks.any(1)
        return masks.ravel()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        shape = self._jobs, self._machines
        self._routes = self.np_random.permuted(
            np.tile(np.arange(self._machines), (self._jobs, 1)), axis=1
        )
        self._times = self.np_random.integers(1, LONGEST + 1, shape)
        self._done = np.zeros(self._jobs, int)  # operations of each job
        self._running = np.zeros(self._jobs, bool)
        self._busy = np.zeros(self._machines, int)  # time units to go
        self._holds = np.full(self._machines, -1)  # the job on each machine
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        masks = self.action_masks().reshape(self._machines, -1)
        for machine, job in enumerate(np.asarray(action).tolist()):
            if job < self._jobs and masks[machine, job]:
                self._busy[machine] = self._times[job, self._done[job]]
                self._holds[machine], self._running[job] = job, True
        self._busy = np.maximum(self._busy - 1, 0)
        for machine in np.flatnonzero((self._busy == 0) & (self._holds >= 0)):
            job = self._holds[machine]
            self._done[job] += 1
            self._running[job], self._holds[machine] = False, -1
        return self._observe(), -1.0, bool((self._done == self._machines).all()), False, {}

    def _waiting(self) -> np.ndarray:
        return ~self._running & (self._done < self._machines)

    def _observe(self) -> np.ndarray:
        """Of each job its next machine and time, the work left, whether it runs; the busy times."""
        rows = np.zeros((self._jobs, self._machines + 3), np.float32)
        for job in range(self._jobs):
            done = self._done[job]
            if done < self._machines:
                rows[job, self._routes[job, done]] = 1.0
                rows[job, self._machines] = self._times[job, done] / LONGEST
            left = self._times[job, done:].sum()
            rows[job, self._machines + 1 :] = left / (LONGEST * self._machines), self._running[job]
        return np.concatenate([rows.ravel(), self._busy / LONGEST]).astype(np.float32)


for _kind in INVALID:
    gym.register(f"invalid-{_kind}-v0", f"{MODULE}:invalid", kwargs={"kind": _kind})
gym.register("pettingzoo-connect_four-v0", f"{MODULE}:ConnectFour")
gym.register(
    f"jobshop-{JOBS}x{MACHINES}-v0",
    f"{MODULE}:JobShop",
    max_episode_steps=200,
    kwargs={"jobs": JOBS, "machines": MACHINES},
)
