"""Time limits of episodes, as far as environments tell them; where they do not, the limit is unknown."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper


def time_limit(env: VecEnv) -> int | None:
    """Return the number of steps after which an episode is cut at the latest.

    :param env: wrappers and all, between two steps
    :return: ``None`` where one of the environments has no limit, or does not tell
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    # What a vector environment of somebody's own does with a question is up to it.
    try:
        limits = list(_limits(env))
    except Exception:
        return None
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return max(known) if known and len(known) == len(limits) == env.num_envs else None


def _limits(env: VecEnv) -> list[Any]:
    if isinstance(env, SubprocVecEnv):
        # Not the specification: it may hold what cannot be pickled, and a worker that fails to send its
        # answer ends, as one does that is asked for what it does not have.
        name = "_max_episode_steps"  # gymnasium's TimeLimit
        return env.get_attr(name) if env.has_attr(name) else []
    specs = env.get_attr("spec")
    return [getattr(spec, "max_episode_steps", None) for spec in specs]
