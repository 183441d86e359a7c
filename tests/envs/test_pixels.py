"""Pictures in the place of states: what is observed, by which network, and what is said without OpenGL.

No test but the last needs OpenGL: pictures are a toy environment's, or a renderer's that is made up.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AddRenderObservation
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage, unwrap_vec_wrapper

from acktr.compare.peers import build_env, build_model, peer_settings
from acktr.envs import make_vec_env
from acktr.envs.pixels import MujocoFrames, film_frames, make_pixel_env, pixel_arguments
from acktr.envs.state import capture_single, restore_single
from acktr.errors import ConfigurationError
from acktr.networks.policies import PixelCNN
from acktr.presets import resolve
from acktr.run.experiment import build_environment
from acktr.run.experiment import build_model as build_acktr
from benchmarks import suites

DRAWN = "tests.helpers.toy_envs:Drawn-v0"
cv2 = pytest.importorskip("cv2")


def picture(column):
    """What is observed of the toy environment with its bright column there."""
    frame = np.full((60, 80, 3), 10, np.uint8)
    frame[:, column] = 200
    return cv2.resize(frame, (42, 42), interpolation=cv2.INTER_AREA)


def actions(env):
    return np.array([env.action_space.sample() for _ in range(env.num_envs)])


@pytest.mark.parametrize("backend", ["gymnasium", pytest.param("subproc", marks=pytest.mark.slow)])
def test_two_frames_are_observed_and_so_they_are_at_an_end(backend):
    env = make_vec_env(DRAWN, 2, seed=0, backend=backend, pixels=True)
    assert env.observation_space.shape == (42, 42, 6)
    assert is_image_space(env.observation_space)
    frames = [picture(column) for column in env.get_attr("column")]
    observations = env.reset()
    frames = [picture(column) for column in env.get_attr("column")]
    ends = 0
    np.testing.assert_array_equal(observations[..., 3:], frames)
    assert not observations[..., :3].any()
    for _ in range(25):
        before = observations
        observations, _, dones, infos = env.step(actions(env))
        frames = np.stack([picture(column) for column in env.get_attr("column")])
        np.testing.assert_array_equal(observations[..., 3:], frames)
        for i, (done, info) in enumerate(zip(dones, infos, strict=True)):
            if not done:
                np.testing.assert_array_equal(observations[i, ..., :3], before[i, ..., 3:])
                continue
            # The last picture of the episode that ended, not the first of the next.
            last = info["terminal_observation"]
            np.testing.assert_array_equal(last[..., :3], before[i, ..., 3:])
            assert not np.array_equal(last[..., 3:], observations[i, ..., 3:])
            assert not observations[i, ..., :3].any()
            ends += 1
    assert ends == 4
    env.close()


def test_the_setting_chooses_the_preset_with_the_papers_network():
    configuration, notes = resolve(DRAWN, overrides=["pixels=true"])
    assert configuration.preset == "pixels: default"
    assert notes == []
    assert configuration.n_envs * configuration.algorithm_arguments()["n_steps"] == 1024
    env = build_environment(configuration)
    assert env.observation_space.shape == (6, 42, 42)
    assert isinstance(unwrap_vec_wrapper(env, VecTransposeImage), VecTransposeImage)
    model = build_acktr(configuration, env)
    policy = model.policy
    assert type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is PixelCNN
    assert policy.pi_features_extractor is not policy.vf_features_extractor
    assert not model.shared
    assert policy.action_net.in_features == policy.value_net.in_features == 256
    env.close()


@pytest.mark.parametrize(
    ("overrides", "preset"),
    [
        (["pixels=false"], "defaults"),
        (["pixels=true", "pixels=false"], "defaults"),
        ([" pixels = true "], "pixels: default"),
    ],
)
def test_only_pixels_that_are_on_choose_their_preset(overrides, preset):
    assert resolve(DRAWN, overrides=overrides).configuration.preset == preset


def test_other_presets_can_have_pixels_too():
    configuration = resolve(DRAWN, preset="classic", overrides=["pixels=true"]).configuration
    assert configuration.preset == "classic: default"
    env = build_environment(configuration, n_envs=1)
    assert env.observation_space.shape == (6, 42, 42)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "says"),
    [
        ("BreakoutNoFrameskip-v4", {}, "BreakoutNoFrameskip-v4 observes its screen already"),
        ("Pendulum-v1", {"backend": "envpool"}, r"'envpool' draws no pixels.*gymnasium"),
        (DRAWN, {"env_kwargs": {"render_mode": "human"}}, "render_mode='human': leave it out"),
        (
            "tests.helpers.toy_envs:Toy-v0",
            {},
            r"Toy-v0 cannot be rendered here \(no display\).*libosmesa6",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(env_id, kwargs, says):
    if "Breakout" in env_id:
        pytest.importorskip("ale_py")
    with pytest.raises(ConfigurationError, match=says) as caught:
        make_vec_env(env_id, 1, pixels=True, **kwargs)
    assert "\n" not in str(caught.value)


def test_opencv_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("acktr.envs.pixels.is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=r'cv2.*pip install "acktr\[pixels\]"'):
        make_vec_env(DRAWN, 1, pixels=True)


def test_opengl_that_is_missing_when_mujoco_is_imported_is_named(monkeypatch):
    def make(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(gym, "make", make)
    with pytest.raises(ConfigurationError, match=r"eglQueryString.*libegl1.*MUJOCO_GL=egl"):
        make_pixel_env(gym.spec("Pendulum-v1"), {})


class Renderer:
    """Draws the first position of the simulator as one shade."""

    def __init__(self, model, height, width):
        self.model, self.shape = model, (height, width, 3)
        self.scene = SimpleNamespace(flags=np.ones(20, np.uint8))
        # A renderer makes its shapes when it is opened.
        self.facets = model.vis.quality.numslices, model.vis.quality.numstacks
        self.floor = float(model.geom_size[0, 2])
        self.closed = 0

    def update_scene(self, data, camera):
        self.shade, self.camera = int(100 * abs(data.qpos[0])) % 256, camera

    def render(self):
        return np.full(self.shape, self.shade, np.uint8)

    def close(self):
        self.closed += 1


@pytest.fixture
def renderers(monkeypatch):
    """Let what is made up draw MuJoCo's environments; what was opened."""
    pytest.importorskip("mujoco")
    opened = []

    def open_one(*args):
        opened.append(Renderer(*args))
        return opened[-1]

    monkeypatch.setattr("acktr.envs.pixels.open_renderer", open_one)
    return opened


