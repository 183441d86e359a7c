"""The state of environments: put back, they go on as if nothing had happened; or they say why not."""

import json
import random
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor

from acktr.envs import make_vec_env
from acktr.envs.running import VecRunningNormalize
from acktr.envs.state import NotCapturable, capture, restore
from acktr.files.codec import decode, encode
from tests.helpers.small_envs import MIXED, VECTOR, small_env
from tests.helpers.toy_envs import Toy


def play(env, n_steps, seed):
    """Everything that a learner sees of some steps with actions of their own."""
    generator, seen = np.random.default_rng(seed), []
    space = env.action_space
    for _ in range(n_steps):
        if isinstance(space, spaces.Box):
            actions = generator.uniform(space.low, space.high, (env.num_envs, *space.shape))
        else:
            actions = generator.integers(space.n, size=env.num_envs)
        observations, rewards, dones, infos = env.step(actions)
        parts = observations.values() if isinstance(observations, dict) else [observations]
        scores = [info.get("episode", {}).get("r") for info in infos]
        seen.append(([part.copy() for part in parts], rewards.copy(), dones.copy(), scores))
    return seen


def assert_goes_on(build, n_before=57, n_after=80):
    env = build(3)
    env.reset()
    play(env, n_before, 0)
    structure, tensors, _ = encode(capture(env))
    state = decode(json.loads(json.dumps(structure)), tensors)
    expected = play(env, n_after, 1)
    env.close()
    other = build(99)
    restore(other, state)
    for step, again in zip(expected, play(other, n_after, 1), strict=True):
        for a, b in zip(step[0], again[0], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(step[1], again[1])
        np.testing.assert_array_equal(step[2], again[2])
        assert step[3] == again[3]
    other.close()


CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]


@pytest.mark.parametrize("env_id", [*CLASSIC, "FrozenLake-v1", "tests.helpers.toy_envs:Toy-v0"])
def test_gymnasium(env_id):
    def build(seed):
        env = make_vec_env(env_id, 3, seed, backend="gymnasium")
        return VecRunningNormalize(env) if env_id in CLASSIC else env

    assert_goes_on(build)


@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Humanoid", "Hopper", "Reacher", "Pusher"])
def test_mujoco(name):
    pytest.importorskip("mujoco")
    assert_goes_on(lambda seed: make_vec_env(f"{name}-v5", 2, seed, backend="gymnasium"))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5"])
def test_envpool(env_id):
    pytest.importorskip("envpool")
    assert_goes_on(lambda seed: make_vec_env(env_id, 3, seed, backend="envpool"), 130, 120)


@pytest.mark.slow
def test_workers():
    assert_goes_on(lambda seed: make_vec_env("CartPole-v1", 2, seed, backend="subproc"))


def test_wrappers_of_many_kinds():
    assert_goes_on(lambda seed: VecFrameStack(VecMonitor(small_env(seed=seed, ends="both")), 3))
    assert_goes_on(lambda seed: VecRunningNormalize(small_env(observation=VECTOR, seed=seed)))
    mixed = lambda seed: VecRunningNormalize(  # noqa: E731
        small_env(observation=MIXED, seed=seed), norm_obs_keys=["vector"]
    )
    assert_goes_on(mixed)


def test_states_of_two_halves_are_those_of_the_whole():
    """As runs with ``overlap`` left them, which is gone."""
    env, other = (make_vec_env("CartPole-v1", 3, seed) for seed in (3, 99))
    env.reset()
    state = capture(env)
    whole = state["environments"]
    state["environments"] = [
        {name: of_all[part] for name, of_all in whole.items()} for part in (slice(1), slice(1, 3))
    ]
    restore(other, state)
    for step, again in zip(play(env, 40, 1), play(other, 40, 1), strict=True):
        np.testing.assert_array_equal(step[0], again[0])
    state["environments"] = [{"seeds": [None], "state": {}}, {"seeds": [None, None], "state": {}}]
    with pytest.raises(NotCapturable, match="stepped a half"):
        restore(other, state)


