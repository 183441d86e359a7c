"""Filming an environment, and one sentence where nothing can be drawn."""

import os
import sys

import gymnasium as gym
from gymnasium.wrappers import RecordVideo

from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError


def prepare_rendering() -> None:
    """Make rendering work without a display where it can; call it before the environment is built.

    :raises ConfigurationError: if the packages that write films are not installed
    """
    if not is_installed("moviepy"):
        raise ConfigurationError(
            'Recording needs moviepy, which is not installed: run `pip install "acktr[video]"`.'
        )
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        # The defaults of MuJoCo and pygame need a display.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


class Film(RecordVideo):
    """``RecordVideo`` of the first episode, with one sentence where nothing can be drawn.

    :param env: an environment made with ``render_mode="rgb_array"``
    :param folder: a directory to make, which gets the mp4 file when the episode is over
    :raises ConfigurationError: if the environment cannot be rendered here
    """

    def __init__(self, env: gym.Env, folder: str) -> None:
        try:
            super().__init__(env, folder, episode_trigger=lambda episode: episode == 0)
        except ValueError as error:
            raise self._refusal(env, error) from error

    def _capture_frame(self) -> None:
        try:
            super()._capture_frame()
        # What a missing display or driver raises is up to the graphics library.
        except Exception as error:
            self.recording = False
            raise self._refusal(self.env, error) from error

    @staticmethod
    def _refusal(env: gym.Env, error: Exception) -> ConfigurationError:
        problem = " ".join(str(error).split())
        return ConfigurationError(
            f"{env.spec.id if env.spec else env} cannot be rendered here ({problem}): "
            'run `pip install "acktr[video]"`; MuJoCo also needs the EGL or OSMesa library of the '
            "system (MUJOCO_GL=egl or MUJOCO_GL=osmesa)."
        )
