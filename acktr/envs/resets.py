"""Infos of resets, through wrappers: SB3's own answer with empty dicts of theirs."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecFrameStack


class TellsResets:
    """A ``VecEnvWrapper`` whose ``reset_infos`` are those of what it wraps."""

    venv: VecEnv

    @property
    def reset_infos(self) -> list[dict[str, Any]]:
        """Infos of the last reset of each environment."""
        return list(self.venv.reset_infos)

    @reset_infos.setter
    def reset_infos(self, infos: object) -> None:
        """Ignore what VecEnv's constructor sets: the wrapped environments know."""


class VecStack(TellsResets, VecFrameStack):
    """SB3's ``VecFrameStack`` that tells what resets told."""