def test_seeds_that_wait_for_a_reset_are_kept():
    env, other = (make_vec_env("CartPole-v1", 2, seed) for seed in (3, 99))
    restore(other, capture(env))
    np.testing.assert_array_equal(env.reset(), other.reset())


class Many(Toy):
    """Holds its state in everything that is data."""

    def __init__(self):
        super().__init__()
        self.random = random.Random(5)
        self.legacy = np.random.RandomState(5)

    def reset(self, *, seed=None, options=None):
        self.history = deque([1.0], maxlen=3)
        self.table = {1: [0.5], "a": (1, None)}
        self.long = [0.1] * 50
        return super().reset(seed=seed)

    def _observe(self):
        self.history.append(self.random.random())
        self.table[1][0] += self.legacy.rand()
        self.long.append(sum(self.history))
        return np.array([self.table[1][0] % 1, self.long[-2] % 1, self.history[0] % 1], np.float32)


class Custom(Toy):
    """Holds its state elsewhere and offers it."""

    def __init__(self):
        super().__init__()
        self.engine = object()

    def get_state(self):
        return {"time": self.time, "random": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.time = state["time"]
        self.np_random.bit_generator.state = state["random"]


@pytest.mark.parametrize("cls", [Many, Custom])
def test_environments_of_users(cls):
    def build(seed):
        env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(cls(), 7)] * 2)
        env.seed(seed)
        return env

    assert_goes_on(build)


class Foreign(Toy):
    def __init__(self, value):
        super().__init__()
        self.engine = value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"Foreign\.engine is a builtins\.object"),
        ([object()], r"Foreign\.engine is a builtins\.object"),
        ({(1, 2): 3}, r"keys that are no plain values"),
        (iter([1]), r"Foreign\.engine is a"),
        (np.frombuffer(bytearray(8), np.uint8), "not numpy's"),
    ],
)
def test_what_does_not_give_its_state_away_is_named(value, message):
    env = DummyVecEnv([lambda: Foreign(value)])
    env.reset()
    with pytest.raises(NotCapturable, match=message):
        capture(env)


def test_a_type_with_arguments_holds_no_state():
    env = DummyVecEnv([lambda: Foreign(dict[str, int])])
    env.reset()
    assert "engine" not in capture(env)["environments"]["state"][0][-1]["attributes"]


def test_two_names_for_one_thing():
    array = np.zeros((2, 2))
    environment = Foreign(array)
    environment.view = array[0]
    env = DummyVecEnv([lambda: environment])
    env.reset()
    with pytest.raises(NotCapturable, match=r"Foreign\.view and Foreign\.engine share their memory"):
        capture(env)


def test_a_state_of_other_environments_is_refused():
    cart, toy = (make_vec_env(name, 1, 0) for name in ("CartPole-v1", "tests.helpers.toy_envs:Toy-v0"))
    for env in (cart, toy):
        env.reset()
    with pytest.raises(NotCapturable, match="is of"):
        restore(toy, capture(cart))
    with pytest.raises(NotCapturable, match="more wrappers"):
        restore(VecFrameStack(toy, 2), capture(toy))
    state = capture(cart)
    state["environments"]["state"][0][-1]["attributes"]["step"] = 3
    with pytest.raises(NotCapturable, match="is a method"):
        restore(cart, state)


def test_atari_says_so():
    pytest.importorskip("ale_py")
    env = make_vec_env("PongNoFrameskip-v4", 1, 0)
    env.reset()
    with pytest.raises(NotCapturable, match="the backend 'ale' does not give its state away"):
        capture(env)
    env.close()


@pytest.mark.slow
def test_workers_of_others_say_so():
    env = SubprocVecEnv([Toy])
    with pytest.raises(NotCapturable, match="make_vec_env"):
        capture(env)
    env.close()
