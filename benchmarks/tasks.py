"""Tasks of other packages under ids of gymnasium's registry, as a user would register his own.

``acktr train benchmarks.tasks:dmc-walker-walk-v0`` learns one. The packages come with
``pip install "acktr[general]"``; one is imported when a task of it is made.
"""

import importlib
import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import DiscretizeAction, FlattenObservation, TransformObservation
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError

MODULE = "benchmarks.tasks"
MODULES = (MODULE, "benchmarks.masked_tasks", "benchmarks.memory_tasks")
DM_CONTROL = ("finger-spin", "walker-walk", "cartpole-swingup", "cheetah-run", "ball_in_cup-catch")
MINATAR = ("breakout", "space_invaders")
MINIGRID = ("DoorKey-5x5", "Empty-8x8")
MINATAR_STEPS = 2500  # of an episode
LEVELS = 11  # of each joint's torque
AGENTS = 3
# What the tasks import, by the beginning of their ids.
PACKAGES = {
    "dmc": ("dm_control", "shimmy"),
    "minatar": ("minatar",),
    "minigrid": ("minigrid",),
    "robotics": ("gymnasium_robotics", "mujoco"),
    "multidiscrete": ("mujoco",),
    "mpe": ("mpe2",),
    "invalid": ("sb3_contrib",),
    "pettingzoo": ("pettingzoo", "pygame"),
}


def dm_control(task: str, **kwargs: Any) -> gym.Env:
    """Build a task of dm_control that observes one vector of float32.

    :param task: domain and task, such as ``walker-walk``
    :param kwargs: for ``gymnasium.make``
    :raises ConfigurationError: a package is not installed, with the pip line
    """
    import_package("dmc", "shimmy")  # registers dm_control's tasks
    env = gym.make(f"dm_control/{task}-v0", disable_env_checker=True, **kwargs)
    return _as_float32(FlattenObservation(env))


def minigrid(task: str, **kwargs: Any) -> gym.Env:
    """Build a task of MiniGrid that observes the numbers of what is seen, 7×7×3, as float32 in a row.

    :param task: such as ``DoorKey-5x5``
    :param kwargs: for ``gymnasium.make``
    :raises ConfigurationError: MiniGrid is not installed, with the pip line
    """
    wrappers = import_package("minigrid", "minigrid.wrappers")
    env = gym.make(f"MiniGrid-{task}-v0", disable_env_checker=True, **kwargs)
    return _as_float32(FlattenObservation(wrappers.ImgObsWrapper(env)))


def fetch(task: str, **kwargs: Any) -> gym.Env:
    """Build a task of gymnasium-robotics, which observes a dictionary with the goal.

    :param task: such as ``FetchReachDense-v4``
    :param kwargs: for ``gymnasium.make``
    :raises ConfigurationError: a package is not installed, with the pip line
    """
    gym.register_envs(import_package("robotics", "gymnasium_robotics"))
    utilities = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")
    # Release 1.4 looks for numpy's integers among the enumerations of MuJoCo, which 3.15 tells apart.
    mujoco = importlib.import_module("mujoco")
    joints = {name: int(kind) for name, kind in mujoco.mjtJoint.__members__.items()}
    utilities.mujoco = SimpleNamespace(**{**vars(mujoco), "mjtJoint": SimpleNamespace(**joints)})
    return gym.make(task, disable_env_checker=True, **kwargs)


def multidiscrete(task: str, **kwargs: Any) -> gym.Env:
    """Build a task of continuous actions with :data:`LEVELS` levels for each of them.

    :param task: such as ``Reacher-v5``
    :param kwargs: for ``gymnasium.make``
    :raises ConfigurationError: MuJoCo is not installed, with the pip line
    """
    import_package("multidiscrete", "mujoco")
    env = gym.make(task, disable_env_checker=True, **kwargs)
    return DiscretizeAction(env, LEVELS, multidiscrete=True)


class MinAtar(gym.Env):
    """A game of MinAtar with sticky actions of probability 0.1 and the actions that it has a use for.

    Young and Tian 2019 (arXiv 1903.03176). Observations are images ``(n_channels, 10, 10)``, float32, of
    zeros and ones.

    :param game: such as ``breakout``
    :raises ConfigurationError: MinAtar is not installed, with the pip line
    """

    def __init__(self, game: str) -> None:
        self._game = import_package("minatar", "minatar").Environment(game, sticky_action_prob=0.1)
        self._actions = self._game.minimal_action_set()
        height, width, channels = self._game.state_shape()
        self.observation_space = spaces.Box(0.0, 1.0, (channels, height, width), np.float32)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._game.seed(seed)  # None leaves its generator as it is
        self._game.reset()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, over = self._game.act(self._actions[int(action)])
        return self._observe(), float(reward), bool(over), False, {}

    def _observe(self) -> np.ndarray:
        return np.ascontiguousarray(self._game.state().transpose(2, 0, 1), np.float32)


