"""Pictures in the place of states: 42 x 42 RGB, as in Wu et al. 2017 (sec. 5), drawn off screen.

Gymnasium's wrappers do it, but for the drawing itself where the simulator is MuJoCo. Gymnasium's viewers
draw into whichever OpenGL context is current, and one that is closed or collected deletes what another
draws into: with several environments in a process pictures turn black without an error. MuJoCo's own
renderer makes its context the current one each time.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import AddRenderObservation, ResizeObservation

from acktr.envs.cameras import choose_camera, widen_floor
from acktr.envs.lookup import is_installed
from acktr.envs.mujoco import hear_warnings, is_mujoco
from acktr.envs.video import prepare_rendering, rendering_refusal
from acktr.errors import ConfigurationError

SIZE = 42  # pixels, both ways
FRAME_STACK = 2
# Each pixel is the mean of 2 x 2: drawn at 42 x 42 the arm of Reacher and its goal come and go.
_DRAWN = 2 * SIZE


def pixel_arguments(env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``gymnasium.make`` for an environment that is to be drawn.

    :raises ConfigurationError: OpenCV is not installed, or another render mode is asked for
    """
    if not is_installed("cv2"):
        raise ConfigurationError(
            'pixels needs cv2, which is not installed: run `pip install "acktr[pixels]"`.'
        )
    if env_kwargs.get("render_mode", "rgb_array") != "rgb_array":
        raise ConfigurationError(
            f"pixels with render_mode={env_kwargs['render_mode']!r}: leave it out, what is observed is "
            "drawn as an array."
        )
    return {**env_kwargs, "render_mode": "rgb_array"}


def make_pixel_env(spec: EnvSpec, env_kwargs: dict[str, Any]) -> gym.Env:
    """Make an environment that observes pictures of itself, see :func:`observe_pixels`.

    :param spec: from gymnasium's registry
    :param env_kwargs: what :func:`pixel_arguments` returned
    :raises ConfigurationError: it cannot be drawn here; says what to install
    """
    prepare_rendering()
    try:
        hear_warnings(spec)
        env = gym.make(spec, **env_kwargs)
    except (AttributeError, RuntimeError) as error:
        # Importing MuJoCo raises these where the library that MUJOCO_GL names is missing.
        raise rendering_refusal(spec.id, error) from error
    return observe_pixels(env)


def observe_pixels(env: gym.Env) -> gym.Env:
    """Let an environment observe pictures of itself, ``(42, 42, 3)`` bytes.

    :param env: made with ``render_mode="rgb_array"``
    :raises ConfigurationError: it cannot be drawn here; says what to install
    """
    drawn = MujocoFrames(env, _DRAWN) if is_mujoco(env.unwrapped) else env
    try:
        pictures = AddRenderObservation(drawn)
    # What a missing display or driver raises is up to the graphics library.
    except Exception as error:
        raise rendering_refusal(env, error) from error
    return ResizeObservation(pictures, (SIZE, SIZE))


def film_frames(env: gym.Env, size: int = 480, camera: str | None = None) -> gym.Env:
    """Let ``render`` return what is to be filmed: larger pictures than are observed, of the body.

    :param env: any environment
    :param size: width and height, where pictures are observed
    :param camera: see :func:`acktr.envs.cameras.choose_camera`
    :raises ConfigurationError: there is no such camera
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, MujocoFrames):
            # What the policy sees, unless something else is asked for.
            return MujocoFrames(env, size, None if camera is None else choose_camera(env, camera))
        layer = layer.env
    choose_camera(env, camera)
    widen_floor(env)
    return env


def open_renderer(model: Any, height: int, width: int) -> Any:
    """Open MuJoCo's off-screen renderer, by the OpenGL that ``MUJOCO_GL`` names."""
    import mujoco

    return mujoco.Renderer(model, height, width)


class MujocoFrames(gym.Wrapper):
    """``render`` by MuJoCo's own renderer, without what costs most and shows least in a small picture.

    Shadows, reflections and multisampling take 98 % of the time where a CPU draws; of what is left, half
    and more goes into facets that hardly show.

    :param env: one of gymnasium's MuJoCo environments, or built like them
    :param size: width and height of its frames
    :param camera: one of the model's, by name or number; by default the one that follows the body
    :raises ConfigurationError: nothing can be drawn here
    """

    def __init__(self, env: gym.Env, size: int, camera: str | int | None = None) -> None:
        super().__init__(env)
        simulator: Any = env.unwrapped
        quality = simulator.model.vis.quality
        quality.shadowsize, quality.offsamples = 0, 0
        try:
            with _few_facets(simulator.model, size):
                renderer = open_renderer(simulator.model, size, size)
        except Exception as error:
            raise rendering_refusal(env, error) from error
        _draw_plainly(renderer.scene)
        seen_from = _camera(simulator) if camera is None else camera

        def draw() -> np.ndarray:
            renderer.update_scene(simulator.data, seen_from)
            frame: np.ndarray = renderer.render()
            return frame

        # A function: what draws holds nothing that a checkpoint would have to keep.
        self._draw = draw
        self._close_renderer = renderer.close
        # Python may have ended OpenGL before it collects this.
        atexit.register(self._close_renderer)

    def render(self) -> Any:
        """Return a frame ``(size, size, 3)`` of bytes."""
        return self._draw()

    def close(self) -> None:
        """Close the renderer and the environment."""
        atexit.unregister(self._close_renderer)
        self._close_renderer()
        super().close()


@contextmanager
def _few_facets(model: Any, size: int) -> Iterator[None]:
    """Let a renderer that is opened inside draw with few facets where its pictures are small.

    A sphere has 8 around it and 4 from pole to pole at 84 x 84, and MuJoCo's own 28 and 16 from
    320 x 320 on. The floor of Hopper has 320 x 320 squares, of which 40 x 40 show the same light. A
    renderer makes its shapes when it is opened, so the model gets its own numbers back.
    """
    import mujoco

    quality = model.vis.quality
    round_facets = quality.numslices, quality.numstacks
    planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    sizes = model.geom_size[planes]  # half a length, half a width, and the width of a square
    quality.numslices = min(quality.numslices, max(size // 10, 4))
    quality.numstacks = min(quality.numstacks, max(size // 20, 2))
    model.geom_size[planes, 2] = np.maximum(sizes[:, 2], sizes[:, :2].max(-1) / 20)
    try:
        yield
    finally:
        quality.numslices, quality.numstacks = round_facets
        model.geom_size[planes] = sizes


def _draw_plainly(scene: Any) -> None:
    import mujoco

    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        scene.flags[flag] = 0


def _camera(simulator: Any) -> Any:
    """Return the model's camera that follows the body; else gymnasium's default one.

    That one looks at the middle of the model at its initial position, whatever the episode begins with.
    """
    import mujoco

    model = simulator.model
    if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.lookat[:] = np.median(data.geom_xpos, axis=0)
    camera.distance = model.stat.extent
    config = getattr(getattr(simulator, "mujoco_renderer", None), "default_cam_config", None)
    for name, value in (config or {}).items():
        if isinstance(value, np.ndarray):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)
    return camera
