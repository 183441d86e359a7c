"""Vector environments: built by id, refused in one sentence, watched for NaN and infinity."""

import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env as make_sb3_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from acktr.envs import lookup, make_vec_env
from acktr.envs.finite import VecCheckFinite
from acktr.envs.normalization import load_normalization, save_normalization
from acktr.envs.serial import SerialVecEnv
from acktr.envs.spaces import check_spaces
from acktr.errors import CheckpointError, ConfigurationError, DivergenceError
from tests.helpers.toy_envs import OBSERVATION, Broken, Toy, ToyDict


def steps(env, n_steps):
    for _ in range(n_steps):
        env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))


def test_environments_are_seeded_monitored_and_different():
    first, again, other = (make_vec_env("CartPole-v1", 2, seed=seed) for seed in (0, 0, 1))
    assert all(first.env_is_wrapped(Monitor))
    observations = first.reset()
    assert observations.shape == (2, 4)
    assert not np.array_equal(observations[0], observations[1])
    np.testing.assert_array_equal(observations, again.reset())
    # Environment i starts from seed + i.
    np.testing.assert_array_equal(observations[1], other.reset()[0])


def test_module_prefix_wrapper_and_env_kwargs():
    class Double(gym.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    env = make_vec_env("tests.helpers.toy_envs:Toy-v0", 1, seed=0, wrapper=Double, frame_stack=2)
    assert env.reset().shape == (1, 6)
    for _ in range(10):
        _, rewards, dones, infos = env.step(np.array([1]))
    assert rewards[0] == 2.0
    # The wrapper lies below the Monitor: what it pays is the score.
    assert dones[0]
    assert infos[0]["episode"]["r"] == 20.0
    make_vec_env("Broken-v0", env_kwargs={"where": "terminal"}).close()


@pytest.mark.parametrize(
    ("env_id", "arguments", "message"),
    [
        ("HalfChetah-v5", {}, "nearest are HalfCheetah-v5, HalfCheetah-v4."),
        ("cartpole-v1", {}, "nearest are CartPole-v1"),
        ("HalfCheetah-v1", {}, "nearest are HalfCheetah-v5"),  # gymnasium-robotics brings v3
        ("no-such-thing-at-all", {}, "check the id"),
        ("no_such_module:Toy-v0", {}, "No module named 'no_such_module'"),
        ("CartPole-v1", {"n_envs": 0}, "n_envs is 0"),
        ("CartPole-v1", {"n_envs": -1}, "n_envs is -1"),
        ("CartPole-v1", {"frame_stack": 0}, "frame_stack is 0"),
        (
            "CartPole-v1",
            {"backend": "sync"},
            "'sync' does not exist: .* auto, gymnasium, subproc, envpool",
        ),
        ("CartPole-v1", {"backend": "ale"}, "'ale' does not have CartPole-v1: choose from .* envpool"),
        (
            "Toy-v0",
            {"backend": "envpool"},
            "does not have Toy-v0: choose from auto, gymnasium, subproc.$",
        ),
        ("FrozenLake-v1", {"backend": "sync"}, "choose from auto, gymnasium, subproc.$"),
        ("CartPole-v1", {"env_kwargs": {"gravitas": 1}}, "CartPole-v1 cannot be built"),
        ("Blackjack-v1", {}, "Tuple observation space"),
    ],
)
def test_bad_arguments_get_one_sentence(env_id, arguments, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        make_vec_env(env_id, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "missing", "pip_line"),
    [
        ("HalfCheetah-v5", "mujoco", 'pip install "acktr\\[mujoco\\]"'),
        ("BreakoutNoFrameskip-v4", "ale_py", 'pip install "acktr\\[atari\\]"'),
        ("ALE/Pong-v5", "ale_py", 'pip install "acktr\\[atari\\]"'),
        ("LunarLander-v3", "Box2D", 'pip install "gymnasium\\[box2d\\]"'),
        ("no-such-thing-at-all", "ale_py", 'pip install "acktr\\[atari\\]"'),
    ],
)
def test_missing_package_gives_the_pip_line(monkeypatch, env_id, missing, pip_line):
    monkeypatch.setattr(lookup, "is_installed", lambda module: module != missing)
    with pytest.raises(ConfigurationError, match=pip_line):
        make_vec_env(env_id)


@pytest.mark.parametrize(
    ("env_id", "family"),
    [
        ("CartPole-v1", "classic"),
        ("MountainCarContinuous-v0", "classic"),
        ("HalfCheetah-v5", "mujoco"),
        ("Humanoid-v4", "mujoco"),
        ("FrozenLake-v1", None),
        ("Toy-v0", None),
        ("BreakoutNoFrameskip-v4", "atari"),
        ("ALE/Pong-v5", "atari"),
    ],
)
def test_family_comes_from_the_registry(env_id, family):
    if family in ("mujoco", "atari"):
        pytest.importorskip({"mujoco": "mujoco", "atari": "ale_py"}[family])
    assert lookup.family(env_id) == family


UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (OBSERVATION, UNBOUNDED, "unbounded actions"),
        (OBSERVATION, spaces.Box(0, 9, (2,), np.int64), "floating-point actions"),
        (OBSERVATION, spaces.Discrete(3, start=1), None),
        (OBSERVATION, spaces.MultiDiscrete([[2, 2], [3, 3]]), None),
        (OBSERVATION, spaces.MultiBinary([2, 2]), None),
        (OBSERVATION, spaces.Dict({"a": OBSERVATION}), "Dict action space"),
        (OBSERVATION, spaces.Tuple([OBSERVATION]), "Tuple action space"),
        (spaces.Tuple([OBSERVATION]), spaces.Discrete(2), "Tuple observation space"),
        (spaces.Dict({"a": spaces.Dict({})}), spaces.Discrete(2), "observation key 'a'"),
        (OBSERVATION, spaces.Box(-1, 1, (2,), np.float32), None),
        (UNBOUNDED, spaces.MultiDiscrete([2, 3]), None),
        (spaces.Discrete(4), spaces.MultiBinary(3), None),
        (spaces.Dict({"a": OBSERVATION, "b": spaces.Discrete(2)}), spaces.Discrete(2), None),
    ],
)
def test_spaces(observation, action, message):
    if message is None:
        check_spaces("Env-v0", observation, action)
    else:
        with pytest.raises(ConfigurationError, match=message):
            check_spaces("Env-v0", observation, action)