def frames(env_id):
    return MujocoFrames(gym.make(env_id, render_mode="rgb_array"), 84)


@pytest.mark.parametrize(("env_id", "camera"), [("HalfCheetah-v5", "track"), ("Reacher-v5", None)])
def test_mujoco_is_drawn_by_its_own_renderer(env_id, camera, renderers):
    mujoco = pytest.importorskip("mujoco")
    env = frames(env_id)
    (renderer,) = renderers
    quality = env.unwrapped.model.vis.quality
    assert (quality.shadowsize, quality.offsamples) == (0, 0)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        assert not renderer.scene.flags[flag]
    env.reset(seed=0)
    assert env.render().shape == (84, 84, 3)
    if camera is None:
        # Like gymnasium's, but for the noise that an episode begins with.
        free = renderer.camera
        assert free.distance == env.unwrapped.model.stat.extent
        again = frames(env_id)
        again.reset(seed=99)
        again.render()
        np.testing.assert_array_equal(renderers[1].camera.lookat, free.lookat)
    else:
        assert renderer.camera == camera
    env.close()
    assert renderer.closed == 1


@pytest.mark.usefixtures("renderers")
def test_a_drawn_mujoco_environment_goes_on_from_a_state():
    env, other = (AddRenderObservation(frames("HalfCheetah-v5")) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=1)
    for _ in range(5):
        env.step(env.action_space.sample())
    restore_single(other, capture_single(env))
    for _ in range(20):
        action = env.action_space.sample()
        np.testing.assert_array_equal(env.step(action)[0], other.step(action)[0])


