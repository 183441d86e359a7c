"""SB3's ``Monitor`` in memory that does not grow, neither with episodes nor with steps."""

import time
from collections import deque
from typing import Any

from stable_baselines3.common.monitor import Monitor

# What is counted of the present episode, and nothing of earlier ones.
ACCOUNT = frozenset({"rewards", "summed", "needs_reset", "total_steps"})
_EPISODES = 100  # whose accounts are kept
_REWARDS = 1024  # that are kept one by one


class BoundedMonitor(Monitor):
    """``Monitor`` that keeps the last episodes alone, and of a long one the sum of its first rewards.

    SB3's keeps all episodes (100 bytes each) and all rewards of the present one, for which an endless
    episode has no end. Times are those of a clock that nobody sets.

    :param monitor: whose place this takes
    """

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor.env, allow_early_resets=monitor.allow_early_resets)
        self.t_start, self.results_writer = monitor.t_start, monitor.results_writer
        self.begun = time.perf_counter()
        self.episode_returns = deque(maxlen=_EPISODES)  # type: ignore[assignment]  # as a list is read
        self.episode_lengths = deque(maxlen=_EPISODES)  # type: ignore[assignment]
        self.episode_times = deque(maxlen=_EPISODES)  # type: ignore[assignment]
        self.summed = 0  # of the rewards so many are in the first one

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode."""
        self.summed = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        """Step, and close the account of an episode that ends."""
        if self.needs_reset:
            raise RuntimeError("Tried to step environment that needs reset")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        if len(self.rewards) > _REWARDS:
            self.summed += len(self.rewards) - 1
            self.rewards = [sum(self.rewards)]
        if terminated or truncated:
            self.needs_reset = True
            score, length = sum(self.rewards), len(self.rewards) + self.summed
            seconds = time.perf_counter() - self.begun
            episode = {"r": round(score, 6), "l": length, "t": round(seconds, 6)}
            self.episode_returns.append(score)
            self.episode_lengths.append(length)
            self.episode_times.append(seconds)
            if self.results_writer:
                self.results_writer.write_row(episode)
            info["episode"] = episode
        self.total_steps += 1
        return observation, reward, terminated, truncated, info

    def get_episode_rewards(self) -> list[float]:
        """Return the returns of the last episodes."""
        return list(self.episode_returns)

    def get_episode_lengths(self) -> list[int]:
        """Return the lengths of the last episodes, in steps."""
        return list(self.episode_lengths)

    def get_episode_times(self) -> list[float]:
        """Return when the last episodes ended, in seconds since the beginning."""
        return list(self.episode_times)
