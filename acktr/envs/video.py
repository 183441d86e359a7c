"""Filming an environment, and one sentence where nothing can be drawn."""

import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

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
    """Make rendering work without a display where it can; call it before the environment is built.

    And with Triton in the process, which must be loaded before the library that draws.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        # The defaults of MuJoCo and pygame need a display.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if is_installed("triton"):
        # PyTorch's CUDA builds bring Triton and import it with the first optimizer. It and Mesa hold an
        # LLVM each, and the process ends with a segmentation fault where Mesa's came first.
        with suppress(ImportError):
            importlib.import_module("triton._C.libtriton")


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


class Film(gym.Wrapper):
    """Films the first episodes, one after another, with one sentence where nothing can be drawn.

    Frames go to the encoder as they are drawn: gymnasium's ``RecordVideo`` holds those of an episode in
    memory, a gigabyte for 1500, and makes a file of each.

    :param env: an environment made with ``render_mode="rgb_array"``
    :param path: the mp4 file to write; it is complete when the last of the episodes is over
    :param episodes: how many
    :raises ConfigurationError: if the environment cannot be rendered here
    """

    def __init__(self, env: gym.Env, path: Path, episodes: int = 1) -> None:
        super().__init__(env)
        if env.render_mode != "rgb_array":
            raise rendering_refusal(env, ValueError(f"its render mode is {env.render_mode}"))
        self._path = path
        self._left = episodes
        self._writer: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and film where it begins."""
        result = super().reset(**kwargs)
        self._film()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and film what came of it."""
        result = super().step(action)
        self._film()
        if result[2] or result[3]:
            self._left -= 1
            if self._left == 0:
                self._finish()
        return result

    def close(self) -> None:
        """Close the film, however far it is, and the environment."""
        self._finish()
        super().close()

    def _film(self) -> None:
        if self._left <= 0:
            return
        try:
            frame = np.ascontiguousarray(self.env.render(), dtype=np.uint8)
        # What a missing display or driver raises is up to the graphics library.
        except Exception as error:
            raise rendering_refusal(self.env, error) from error
        if self._writer is None:
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

            height, width, _ = frame.shape
            fps = self.env.metadata.get("render_fps") or 30
            self._writer = FFMPEG_VideoWriter(str(self._path), (width, height), fps)
        self._writer.write_frame(frame)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
