"""``VecRunningNormalize`` against SB3's ``VecNormalize``: the same bits."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from acktr.envs import make_vec_env
from acktr.envs.running import RunningMoments, VecRunningNormalize
from tests.helpers.small_envs import ACTIONS, MIXED, VECTOR, small_env

ENVIRONMENTS = {
    "vector": lambda: small_env("Box", VECTOR, n_envs=5, ends="both", seed=2),
    "dict": lambda: small_env("Discrete", MIXED, n_envs=3, ends="both", seed=2),
    "double": lambda: make_vec_env("HalfCheetah-v5", 3, 2, backend="gymnasium"),
    "single": lambda: small_env("Box", VECTOR, n_envs=1, ends="terminated", seed=2),
}
SETTINGS = [
    {},
    {"norm_reward": False},
    {"norm_obs": False},
    {"clip_obs": 0.5, "clip_reward": 0.1, "gamma": 0.9, "epsilon": 0.1},
    {"training": False},
]


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("settings", SETTINGS, ids=[",".join(s) or "default" for s in SETTINGS])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_step_is_that_of_stable_baselines(name, settings):
    if name == "dict" and settings.get("norm_obs", True):
        settings = {**settings, "norm_obs_keys": ["vector"]}
    theirs = VecNormalize(ENVIRONMENTS[name](), **settings)
    ours = VecRunningNormalize(ENVIRONMENTS[name](), **settings)
    same(ours.reset(), theirs.reset())
    theirs.action_space.seed(0)
    for _ in range(40):
        actions = np.stack([theirs.action_space.sample() for _ in range(theirs.num_envs)])
        for mine, other in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
            same(mine, other)
        same(ours.get_original_obs(), theirs.get_original_obs())
        same(ours.get_original_reward(), theirs.get_original_reward())
        same(ours.returns, theirs.returns)


def test_last_observations_are_normalised_too():
    theirs = VecNormalize(ENVIRONMENTS["vector"]())
    ours = VecRunningNormalize(ENVIRONMENTS["vector"]())
    ends = []
    for env in (ours, theirs):
        env.reset()
        for _ in range(6):
            infos = env.step(np.zeros((5, *ACTIONS["Box"].shape), np.float32))[3]
        ends.append([info["terminal_observation"] for info in infos if "terminal_observation" in info])
    found = [np.stack(of_env) if of_env else np.empty(0) for of_env in ends]
    same(*found)


def test_it_is_a_vec_normalize_to_stable_baselines(tmp_path):
    ours = VecRunningNormalize(ENVIRONMENTS["vector"]())
    ours.reset()
    ours.step(np.ones((5, *ACTIONS["Box"].shape), np.float32))
    theirs = VecNormalize(ENVIRONMENTS["vector"](), training=False)
    sync_envs_normalization(ours, theirs)
    same(theirs.obs_rms.mean, ours.obs_rms.mean)
    ours.save(tmp_path / "statistics")
    loaded = VecNormalize.load(tmp_path / "statistics", ENVIRONMENTS["vector"]())
    same(loaded.obs_rms.var, ours.obs_rms.var)


def test_integers_are_averaged_as_stable_baselines_does():
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    ours, theirs = RunningMoments(shape=(3,)), RunningMeanStd(shape=(3,))
    batch = np.random.default_rng(0).integers(0, 255, (7, 3), np.uint8)
    for moments in (ours, theirs):
        moments.update(batch)
    same(ours.mean, theirs.mean)
    same(ours.var, theirs.var)