def test_a_film_is_larger_than_what_is_observed_and_rounder(renderers):
    film = film_frames(AddRenderObservation(frames("HalfCheetah-v5")))
    film.reset(seed=0)
    assert film.render().shape == (480, 480, 3)
    assert film.step(film.action_space.sample())[0].shape == (84, 84, 3)
    assert [renderer.facets for renderer in renderers] == [(8, 4), (28, 16)]
    plain = gym.make("HalfCheetah-v5")
    assert film_frames(plain) is plain


def test_a_floor_is_drawn_in_fewer_squares_and_the_model_keeps_its_own(renderers):
    for env_id, own, drawn in (("Hopper-v5", 0.125, 1.0), ("HalfCheetah-v5", 40.0, 40.0)):
        env = frames(env_id)
        assert renderers[-1].floor == drawn
        assert env.unwrapped.model.geom_size[0, 2] == own
        assert env.unwrapped.model.vis.quality.numslices == 28


def test_opengl_that_is_missing_is_named(monkeypatch):
    pytest.importorskip("mujoco")

    def fail(*_):
        raise RuntimeError("no context")

    monkeypatch.setattr("acktr.envs.pixels.open_renderer", fail)
    with pytest.raises(
        ConfigurationError, match=r"HalfCheetah-v5 cannot be rendered here \(no context\)"
    ):
        frames("HalfCheetah-v5")


def test_a_peer_learns_from_the_same_pictures_with_the_same_network():
    trial = next(t for t in suites.load("pixels").trials() if t.algo == "a2c")
    settings = peer_settings("a2c", DRAWN, 100, {**trial.settings, "n_envs": 2})
    model = build_model("a2c", DRAWN, settings, seed=0)
    assert settings["zoo_entry"] == "default"
    assert model.env.observation_space.shape == (6, 42, 42)
    assert isinstance(unwrap_vec_wrapper(model.env, VecFrameStack), VecFrameStack)
    policy = model.policy
    assert type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is PixelCNN
    assert policy.pi_features_extractor is not policy.vf_features_extractor
    assert policy.action_net.in_features == 256
    model.learn(20)
    model.env.close()
    evaluation = build_env(DRAWN, settings, 1, 0, training=False)
    assert evaluation.reset().shape == (1, 6, 42, 42)
    evaluation.close()


def test_an_environment_of_mujoco_has_no_tuned_peer_from_pixels():
    pytest.importorskip("mujoco")
    assert peer_settings("a2c", "HalfCheetah-v5", 100)["zoo_entry"] != "default"
    assert peer_settings("a2c", "HalfCheetah-v5", 100, {"pixels": True})["zoo_entry"] == "default"


def test_the_render_mode_is_that_of_arrays():
    assert pixel_arguments({"xml_file": "a.xml"}) == {"xml_file": "a.xml", "render_mode": "rgb_array"}


SCRIPT = """
import sys
from acktr.envs import make_vec_env
from acktr.errors import ConfigurationError
try:
    first, second = (make_vec_env("Reacher-v5", 2, seed=0, pixels=True) for _ in range(2))
except ConfigurationError as error:
    sys.exit(str(error))
observations = second.reset()
assert observations[..., 3:].std() > 10
first.close()
assert (second.reset()[..., 3:] > 0).mean() > 0.5
second.close()
"""


@pytest.mark.slow
def test_pictures_stay_when_another_environment_is_closed():
    """Where there is OpenGL; in a process of its own, whose MuJoCo has not chosen another one yet."""
    pytest.importorskip("mujoco")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "cannot be rendered here" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