class SimpleSpread(gym.vector.VectorEnv):
    """Games of MPE's ``simple_spread``. Each agent of each game is an environment: all have one policy.

    Three agents are to cover three landmarks and not to collide; half of a reward is an agent's own.

    :param num_envs: how many agents are asked for; the last game has all of its own
    :param max_episode_steps: of a game
    :raises ConfigurationError: mpe2 is not installed, with the pip line
    """

    def __init__(self, num_envs: int, max_episode_steps: int) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        game = import_package("mpe", "mpe2.simple_spread_v3")
        self._games = [
            game.parallel_env(N=AGENTS, max_cycles=max_episode_steps)
            for _ in range(math.ceil(num_envs / AGENTS))
        ]
        self._agents = self._games[0].possible_agents
        self.num_envs = AGENTS * len(self._games)
        self.single_observation_space = self._games[0].observation_space(self._agents[0])
        self.single_action_space = self._games[0].action_space(self._agents[0])
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        seeds = [None if seed is None else seed + i for i in range(len(self._games))]
        pairs = zip(self._games, seeds, strict=True)
        return self._in_a_row(game.reset(seed=seed)[0] for game, seed in pairs), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        shown, rewards, over = [], [], []
        infos: dict[str, Any] = {}
        for game, chosen in zip(self._games, actions.reshape(-1, AGENTS), strict=True):
            answer = game.step(dict(zip(self._agents, chosen, strict=True)))
            rewards.append(answer[1])
            over.append(answer[3])
            shown.append(answer[0])
        ends = self._in_a_row(over).astype(bool)
        if ends.any():  # of all games at once: only time ends them
            infos = {"final_obs": self._in_a_row(shown), "_final_obs": ends}
            shown = [game.reset()[0] for game in self._games]
        return self._in_a_row(shown), self._in_a_row(rewards), np.zeros_like(ends), ends, infos

    def _in_a_row(self, of_games: Iterable[Mapping[str, Any]]) -> np.ndarray:
        return np.array([of_game[agent] for of_game in of_games for agent in self._agents])

    def close_extras(self) -> None:
        for game in self._games:
            game.close()


class MinAtarCNN(BaseFeaturesExtractor):
    """The network of MinAtar's authors: 16 convolutions of 3×3, and 128 units.

    :param observation_space: of images ``(n_channels, height, width)``
    :param features_dim: how many units
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers(observations)


def check_installed(env_id: str) -> None:
    """Refuse a task whose packages are not installed.

    :param env_id: of any environment; those of other modules pass
    :raises ConfigurationError: with the pip line
    """
    module, _, name = env_id.rpartition(":")
    if module in MODULES:
        _require(name.partition("-")[0])


def _as_float32(env: gym.Env) -> gym.Env:
    # gymnasium's DtypeObservation warns of the bounds' precision, infinite as they are.
    low, high = (
        bound.astype(np.float32) for bound in (env.observation_space.low, env.observation_space.high)
    )
    return TransformObservation(env, lambda x: x.astype(np.float32), spaces.Box(low, high))


def import_package(kind: str, module: str) -> Any:
    """Import a module that a kind of tasks needs.

    :raises ConfigurationError: its package is not installed, with the pip line
    """
    _require(kind)
    return importlib.import_module(module)


def _require(kind: str) -> None:
    missing = [package for package in PACKAGES.get(kind, ()) if not is_installed(package)]
    if missing:
        bound = ", for dm_control with Python 3.12 or older" if "dm_control" in missing else ""
        raise ConfigurationError(
            f"The tasks {kind}-… need {' and '.join(missing)}, which is not installed: "
            f'run `pip install "acktr[general]"`{bound}.'
        )


for _task in DM_CONTROL:
    gym.register(f"dmc-{_task}-v0", f"{MODULE}:dm_control", kwargs={"task": _task})
for _task in MINATAR:
    gym.register(
        f"minatar-{_task}-v0",
        f"{MODULE}:MinAtar",
        max_episode_steps=MINATAR_STEPS,
        kwargs={"game": _task},
    )
for _task in MINIGRID:
    gym.register(f"minigrid-{_task}-v0", f"{MODULE}:minigrid", kwargs={"task": _task})
gym.register("robotics-FetchReachDense-v0", f"{MODULE}:fetch", kwargs={"task": "FetchReachDense-v4"})
gym.register("multidiscrete-Reacher-v0", f"{MODULE}:multidiscrete", kwargs={"task": "Reacher-v5"})
gym.register(
    "mpe-simple_spread-v0",
    entry_point=None,
    vector_entry_point=f"{MODULE}:SimpleSpread",
    max_episode_steps=25,
)
