"""Horizon and lambda of each rollout: how they follow training, and how episodes end."""

import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from acktr.errors import ConfigurationError
from acktr.schedules import Horizon, TraceDecay
from tests.helpers.models import Recorded, make
from tests.helpers.small_envs import small_env

RISE = Horizon(0.9, 0.99, lasting="rise")


def test_the_horizon_rises_from_rollout_to_rollout():
    model = make(cls=Recorded, gamma=RISE)
    for _ in range(2):  # the second time as the first
        model.learn(4 * 16)
    left = np.array([1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(model.logged("gamma"), np.tile(1 - 0.1**left * 0.01 ** (1 - left), 2))
    assert model.gamma == RISE


@pytest.mark.parametrize(("limit", "longest"), [(25, 25), (5, 10), (10_000, 100), (None, 100)])
def test_a_horizon_rises_no_further_than_an_episode_lasts(limit, longest):
    """From 10 to 100 steps, in episodes of at most so many; never below where it begins."""
    env = small_env()
    for one in env.envs:
        one.spec = None if limit is None else EnvSpec("Small-v0", max_episode_steps=limit)
    model = make(env, cls=Recorded, gamma=RISE)
    model.learn(8 * 16)
    horizons = 1 / (1 - np.array(model.logged("gamma")))
    risen = 10 * 10 ** (np.arange(8) / 8)
    np.testing.assert_allclose(horizons, np.minimum(risen, longest))


@pytest.mark.parametrize(
    ("ends", "limit", "longest"),
    [
        ("truncated", None, 100),
        ("truncated", 25, 25),
        ("terminated", None, None),
        ("both", None, None),
    ],
)
def test_where_no_episode_ends_early_the_horizon_is_long_at_once(ends, limit, longest):
    """From the second rollout on: in the first, whose schedule is that of a rise, episodes end."""
    env = small_env(ends=ends)
    for one in env.envs:
        one.spec = limit and EnvSpec("Small-v0", max_episode_steps=limit)
    model = make(env, cls=Recorded, gamma=Horizon(0.9, 0.99))
    model.learn(4 * 16)
    horizons = 1 / (1 - np.array(model.logged("gamma")))
    risen = 10 * 10 ** (np.arange(4) / 4)
    np.testing.assert_allclose(horizons, risen if longest is None else [10, *[longest] * 3])


@pytest.mark.parametrize("calls", [1, 2, 4])
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("ends", ["truncated", "terminated"])
def test_the_default_horizon_grows_where_episodes_end_early(ends, again, calls):
    """In the first rollout the first episodes end; how many calls of learn there are does not count."""
    model = make(small_env(ends=ends), cls=Recorded)
    for _ in range(calls):
        model.learn(4 * 16 // calls, reset_num_timesteps=again)
    risen = 1 - 0.01 * 0.2 ** (np.arange(4) * 16 / 300_000)
    np.testing.assert_allclose(model.logged("gamma"), 0.99 if ends == "truncated" else risen, rtol=1e-15)


def test_a_horizon_that_has_grown_stays_long(tmp_path):
    model = make(small_env(ends="terminated"), cls=Recorded, gamma=Horizon(0.9, 0.99, "start", 32))
    model.learn(3 * 16)
    model.save(tmp_path / "model")
    loaded = Recorded.load(tmp_path / "model", env=small_env(ends="terminated"))
    loaded.learn(2 * 16)
    assert loaded.gamma == model.gamma
    np.testing.assert_allclose(loaded.logged("gamma"), [0.9, 1 - 0.1**1.5, *[0.99] * 3])


def test_a_horizon_whose_kind_is_unknown_is_refused():
    with pytest.raises(ConfigurationError, match="'end', 'start' or 'rise' for lasting, got 'at_once'"):
        Horizon(0.9, 0.99, "at_once")


def test_an_episode_that_ends_early_takes_the_long_horizon_back():
    env = small_env()

    class Later(Recorded):
        def train(self):
            super().train()
            env.envs[1].ends = "terminated"

    model = make(env, cls=Later, gamma=Horizon(0.9, 0.99))
    model.learn(4 * 16)
    risen = 1 - 0.1 * 0.1 ** (np.arange(4) / 4)
    np.testing.assert_allclose(model.logged("gamma"), [0.9, 0.99, *risen[2:]])


@pytest.mark.parametrize(
    ("ends", "limit", "gamma", "decays"),
    [
        ("truncated", None, 0.9, [0.9, 0.5, 0.5]),
        ("truncated", 100, Horizon(0.9, 0.99), [0.9, 0.5, 0.5]),
        ("truncated", 25, Horizon(0.9, 0.99), [0.9, 0.9, 0.9]),  # which holds the horizon back
        ("truncated", 25, 0.99, [0.9, 0.5, 0.5]),
        ("terminated", None, 0.9, [0.9, 0.9, 0.9]),
        ("both", None, 0.9, [0.9, 0.9, 0.9]),
    ],
)
def test_lambda_is_its_second_number_where_long_episodes_end_by_time_alone(ends, limit, gamma, decays):
    env = small_env(ends=ends)
    for one in env.envs:
        one.spec = limit and EnvSpec("Small-v0", max_episode_steps=limit)
    model = make(env, cls=Recorded, gamma=gamma, gae_lambda=TraceDecay(0.9, 0.5))
    model.learn(3 * 16)
    assert model.logged("gae_lambda").tolist() == decays
    assert model.gae_lambda == TraceDecay(0.9, 0.5)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError])
def test_of_a_vector_environment_of_somebodys_own_the_limit_may_not_be_known(error):
    class Own(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

        def get_attr(self, attr_name, indices=None):
            if attr_name == "spec":
                raise error
            return self.venv.get_attr(attr_name, indices)

    model = make(Own(small_env()), cls=Recorded, gamma=RISE)
    model.learn(2 * 16)
    assert model.parts.discount.time_limit is None
    np.testing.assert_allclose(model.logged("gamma"), [0.9, 1 - (0.1 * 0.01) ** 0.5])


@pytest.mark.parametrize(("gamma", "followed"), [(RISE, True), (0.9, False)])
def test_vecnormalize_follows_a_schedule_and_no_number(gamma, followed):
    env = VecNormalize(small_env("Box"), gamma=0.5)
    model = make(env, gamma=gamma)
    model.learn(2 * 16)
    assert model.rollout_buffer.gamma == pytest.approx(1 - 0.001**0.5 if followed else 0.9)
    assert env.gamma == (model.rollout_buffer.gamma if followed else 0.5)


def test_a_schedule_that_leaves_the_range_of_gamma_is_refused_before_a_step():
    model = make(gamma=lambda progress_remaining: 1.05 if progress_remaining == 0.25 else 0.9)
    with pytest.raises(ConfigurationError, match=r"gamma must lie in \[0, 1\].* gave 1.05 at 0.250"):
        model.learn(4 * 16)
    assert model.num_timesteps == 48


def test_a_number_takes_the_place_of_a_schedule_that_the_rewards_had():
    """As where a search draws a number, and the Zoo has given the preset's schedule to VecNormalize."""
    env = VecNormalize(small_env("Box"), gamma=RISE)
    make(env=env, gamma=0.97).learn(32)
    assert env.gamma == 0.97
