"""The tasks of the suite ``memory``: what is hidden is hidden, and a maze is solved by who remembers."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from benchmarks import memory_tasks, suites


@pytest.mark.parametrize("task", memory_tasks.POSITIONS)
def test_positions_are_left_and_velocities_are_not(task):
    if task[:-3] in ("Hopper", "Walker2d", "HalfCheetah"):
        pytest.importorskip("mujoco")
    if task.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    hidden, whole = gym.make(f"novel-{task}"), gym.make(task)
    kept = list(memory_tasks.POSITIONS[task])
    assert hidden.spec.max_episode_steps == whole.spec.max_episode_steps
    np.testing.assert_allclose(hidden.reset(seed=3)[0], whole.reset(seed=3)[0][kept], rtol=1e-6)
    hidden.action_space.seed(0)
    action = hidden.action_space.sample()
    np.testing.assert_allclose(hidden.step(action)[0], whole.step(action)[0][kept], rtol=1e-5)
    if hasattr(whole.unwrapped, "data"):  # MuJoCo's positions, less where it is along the track
        np.testing.assert_allclose(hidden.step(action)[0], hidden.unwrapped.data.qpos[1:], rtol=1e-5)
    hidden.close()
    whole.close()


@pytest.mark.parametrize("length", memory_tasks.MAZES)
def test_who_remembers_the_sign_leaves_the_maze(length):
    env = gym.make(f"tmaze-{length}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    for seed, remembers in ((0, True), (1, True), (2, False), (3, False)):
        observation, _ = env.reset(seed=seed)
        sign = observation[0]
        total, over, steps = 0.0, False, 0
        while not over:
            right = (sign > 0) == remembers
            action = 0 if not observation[1] else 2 if right else 1
            observation, reward, over, cut, _ = env.step(action)
            total, steps = total + reward, steps + 1
            assert not cut
            assert over or observation[0] == 0.0
        assert steps == length + 1
        assert total == pytest.approx(4.0 if remembers else -0.1)


def test_a_maze_is_no_place_to_stand_still():
    env = gym.make("tmaze-20-v0")
    env.reset(seed=0)
    assert env.step(3)[1] == pytest.approx(-0.1)
    assert env.step(1)[1] == pytest.approx(-0.1)


def test_all_sides_can_be_built():
    pytest.importorskip("sb3_contrib")
    from acktr.compare.trial import complete_settings

    for trial in suites.load("memory").trials()[:54]:
        if "novel-CartPole" in trial.env_id or "tmaze-50" in trial.env_id:
            settings = complete_settings(trial)
            assert settings.get("policy", "auto") in ("auto", "MlpLstmPolicy", "MlpGruPolicy")