@pytest.mark.parametrize(("where", "step"), [("reward", 21), ("observation", 21), ("terminal", 30)])
def test_first_value_that_is_not_finite_stops_before_any_statistics(where, step):
    venv = DummyVecEnv([Toy, lambda: Broken(where), Toy])
    env = VecNormalize(VecCheckFinite(venv))
    env.reset()
    steps(env, step - 1)
    mean = env.obs_rms.mean.copy()
    with pytest.raises(DivergenceError, match=f"Environment 1 .* at its step {step} \\(step {3 * step}"):
        steps(env, 1)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)
    assert np.isfinite(env.ret_rms.var)


@pytest.mark.parametrize("env_class", [Toy, ToyDict])
def test_normalization_survives_saving_bit_for_bit(tmp_path, env_class):
    keys = ["a"] if env_class is ToyDict else None
    saved, loaded = (
        VecNormalize(DummyVecEnv([env_class]), norm_obs_keys=keys, gamma=0.9) for _ in range(2)
    )
    saved.reset()
    steps(saved, 7)
    save_normalization(saved, tmp_path / "statistics.json")
    load_normalization(loaded, tmp_path / "statistics.json")
    original = saved.get_original_obs()
    for before, after in zip(
        np.atleast_1d(saved.normalize_obs(original)), np.atleast_1d(loaded.normalize_obs(original)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_equal(after, before)
    assert loaded.ret_rms.var == saved.ret_rms.var
    assert loaded.ret_rms.count == saved.ret_rms.count


def _pickled() -> bytes:
    return pickle.dumps({"settings": 1})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        _pickled(),
        json.dumps({"returns": {"mean": [0.0, 1.0], "var": 1.0, "count": 1}}).encode(),
        None,
    ],
)
def test_damaged_normalization_is_refused(tmp_path, content):
    path = tmp_path / "statistics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"statistics\.json cannot be used"):
        load_normalization(VecNormalize(DummyVecEnv([Toy])), path)


@pytest.mark.parametrize("env_id", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5", "Breakout-v4"])
def test_atari_preprocessing(env_id):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make_vec_env(env_id, 1, seed=0, backend="gymnasium")
    assert env.reset().shape == (1, 84, 84, 4)
    # The game delivers each frame: the preprocessing skips and max-pools them.
    assert env.get_attr("unwrapped")[0]._frameskip == 1
    env.close()


def test_atari_refuses_its_own_frame_skip_and_ram():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    with pytest.raises(ConfigurationError, match="frameskip=4: leave it at 1"):
        make_vec_env("ALE/Breakout-v5", env_kwargs={"frameskip": 4})
    with pytest.raises(ConfigurationError, match="observes the RAM"):
        make_vec_env("ALE/Breakout-v5", env_kwargs={"obs_type": "ram"})


class Reused(Toy):
    """Writes each observation into the same memory, and tells of itself in its info."""

    memory = np.zeros(3, np.float32)

    def _observe(self):
        self.memory[:] = super()._observe()
        return self.memory

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"time": self.time, "nested": {"a": 1}}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", Toy, ToyDict])
def test_serial_environments_return_what_dummy_vec_env_does(env_id):
    if env_id == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    lean, reference = (
        make_sb3_vec_env(env_id, 3, seed=5, vec_env_cls=cls) for cls in (SerialVecEnv, DummyVecEnv)
    )
    np.testing.assert_equal(lean.reset(), reference.reset())
    reference.action_space.seed(0)
    kept = []
    for _ in range(60):
        actions = np.array([reference.action_space.sample() for _ in range(3)])
        step, expected = lean.step(actions), reference.step(actions)
        for info in (*step[3], *expected[3]):
            info.get("episode", {}).pop("t", None)
        kept.append((step, expected))
    # At the end, as later steps must not have changed what earlier ones returned.
    np.testing.assert_equal([step for step, _ in kept], [expected for _, expected in kept])
    assert lean.get_attr("spec")[0] == reference.get_attr("spec")[0]
    assert lean.env_method("get_wrapper_attr", "spec") == reference.env_method(
        "get_wrapper_attr", "spec"
    )


def test_serial_environments_keep_the_last_observation_from_the_reset():
    env = SerialVecEnv([Reused])
    env.seed(0)
    env.reset()
    for _ in range(10):
        observations, _, dones, infos = env.step(np.array([1]))
    assert dones[0]
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])
    kept = infos[0]["terminal_observation"].copy()
    env.step(np.array([1]))
    np.testing.assert_array_equal(infos[0]["terminal_observation"], kept)


def test_environments_in_processes_of_their_own():
    env = make_vec_env("tests.helpers.toy_envs:Toy-v0", 2, seed=0, backend="subproc")
    same = make_vec_env("tests.helpers.toy_envs:Toy-v0", 2, seed=0)
    np.testing.assert_array_equal(env.reset(), same.reset())
    env.close()


def test_processes_refuse_in_one_sentence_too():
    with pytest.raises(ConfigurationError, match="CartPole-v1 cannot be built"):
        make_vec_env("CartPole-v1", 2, backend="subproc", env_kwargs={"gravitas": 1})
