"""EnvPool's MuJoCo and classic-control environments, simulated in C++."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

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


class EnvPoolVecEnv(NativeVecEnv):
    """Environments of EnvPool; environment i starts from its own seed, whatever the threads.

    EnvPool begins a new episode in the step after the end, which is no transition. Here the
    environments that are done begin at once, by a reset of them alone.

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

    def _restart(self, seeds: list[int] | None) -> np.ndarray:
        if seeds is not None:
            # Seeds of a pool are those it was made with.
            self._pool = _make(self.spec, seeds)
        return self._pool.reset()[0]

    def _send(self, actions: np.ndarray) -> None:
        self._pool.send(actions)

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
