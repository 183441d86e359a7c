"""Filming an environment, and one sentence where nothing can be drawn."""

import os
import sys

import gymnasium as gym
from gymnasium.wrappers import RecordVideo

from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError


def check_film_packages() -> None:
    """Refuse to record where the packages that write films are not installed.

    :raises ConfigurationError: with the pip line
    """
    if not is_installed("moviepy"):
        raise ConfigurationError(
            'Recording needs moviepy, which is not installed: run `pip install "acktr[video]"`.'
        )


def prepare_rendering() -> None:
    """Make rendering work without a display where it can; call it before the environment is built."""
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        # The defaults of MuJoCo and pygame need a display.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def rendering_refusal(env: gym.Env | str, error: Exception) -> ConfigurationError:
    """Say that an environment cannot be drawn here, and what to install.

    :param env: the environment, or its id
    :param error: what the graphics library said
    """
    name = env if isinstance(env, str) else env.spec.id if env.spec else str(env)
    problem = " ".join(str(error).split()) or type(error).__name__
    return ConfigurationError(
        f"{name} cannot be rendered here ({problem}): "
        'run `pip install "acktr[video]"`; MuJoCo also needs the EGL or OSMesa library of the system '
        "(Debian and Ubuntu: libegl1 and libgl1-mesa-dri, or libosmesa6), named by MUJOCO_GL=egl or "
        "MUJOCO_GL=osmesa before Python starts."
    )


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
            raise rendering_refusal(env, error) from error

    def _capture_frame(self) -> None:
        try:
            super()._capture_frame()
        # What a missing display or driver raises is up to the graphics library.
        except Exception as error:
            self.recording = False
            raise rendering_refusal(self.env, error) from error
