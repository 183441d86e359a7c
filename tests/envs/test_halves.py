"""Two vector environments side by side, against one of the same environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr.envs import make_vec_env
from acktr.envs.halves import HalvedVecEnv, build_halves
from acktr.errors import ConfigurationError
from tests.helpers.small_envs import VECTOR, small_env


def cartpoles(first, count):
    return DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1")) for _ in range(count)])


def smalls(first, count):
    return small_env("Box", VECTOR, count, length=5 + first)


def test_halves_need_two_environments_of_the_same_kind():
    with pytest.raises(ConfigurationError, match="n_envs=1: it takes at least 2"):
        build_halves(smalls, 1)
    with pytest.raises(ConfigurationError, match="differ in their action_space"):
        HalvedVecEnv(small_env("Box"), small_env("Discrete"))


def test_halves_behave_as_one_vector_environment():
    whole, halved = cartpoles(0, 5), build_halves(cartpoles, 5)
    assert [half.num_envs for half in halved.halves] == [2, 3]
    assert halved.seed(7) == whole.seed(7) == [7, 8, 9, 10, 11]
    np.testing.assert_array_equal(halved.reset(), whole.reset())
    for _ in range(40):
        actions = np.array([0, 1, 0, 1, 1])
        for mine, other in zip(halved.step(actions)[:3], whole.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(mine, other)
    assert halved.reset_infos == whole.reset_infos == [{}] * 5
    assert len(halved.seed()) == 5
    halved.set_options({"low": 0.01, "high": 0.01})
    np.testing.assert_allclose(halved.reset(), 0.01)
    halved.set_options([{"low": x, "high": x} for x in (0.01, 0.02, 0.03, 0.04, 0.05)])
    np.testing.assert_allclose(halved.reset()[:, 0], [0.01, 0.02, 0.03, 0.04, 0.05])
    halved.close()


def test_questions_reach_the_right_half():
    env = build_halves(smalls, 5)
    lengths = [5, 6, 7, 8, 9]
    assert env.get_attr("length") == lengths
    assert env.get_attr("length", [4, 0, -2, 0]) == [9, 5, 8, 5]
    assert env.get_attr("length", 3) == [8]
    env.set_attr("length", 20, indices=[1, 4])
    assert env.get_attr("length") == [5, 20, 7, 8, 20]
    assert env.env_method("get_wrapper_attr", "length", indices=[2, 1]) == [7, 20]
    assert env.has_attr("length")
    assert not env.has_attr("width")
    assert env.env_is_wrapped(Monitor) == [False] * 5
    assert env.env_is_wrapped(TimeLimit, 4) == [False]
    with pytest.raises(IndexError):
        env.get_attr("length", 5)
    env.reset()
    env.step_async(np.zeros((5, 2), np.float32))
    assert env.get_attr("time", [0]) == [1]  # the answer waits for the step
    assert len(env.step_wait()[1]) == 5


def test_pictures_of_both_halves():
    env = build_halves(
        lambda _, count: DummyVecEnv([lambda: gym.make("CartPole-v1", render_mode="rgb_array")] * count),
        2,
    )
    env.reset()
    assert env.render_mode == "rgb_array"
    assert len(env.get_images()) == 2
    assert env.render().shape[0] == 2 * env.get_images()[0].shape[0]
    env.close()


def test_make_vec_env_builds_halves_of_the_same_environments(tmp_path):
    options = {"seed": 3, "backend": "gymnasium"}
    whole = make_vec_env("CartPole-v1", 5, **options)
    halved = make_vec_env("CartPole-v1", 5, **options, overlap=True, monitor_dir=str(tmp_path))
    assert [half.num_envs for half in halved.unwrapped.halves] == [2, 3]
    assert halved.backend == "gymnasium"
    np.testing.assert_array_equal(halved.reset(), whole.reset())
    halved.close()
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == list("01234")
    with pytest.raises(ConfigurationError, match="overlap with n_envs=1"):
        make_vec_env("CartPole-v1", 1, backend="gymnasium", overlap=True)
