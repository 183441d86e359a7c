"""Playing with masks: what chooses actions for SB3's evaluation, which knows no masks."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from acktr.envs.masks import ActionMasks, has_masks


class MaskedPlayer:
    """A model in all, whose ``predict`` asks environments first which actions they allow.

    :param model: whose ``predict`` takes ``action_masks``
    :param env: the environments that it plays in
    """

    def __init__(self, model: BaseAlgorithm, env: VecEnv) -> None:
        self._model: Any = model
        self._masks = ActionMasks(env, env.action_space)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Choose actions for the present observations of the environments."""
        masks = self._masks(self._model.num_timesteps)
        return self._model.predict(*args, action_masks=masks, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def player(model: BaseAlgorithm, env: VecEnv) -> Any:
    """Return what plays a model: with masks where it learns with them and the environments have them.

    :param model: any SB3 algorithm
    :param env: the environments that it is to play in
    """
    masked = getattr(model, "use_masking", False) and has_masks(env)
    return MaskedPlayer(model, env) if masked else model
