"""Films: the body stays in the picture, episodes go one after another into one film."""

import gymnasium as gym
import numpy as np
import pytest

from acktr.envs import video
from acktr.envs.cameras import choose_camera, widen_floor
from acktr.envs.pixels import film_frames
from acktr.envs.video import Film
from acktr.errors import ConfigurationError

mujoco = pytest.importorskip("mujoco")
mujoco_env = pytest.importorskip("gymnasium.envs.mujoco")

RUNNERS = [f"{name}-v5" for name in ("HalfCheetah", "Hopper", "Walker2d", "Humanoid", "Ant", "Swimmer")]
# A cart without walls and a ball with a motor; neither model has a camera.
CART = """
<mujoco><worldbody><geom type="plane" size="5 5 1"/>
  <body name="wall" pos="3 0 1"><joint type="slide" axis="0 0 1"/><geom size="0.1"/></body>
  <body name="cart" pos="0 0 0.5"><joint name="x" type="slide" axis="1 0 0"/><geom size="0.2"/>
    <body pos="0 0 0.3"><joint name="pole" type="hinge" axis="0 1 0"/><geom size="0.1"/></body></body>
</worldbody><actuator><motor joint="pole"/></actuator></mujoco>
"""


class Own(mujoco_env.MujocoEnv):
    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012

    def __init__(self, xml_file, **kwargs):
        space = gym.spaces.Box(-1.0, 1.0, (1,))
        super().__init__(xml_file, 1, space, **kwargs)

    def step(self, action):
        self.do_simulation(action, 1)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def reset_model(self):
        return np.zeros(1, np.float32)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "cart.xml"
    path.write_text(CART)
    return lambda **kwargs: Own(str(path), **kwargs)


def turned_away(env, body=1, coordinate=0):
    """The angle in degrees between where the camera looks and a body that has run away."""
    simulator = env.unwrapped
    model, data, renderer = simulator.model, simulator.data, simulator.mujoco_renderer
    env.reset(seed=0)
    data.qpos[coordinate] = 50.0
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    if renderer.camera_id is None:
        for name, value in renderer.default_cam_config.items():
            setattr(camera, name, value)
    elif renderer.camera_id >= 0:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, renderer.camera_id
    scene = mujoco.MjvScene(model, 1000)
    everything = mujoco.MjvPerturb(), camera, mujoco.mjtCatBit.mjCAT_ALL, scene
    for _ in range(100):  # a camera that tracks comes after its body in steps
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), *everything)
    eye = scene.camera[0]
    there = data.subtree_com[body] - eye.pos
    return np.degrees(np.arccos(there @ eye.forward / np.linalg.norm(there)))


@pytest.mark.parametrize("env_id", RUNNERS)
def test_the_camera_goes_with_what_runs_away(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    choose_camera(env)
    assert turned_away(env) < 15
    choose_camera(env, "free")
    assert turned_away(env) > 30


def test_a_camera_is_made_where_a_model_has_none(own):
    env = own()
    choose_camera(env)
    assert env.mujoco_renderer.default_cam_config["trackbodyid"] == env.model.body("cart").id
    assert turned_away(env, env.model.body("cart").id, 1) < 5
    for env_id in ("Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"):
        env = gym.make(env_id)  # nothing in them can leave
        before = env.unwrapped.mujoco_renderer.default_cam_config
        choose_camera(env)
        assert env.unwrapped.mujoco_renderer.camera_id == -1
        assert env.unwrapped.mujoco_renderer.default_cam_config == before


@pytest.mark.parametrize(
    ("given", "number", "tracked"),
    [
        ({"camera_id": 1}, 1, None),
        ({"camera_name": "track"}, 0, None),
        ({"default_camera_config": {"distance": 9.0}}, None, 1),
        ({"default_camera_config": {"trackbodyid": 2}}, None, 2),
        ({"default_camera_config": {"lookat": np.ones(3)}}, -1, None),
    ],
)
def test_what_the_user_set_wins(given, number, tracked):
    env = gym.make("Humanoid-v5", **given)
    choose_camera(env)
    renderer = env.unwrapped.mujoco_renderer
    assert renderer.camera_id == number
    assert renderer.default_cam_config.get("trackbodyid") == (
        tracked if "default_camera_config" in given else 1
    )
    choose_camera(env, "0")
    assert renderer.camera_id == 0


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(
        ConfigurationError, match=r"Humanoid-v5 has no camera 'side': .* track, 1, free\."
    ):
        choose_camera(gym.make("Humanoid-v5"), "side")
    with pytest.raises(ConfigurationError, match=r"CartPole-v1 is no environment of MuJoCo.*--camera"):
        choose_camera(gym.make("CartPole-v1"), "track")
    plain = gym.make("CartPole-v1")
    assert film_frames(plain) is plain


def test_a_wider_floor_changes_nothing_but_the_picture():
    env, other = gym.make("HalfCheetah-v5"), gym.make("HalfCheetah-v5")
    widen_floor(env)
    assert env.unwrapped.model.geom_size[0, 0] == 1000
    env.reset(seed=0), other.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(30):
        action = env.action_space.sample()
        np.testing.assert_array_equal(env.step(action)[0], other.step(action)[0])


class Drawn(gym.Env):
    """Episodes of 3 steps in a small picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 0.0, False, self.time == 3, {}

    def render(self):
        return np.full((48, 64, 3), 60 * self.time, np.uint8)


# moviepy ends the process that it reads from, and leaves the pipe to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_episodes_are_filmed_one_after_another(tmp_path):
    moviepy = pytest.importorskip("moviepy")
    env = Film(Drawn(), tmp_path / "film.mp4", episodes=2)
    for _ in range(3):  # the third is not filmed
        env.reset()
        while not env.step(np.zeros(1))[3]:
            pass
    with moviepy.VideoFileClip(str(tmp_path / "film.mp4")) as film:
        shades = [int(frame.mean()) for frame in film.iter_frames()]
    np.testing.assert_allclose(shades, 2 * [0, 60, 120, 180], atol=8)


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_triton_is_loaded_before_what_draws(found, broken, monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        if broken:
            raise ImportError(name)

    monkeypatch.setattr(video, "is_installed", lambda module: found and module == "triton")
    monkeypatch.setattr(video.importlib, "import_module", load)
    video.prepare_rendering()
    assert loaded == (["triton._C.libtriton"] if found else [])
