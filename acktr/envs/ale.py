"""Atari games stepped in threads by ale-py's ``AtariVectorEnv``, preprocessed in C++."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from acktr.envs.native import End, NativeVecEnv, Step, check_autoreset

# What gymnasium's specification may set, and ``AtariVectorEnv`` takes too. Frames are skipped by the
# preprocessing, whatever the id says.
SETTINGS = frozenset({"repeat_action_probability", "full_action_space", "max_num_frames_per_episode"})
_TOLD = ("lives", "frame_number", "episode_frame_number")  # of a game that begins
_SIZE = 84
_NOOP = 0


class AleVecEnv(NativeVecEnv):
    """Games as SB3's ``AtariWrapper`` presents them, without its frame stack.

    No-op start, frame skip 4 with max-pooling, a lost life as the end of an episode, 84x84 grey,
    rewards clipped to their sign; scores are those of whole games. Each game has an engine and a
    thread of its own, and the system spreads the threads over the cores: an engine steps all its
    games at once, but after a lost life one game alone plays on to where the learner takes over.

    ``AtariVectorEnv`` has an ``episodic_life`` of its own, which is left off, because it starts the
    whole game anew at each lost life.

    :param spec: the specification of one of ale-py's games
    :param n_envs: how many games
    :param settings: values of :data:`SETTINGS` in place of the specification's
    :param monitor_dir: a directory for SB3's monitor files; ``None`` for none
    :param noop_max: a game starts with up to as many frames of doing nothing
    :raises ConfigurationError: if this ale-py begins new episodes in a way that is not known
    """

    backend = "ale"

    def __init__(
        self,
        spec: EnvSpec,
        n_envs: int,
        settings: dict[str, Any] | None = None,
        monitor_dir: str | None = None,
        noop_max: int = 30,
    ) -> None:
        chosen = {**spec.kwargs, **(settings or {})}
        options = {name: chosen[name] for name in SETTINGS & chosen.keys()}
        self._games = [_make(spec.kwargs["game"], noop_max, options) for _ in range(n_envs)]
        check_autoreset("ale-py", self._games[0].metadata, AutoresetMode.SAME_STEP)
        frame = spaces.Box(0, 255, (1, _SIZE, _SIZE), np.uint8)
        super().__init__(spec, n_envs, frame, self._games[0].single_action_space, monitor_dir)
        self._lives = np.zeros(n_envs, np.int64)
        # Frames that a game's emulator had played when its present episode began.
        self._first_frames = np.zeros(n_envs, np.int64)
        # What SB3's FireResetEnv presses where a game has a fire button; then the learner plays.
        actions = self._games[0].ale.get_action_set()
        fires = len(actions) >= 3 and actions[1].name == "FIRE"
        self._opening = (1, 2) if fires else ()

    def _restart(self, seeds: list[int] | None) -> np.ndarray:
        observations = self._allocate()
        for index, game in enumerate(self._games):
            seed = None if seeds is None else np.array([seeds[index]])
            observation, info = game.reset(seed=seed)
            self._begin(index, info)
            observations[index] = self._play(index, self._opening, observation[0])[0]
        return observations

    def _send(self, actions: np.ndarray) -> None:
        for game, action in zip(self._games, self._batches(actions), strict=True):
            game.send(action)

    def _receive(self) -> Step:
        observations = self._allocate()
        rewards = np.zeros(self.num_envs, np.float32)
        ends: dict[int, End] = {}
        for index in range(self.num_envs):
            lives = self._lives[index]
            observation, reward, end = self._receive_one(index)
            rewards[index] = np.sign(reward)
            # Some games go on for a few frames at 0 lives: what ends there is the game.
            if end is not None:
                observation, _ = self._play(index, self._opening, observation)
                ends[index] = end
            elif 0 < self._lives[index] < lives:
                last = observation.copy()
                # As SB3's EpisodicLifeEnv: one step of doing nothing leads out of the lost life.
                observation, episode = self._play(index, (_NOOP, *self._opening), observation)
                ends[index] = End(last, False, episode)
            observations[index] = observation
        return Step(observations, rewards, ends)

    def _receive_one(self, index: int) -> tuple[np.ndarray, int, End | None]:
        """Receive one game's step: a view of its observation, its reward, and its end if it is over."""
        observation, reward, terminated, truncated, info = self._games[index].recv()
        self._returns[index] += reward[0]
        end = None
        if terminated[0] or truncated[0]:
            # The numbers are of the next game already: the frames between the two starts are this one's.
            first_frame = _first_frame(info)
            self._lengths[index] = first_frame - self._first_frames[index]
            cut = bool(truncated[0] and not terminated[0])
            end = End(info["final_obs"][0].copy(), cut, self._finish(index))
            self._begin(index, info)
        self._lives[index] = info["lives"][0]
        return observation[0], reward[0], end

    def _play(
        self, index: int, actions: tuple[int, ...], observation: np.ndarray
    ) -> tuple[np.ndarray, dict[str, float] | None]:
        """Play what the learner never sees, after ``observation``, and tell if a game ended there."""
        episode = None
        for action in actions:
            self._games[index].send(np.array([action]))
            observation, _, end = self._receive_one(index)
            if end is not None:
                episode = end.episode
                # The new game has its own opening, in place of what is left of this one.
                return self._play(index, self._opening, observation)[0], episode
        return observation, episode

    def _begin(self, index: int, info: dict[str, Any]) -> None:
        self._first_frames[index] = _first_frame(info)
        self._lives[index] = info["lives"][0]
        self.reset_infos[index] = {name: info[name][0] for name in _TOLD}

    def _allocate(self) -> np.ndarray:
        return np.empty((self.num_envs, 1, _SIZE, _SIZE), np.uint8)

    def _batches(self, actions: np.ndarray) -> Iterator[np.ndarray]:
        return iter(np.asarray(actions, np.int64).reshape(self.num_envs, 1))

    def close(self) -> None:
        """Let the games go, and their threads with them."""
        super().close()
        self._games = []


def _first_frame(info: dict[str, Any]) -> int:
    """Count the frames of all games before the present one, which alone counts anew at each start."""
    return int(info["frame_number"][0]) - int(info["episode_frame_number"][0])


def _make(game: str, noop_max: int, options: dict[str, Any]) -> Any:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(
        game,
        1,
        num_threads=1,
        autoreset_mode=AutoresetMode.SAME_STEP,
        # VecFrameStack stacks, and fills up with zeros at a start as it does for any other backend.
        stack_num=1,
        noop_max=noop_max,
        # SB3's opening presses two buttons, the engine's one: _play does it.
        use_fire_reset=False,
        episodic_life=False,
        # The score is accounted first.
        reward_clipping=False,
        **options,
    )
