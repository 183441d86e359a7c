"""EnvPool's MuJoCo and classic-control environments, simulated in C++."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from acktr.envs.attributes import NotCapturable
from acktr.envs.kinds import is_whole
from acktr.envs.native import End, NativeVecEnv, Step, check_autoreset, count_threads

# Those whose returns and lengths a test finds equal to gymnasium's. Left out: Humanoid and
# HumanoidStandup, whose contacts the MuJoCo inside EnvPool solves otherwise (one step from the same
# state is 0.01 off, a hundred times what gymnasium itself scatters), and Pusher, whose objects start
# elsewhere. Observations are gymnasium's in shape and dtype.
_MUJOCO: tuple[str, ...] = ("Ant", "HalfCheetah", "Hopper", "Reacher", "Swimmer", "Walker2d")
_MUJOCO += ("InvertedDoublePendulum", "InvertedPendulum")
ENVPOOL_IDS = frozenset(
    {
        *(f"{name}-{version}" for name in _MUJOCO for version in ("v4", "v5")),
        *("Acrobot-v1", "CartPole-v0", "CartPole-v1", "Pendulum-v1"),
        *("MountainCar-v0", "MountainCarContinuous-v0"),
    }
)
# A step of these takes gymnasium less than it takes a thread to wake up.
CHEAP_IDS = frozenset({"CartPole-v0", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0"})

_LONGEST = 100_000  # steps that are kept to be played again
_MOST = 10**7  # episodes of an environment that are begun again
_LOST = -1


class EnvPoolVecEnv(NativeVecEnv):
    """Environments of EnvPool; environment i starts from its own seed, whatever the threads.

    EnvPool begins a new episode in the step after the end, which is no transition. Here the
    environments that are done begin at once, by a reset of them alone.

    Its state is where its random numbers began, how many episodes each environment has begun since, and
    the actions of the present ones: played again, they lead to the same place.

    :param env: one environment of gymnasium, for its specification and its spaces
    :param n_envs: how many environments
    :param monitor_dir: a directory for SB3's monitor files; ``None`` for none
    :raises ConfigurationError: if this EnvPool begins new episodes in a way that is not known
    """

    backend = "envpool"

    def __init__(self, env: gym.Env, n_envs: int, monitor_dir: str | None = None) -> None:
        spec = env.spec
        assert spec is not None
        super().__init__(spec, n_envs, env.observation_space, env.action_space, monitor_dir)
        self._pool = _make(spec, [0] * n_envs)
        check_autoreset("EnvPool", self._pool.metadata, AutoresetMode.NEXT_STEP)
        self._pool_seeds = [0] * n_envs
        self._n_begun = np.zeros(n_envs, np.int64)  # episodes, since the pool was made
        self._played: list[np.ndarray] = []  # the last steps' actions, of all environments
        self._first = np.zeros(n_envs, np.int64)  # among them, of each environment's episode

    def _restart(self, seeds: list[int] | None) -> np.ndarray:
        if seeds is not None:
            # Seeds of a pool are those it was made with.
            self._pool, self._pool_seeds = _make(self.spec, seeds), seeds
            self._n_begun[:] = 0
        self._begin(np.arange(self.num_envs))
        return self._pool.reset()[0]

    def _begin(self, indices: np.ndarray) -> None:
        """Take down that episodes begin."""
        self._n_begun[indices] += 1
        self._first[indices] = len(self._played)
        forgotten = int(self._first.min())
        if forgotten > 0:
            del self._played[:forgotten]
            self._first -= forgotten

    def _send(self, actions: np.ndarray) -> None:
        if len(self._played) >= _LONGEST:
            # Episodes without end: what led to where they are is no longer known.
            self._played.clear()
            self._first[:] = _LOST
        self._played.append(np.array(actions))
        self._pool.send(actions)

    def get_state(self) -> dict[str, Any]:
        """Return the state, between two steps; see :mod:`acktr.envs.state`.

        :raises NotCapturable: an episode is too long to be played again
        """
        if (self._first == _LOST).any():
            raise NotCapturable(f"an episode has more than {_LONGEST} steps, too many to play again")
        if self._n_begun.max() > _MOST:
            raise NotCapturable(f"more than {_MOST} episodes, too many to begin again")
        return {
            "seeds": list(self._pool_seeds),
            "begun": self._n_begun.copy(),
            "first": self._first.copy(),
            "played": np.array(self._played),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to a state by playing what led to it.

        :raises ValueError: it is of other environments
        """
        begun, first, played = (np.asarray(state[key]) for key in ("begun", "first", "played"))
        n_envs = (self.num_envs,)
        if not (len(state["seeds"]),) == begun.shape == first.shape == n_envs:
            raise ValueError(f"a state of {len(begun)} environments, where there are {self.num_envs}")
        sums = np.shape(state["returns"]) == np.shape(state["lengths"]) == n_envs
        steps = len(played) <= _LONGEST and (not len(played) or played.shape[1:2] == n_envs)
        counts = begun.max(initial=0) <= _MOST and first.min() >= 0 and first.max() <= len(played)
        if not (sums and steps and counts and all(is_whole(seed, least=0) for seed in state["seeds"])):
            raise ValueError("more than can be played again, or nothing that was played")
        self._pool, self._pool_seeds = _make(self.spec, state["seeds"]), list(state["seeds"])
        for count in range(begun.max(initial=0)):
            self._pool.reset(np.flatnonzero(begun > count))
        for step, actions in enumerate(played):
            playing = np.flatnonzero(first <= step)
            self._pool.step(actions[playing], playing)
        self._n_begun[:], self._first[:], self._played = begun, first, list(played)
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]

    def _receive(self) -> Step:
        observations, rewards, terminated, truncated, _ = self._pool.recv()
        self._returns += rewards
        self._lengths += 1
        ended = np.flatnonzero(terminated | truncated)
        if not len(ended):
            return Step(observations, rewards, {})
        ends = {
            index: End(observations[index].copy(), bool(truncated[index]), self._finish(index))
            for index in ended.tolist()
        }
        self._begin(ended)
        observations[ended] = self._pool.reset(ended)[0]
        return Step(observations, rewards, ends)

    def close(self) -> None:
        """Let the pool go, and its threads with it."""
        super().close()
        self._pool = None


def _make(spec: EnvSpec, seeds: list[int]) -> Any:
    with warnings.catch_warnings():
        # It states bounds in another precision than its spaces have; ours are gymnasium's.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        import envpool

        pool = envpool.make_gymnasium(
            spec.id,
            num_envs=len(seeds),
            # Classic control is a few operations in C++: handing it to a second thread takes longer.
            num_threads=count_threads(len(seeds)) if spec.id.startswith(_MUJOCO) else 1,
            seed=seeds,
            max_episode_steps=spec.max_episode_steps,
        )
        # Built at the first step otherwise, outside of this block.
        _ = pool.observation_space
    return pool
