"""The camera for a body that runs away: one of the model's own, or one made to follow it.

Gymnasium looks where the body starts, even where the model has a camera that follows it. HalfCheetah has
left that picture before an eighth of an episode is over.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from acktr.envs.mujoco import is_mujoco
from acktr.errors import ConfigurationError

FREE = "free"
_TRACK = "track"  # what gymnasium's models call it
# HalfCheetah comes to the end of its floor, 40 m, in a quarter of an episode.
_WIDER = 25


def choose_camera(env: gym.Env, camera: str | None = None) -> Any:
    """Let one of MuJoCo's environments be drawn by a camera that keeps its body in the picture.

    In this order: the camera that is asked for; what the environment was made with (``camera_name``,
    ``camera_id``, ``default_camera_config``); the model's camera that follows; one made to follow the
    body that the environment names, or that can leave. Any other environment stays as it is.

    :param env: any environment
    :param camera: one of the model's, by its name or number, or "free": gymnasium's, which stands still
    :return: the number of the camera, for who draws by himself; ``None`` if it is none of the model's
    :raises ConfigurationError: there is no such camera
    """
    simulator: Any = env.unwrapped
    renderer = getattr(simulator, "mujoco_renderer", None) if is_mujoco(simulator) else None
    if renderer is None or not hasattr(renderer, "camera_id"):
        if camera is not None:
            name = env.spec.id if env.spec else str(simulator)
            raise ConfigurationError(
                f"{name} is no environment of MuJoCo, whose models have cameras: leave out --camera."
            )
        return None
    model, config = simulator.model, dict(renderer.default_cam_config or {})
    given = env.spec.kwargs if env.spec else {}
    own = given.get("default_camera_config")
    followers = _followers(model)
    if camera is not None:
        renderer.camera_id = _find(env, model, camera)
    elif given.get("camera_name") is not None or given.get("camera_id") is not None:
        pass
    elif followers and own is None:
        renderer.camera_id = followers[0]
    else:
        body = config.get("trackbodyid")
        if body is None and "lookat" not in (config if own is None else own):
            body = model.cam_bodyid[followers[0]] if followers else _leaving_body(model)
        if body is not None and body > 0:
            _follow(renderer, config, int(body))
    return renderer.camera_id if renderer.camera_id is not None and renderer.camera_id >= 0 else None


def widen_floor(env: gym.Env) -> None:
    """Draw a floor that an episode does not come to the end of; in contacts a plane is endless anyway.

    :param env: any environment, before it is drawn for the first time
    """
    if not is_mujoco(env.unwrapped):
        return
    import mujoco

    model: Any = env.unwrapped.model  # type: ignore[attr-defined]
    level = (model.geom_quat == (1, 0, 0, 0)).all(-1)
    floors = level & (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (model.geom_bodyid == 0)
    materials = model.geom_matid[floors]
    materials = np.unique(materials[materials >= 0])
    model.geom_size[floors] *= _WIDER
    # Squares of the size that they had.
    model.mat_texrepeat[materials[~model.mat_texuniform[materials]]] *= _WIDER


def _find(env: gym.Env, model: Any, camera: str) -> int:
    import mujoco

    if camera == FREE:
        return -1
    found: int = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
    if found < 0 and camera.isdecimal() and int(camera) < model.ncam:
        found = int(camera)
    if found < 0:
        names = [model.camera(i).name or str(i) for i in range(model.ncam)]
        raise ConfigurationError(
            f"{env.spec.id if env.spec else env.unwrapped} has no camera {camera!r}: choose from "
            f"{', '.join([*names, FREE])}."
        )
    return found


def _followers(model: Any) -> list[int]:
    """Return the cameras that move or turn with a body, the one that is named for it first."""
    import mujoco

    modes = mujoco.mjtCamLight
    following = (modes.mjCAMLIGHT_TRACKCOM, modes.mjCAMLIGHT_TRACK)
    turning = (modes.mjCAMLIGHT_TARGETBODYCOM, modes.mjCAMLIGHT_TARGETBODY)
    order = [*following, *turning]
    found = [i for i in range(model.ncam) if model.cam_mode[i] in order]
    return sorted(found, key=lambda i: (model.camera(i).name != _TRACK, order.index(model.cam_mode[i])))


def _leaving_body(model: Any) -> int | None:
    """Return the root of what has motors and may go anywhere; ``None`` where nothing does."""
    import mujoco

    roots = model.body_rootid[model.jnt_bodyid]
    by_joint = model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT
    driven = {int(roots[joint]) for joint in model.actuator_trnid[by_joint, 0]}
    for root, kind, limited in zip(roots, model.jnt_type, model.jnt_limited, strict=True):
        slides = kind == mujoco.mjtJoint.mjJNT_SLIDE and not limited
        if (slides or kind == mujoco.mjtJoint.mjJNT_FREE) and int(root) in driven:
            return int(root)
    return None


def _follow(renderer: Any, config: dict[str, Any], body: int) -> None:
    import mujoco

    kind = int(mujoco.mjtCamera.mjCAMERA_TRACKING)
    renderer.default_cam_config = {**config, "type": kind, "trackbodyid": body}
    renderer.camera_id = None  # any number would make it stand still, or one of the model's
