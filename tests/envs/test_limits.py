"""What environments tell of themselves: time limits, resets, states; not telling breaks nothing."""

import pickle
import threading

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from acktr import ACKTR
from acktr.envs import make_vec_env
from acktr.envs.limits import time_limit
from acktr.envs.running import VecRunningNormalize
from acktr.envs.state import NotCapturable, attach, capture, capture_single
from acktr.schedules import Horizon
from tests.helpers.small_envs import VECTOR, Small, small_env
from tests.helpers.toy_envs import Toy


def limited(steps=7):
    return gym.wrappers.TimeLimit(Toy(), steps)


def scaled():
    """An environment whose specification cannot be pickled: it names a lambda."""
    return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: 0.1 * reward)


def local():
    gym.register("Local-v0", lambda: Toy(), disable_env_checker=True, max_episode_steps=9)
    return gym.make("Local-v0")


class Furnished(Toy):
    def __init__(self, furniture=None):
        super().__init__()


def furnished():
    gym.register("Furnished-v0", Furnished, disable_env_checker=True)
    return gym.make("Furnished-v0", furniture=threading.Lock())


def test_limits_of_environments_in_this_process():
    assert time_limit(make_vec_env("CartPole-v1", 2)) == 500
    assert time_limit(make_vec_env("CartPole-v1", 2, frame_stack=2)) == 500
    assert time_limit(VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))) == 200
    # The longest, and none where one environment has none.
    assert time_limit(DummyVecEnv([scaled, lambda: gym.make("Pendulum-v1")])) == 500
    assert time_limit(DummyVecEnv([scaled, Toy])) is None
    assert time_limit(small_env()) is None
    assert time_limit(DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=-1)])) is None


@pytest.mark.parametrize(
    ("build", "limit"), [(scaled, 500), (local, 9), (furnished, None), (Toy, None), (limited, 7)]
)
def test_workers_live_on_when_they_are_asked_for_their_limit(build, limit):
    # Forked, as that is fast; make_vec_env's own ask in the same way.
    env = SubprocVecEnv([build] * 2, start_method="fork")
    try:
        assert time_limit(env) == limit
        ACKTR("MlpPolicy", env, n_steps=4).learn(8)
    finally:
        env.close()


class Silent(DummyVecEnv):
    """Answers questions about its environments as vector environments of users do."""

    answer = None

    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * len(self.envs)
        if isinstance(self.answer, type):
            raise self.answer(attr_name)
        return self.answer


ANSWERS = [AttributeError, NotImplementedError, RuntimeError, KeyError, TypeError, AssertionError]
ANSWERS += [EOFError, None, [], [None], [None, None], 3, {}, [{"max_episode_steps": 3}] * 2, "ab"]


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_no_answer_means_that_the_limit_is_unknown(answer, monkeypatch):
    monkeypatch.setattr(Silent, "answer", answer)
    model = ACKTR("MlpPolicy", Silent([Toy, Toy]), n_steps=4, gamma=Horizon(0.9, 0.99)).learn(8)
    assert model.parts.discount.time_limit is None


class Telling(Toy):
    """Tells something at each reset."""

    def __init__(self):
        super().__init__()
        self.resets = 0

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        self.resets += 1
        return observation, {"resets": self.resets, "options": options}


@pytest.mark.parametrize("backend", ["gymnasium", "subproc"])
def test_resets_tell_what_they_told(backend):
    gym.register("Telling-v0", Telling, disable_env_checker=True)
    try:
        env = make_vec_env("Telling-v0", 2, backend=backend, frame_stack=2)
    finally:
        gym.registry.pop("Telling-v0")
    env = VecRunningNormalize(env)
    try:
        env.set_options([{"level": 3}, {"level": 4}])
        env.reset()
        levels = [info["options"]["level"] for info in env.reset_infos]
        assert levels == [3, 4]
        before = env.reset_infos[0]["resets"]
        for _ in range(10):
            env.step(np.zeros(2, int))
        assert [info["resets"] for info in env.reset_infos] == [before + 1] * 2
        assert [info["options"] for info in env.reset_infos] == [None, None]
    finally:
        env.close()


def test_games_tell_of_their_start():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make_vec_env("BreakoutNoFrameskip-v4", 2, seed=0, backend="ale")
    env.reset()
    assert [info["lives"] for info in env.reset_infos] == [5, 5]
    env.close()


class Secretive(Small):
    """Fails to give its state away, or gives one that cannot be sent."""

    fails = True

    def get_state(self):
        if self.fails:
            raise RuntimeError("no\nstate")
        return {"lock": threading.Lock()}

    def set_state(self, state):
        pass


def test_a_state_that_is_not_given_away_is_none():
    env = Secretive(VECTOR, gym.spaces.Discrete(2))
    with pytest.raises(NotCapturable, match=r"Secretive\.get_state failed \(RuntimeError: no state\)"):
        capture(DummyVecEnv([lambda: env]))
    # As a worker is asked.
    ask = attach(env).capture_state
    assert "get_state failed" in ask()
    env.fails = False
    assert "cannot be sent" in ask()
    with pytest.raises(TypeError):
        pickle.dumps(capture_single(env))
