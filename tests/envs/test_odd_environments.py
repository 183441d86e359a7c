"""Environments that raise, or return what their spaces do not say: named, code 2 or 5 (fault 32)."""

import importlib

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR, make
from acktr.cli import main
from acktr.envs import make_vec_env
from acktr.envs.finite import VecCheckFinite
from acktr.envs.kinds import difference
from acktr.envs.normalization import normalization_state
from acktr.envs.running import VecRunningNormalize
from acktr.envs.state import NotCapturable, capture, restore
from acktr.errors import ConfigurationError, WorkerError
from tests.helpers.toy_envs import Toy


class Odd(Toy):
    """Does one thing that no environment should.

    :param what: the thing
    :param after: so many steps of an episode
    """

    def __init__(self, what="nothing", after=0, render_mode=None):
        super().__init__(render_mode)
        self.what = "nothing" if after else what
        self.later, self.after = what, after
        if what == "raises when built":
            raise LookupError("no such level")
        if what == "exits when built":
            raise SystemExit("no licence")
        if what == "needs what is missing":
            importlib.import_module("no_such_thing.inside")
        if what == "a pair":
            self.observation_space = spaces.Dict({"a": self.observation_space})

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        if self.what == "raises in reset":
            raise ZeroDivisionError("a bug in the\nlevel")
        return self.wrong(observation, "reset"), info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.time > self.after:
            self.what = self.later
        if self.what == "raises in step":
            raise ZeroDivisionError("a bug in the\nsimulator")
        if self.what == "four values":
            return observation, reward, terminated, info
        reward = {"two rewards": np.ones(2), "a reward that is none": "x"}.get(self.what, reward)
        terminated = np.zeros(2, bool) if self.what == "two ends" else terminated
        return self.wrong(observation, "step"), reward, terminated, truncated, info

    def wrong(self, observation, where):
        one = {"one": observation[:1], "number": observation[0], "row": observation[None]}
        one |= {
            "short": observation[:2],
            "none": None,
            "a pair": {"a": observation[:1]},
            "list": [[1, 2, 3]],
        }
        return one.get(self.what.removesuffix(f" in {where}"), observation)


if "Odd-v0" not in gym.registry:
    gym.register("Odd-v0", Odd, disable_env_checker=True)

RAISING = ["raises in step", "four values", "two rewards", "a reward that is none", "two ends"]
SHAPES = ["one", "number", "row", "short", "none", "list"]


def learn(what, backend="gymnasium"):
    env = make_vec_env(f"{__name__}:Odd-v0", 2, 0, backend=backend, env_kwargs={"what": what})
    try:
        ACKTR(
            "MlpPolicy" if what != "a pair" else "MultiInputPolicy", env, n_steps=8, device="cpu"
        ).learn(16)
    finally:
        env.close()


@pytest.mark.parametrize("what", [*RAISING, "raises in reset"])
def test_an_environment_that_raises_is_named_with_its_traceback(what):
    with pytest.raises(WorkerError, match=r"(?s)Environment 0 raised an error:\nTraceback.*Error: "):
        learn(what)


@pytest.mark.parametrize("what", [*SHAPES, *(f"{what} in step" for what in SHAPES), "a pair"])
def test_observations_are_not_stretched(what):
    with pytest.raises(WorkerError, match=r"Environment 0 returned an observation of the shape \("):
        learn(what)


@pytest.mark.parametrize("what", ["one in step", "row", "two rewards"])
def test_nor_are_those_of_workers(what):
    with pytest.raises(WorkerError):
        learn(what, "subproc")


@pytest.mark.parametrize(
    ("what", "after", "code", "said"),
    [
        ("raises in step", 3, 5, "Environment 0 raised an error:"),
        ("one in step", 3, 5, "Environment 0 returned an observation of the shape"),
        (
            "raises in step",
            0,
            2,
            "cannot be used: its step raises ZeroDivisionError: a bug in the (line ",
        ),
        ("raises in reset", 0, 2, "cannot be used: its reset raises ZeroDivisionError"),
        ("one in step", 0, 2, "cannot be used: it returned an observation of the shape (1,)"),
        ("none", 0, 2, "cannot be used: it returned an observation of the shape ()"),
        ("four values", 0, 2, "cannot be used: its step raises ValueError: not enough values"),
        ("a reward that is none", 0, 2, "cannot be used: its step raises ValueError: could not convert"),
        ("raises when built", 0, 2, "LookupError: no such level"),
        ("exits when built", 0, 2, "cannot be built: SystemExit: no licence"),
        ("needs what is missing", 0, 2, "Odd-v0 needs no_such_thing, which is not installed"),
    ],
)
def test_the_command_line_says_it_in_its_code(tmp_path, capsys, what, after, code, said):
    settings = [f"env_kwargs.what={what}", f"env_kwargs.after={after}", "policy_kwargs.net_arch=[8]"]
    command = ["train", f"{__name__}:Odd-v0", "--steps", "32", "--no-progress", "--n-envs", "2"]
    command += ["--set", "n_steps=8", *settings, "--out", str(tmp_path / "run")]
    assert main(command) == code
    told = capsys.readouterr().err
    assert told.startswith("acktr: ")
    assert said in told
    assert (tmp_path / "run").exists() is (code == 5)
    if code == 2:
        assert told.count("\n") == 1


@pytest.mark.parametrize("preset", [None, "mujoco"])
def test_what_cannot_be_used_is_found_before_anything_is_built(preset):
    for arguments in ({"what": "raises in step"}, {"level": 3}):
        with pytest.raises(
            ConfigurationError, match=r"Odd-v0 cannot be (used|built).*env_(checker|kwargs)"
        ):
            make(f"{__name__}:Odd-v0", preset=preset, env_kwargs=arguments)


@pytest.mark.parametrize(
    "kwargs",
    [{"max_episode_steps": 0}, {"max_episode_steps": -3}, {"map_name": "zzz"}, {"zzz": 1}, {"desc": 5}],
)
def test_arguments_that_gymnasium_does_not_like(kwargs):
    with pytest.raises(ConfigurationError, match=r"FrozenLake-v1 cannot be built: .") as caught:
        make_vec_env("FrozenLake-v1", 1, env_kwargs=kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"n_envs": 10**9}, {"frame_stack": 4 * 10**9}])
def test_numbers_that_no_machine_has_room_for(arguments):
    with pytest.raises(ConfigurationError, match="at most"):
        make_vec_env("CartPole-v1", **arguments)


class Pairs(DummyVecEnv):
    """Returns a column of rewards, which numpy would stretch over a row of environments."""

    def step_wait(self):
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards[:, None], dones, infos


def test_rewards_of_another_shape_are_named():
    env = VecCheckFinite(Pairs([Toy, Toy]))
    env.reset()
    with pytest.raises(WorkerError, match=r"rewards of the shape \(2, 1\)"):
        env.step(np.zeros(2, int))


# States of wrappers -------------------------------------------------------------------------


def normalized():
    env = VecRunningNormalize(make_vec_env("tests.helpers.toy_envs:Toy-v0", 2, 0))
    env.reset()
    return env


def wrapper(state, name):
    return next(layer for layer in state["wrappers"] if name in layer)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("obs_rms", "mean", np.array([0.0, np.nan, 0.0])),
        ("obs_rms", "mean", np.zeros(2)),
        ("obs_rms", "var", np.array([1.0, -1.0, 1.0])),
        ("obs_rms", "var", np.array([1.0, np.inf, 1.0])),
        ("obs_rms", "var", "x"),
        ("ret_rms", "count", float("nan")),
        ("ret_rms", "count", None),
        ("ret_rms", "mean", float("nan")),
    ],
)
def test_statistics_that_are_none_are_not_put_back(name, key, value):
    env = normalized()
    state = capture(env)
    wrapper(state, name)[name]["object"][key] = value
    with pytest.raises(NotCapturable):
        restore(normalized(), state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("num_envs", 5),
            ("norm_obs", False),
            ("clip_obs", "x"),
            ("returns", np.zeros(3)),
            ("gamma", None),
        ),
        *(
            ("training", 5),
            ("venv", 5),
            ("step", 5),
            ("__class__", 5),
            ("ret_rms", 5),
            ("epsilon", np.nan),
        ),
        ("metadata", {}),
    ],
)
def test_settings_of_wrappers_are_those_they_were_built_with(name, value):
    env = normalized()
    state = capture(env)
    wrapper(state, "ret_rms")[name] = value
    other = normalized()
    before = normalization_state(other)
    with pytest.raises(NotCapturable):
        restore(other, state)
    assert normalization_state(other).keys() == before.keys()
    other.step(np.zeros(2, int))


@pytest.mark.parametrize("seeds", [[1], [1, -1], [1, "x"], [None, 2**70], []])
def test_seeds_that_are_none(seeds):
    env = normalized()
    state = capture(env)
    state["environments"]["seeds"] = seeds
    with pytest.raises(NotCapturable, match="seeds"):
        restore(normalized(), state)


@pytest.mark.parametrize(
    ("value", "own"),
    [
        *(
            (None, 1),
            (1.0, 1),
            (True, 1),
            (2**63, 1),
            ("1", 1),
            (np.nan, 1.0),
            (10**400, 1.0),
            (None, 1.0),
        ),
        *((1, True), (1, "a"), ([1], [1, 2]), ((1,), [1]), ({"b": 1}, {"a": 1}), ({"a": "x"}, {"a": 1})),
        *((np.zeros(2), np.zeros(3)), (1, np.zeros(3)), (5, spaces.Discrete(2))),
    ],
)
def test_kinds_that_differ(value, own):
    assert difference(value, own, "it").startswith("it")


def test_kinds_that_are_the_same():
    same = [
        (5, 1),
        (np.int64(5), 1),
        (2, 1.0),
        (np.inf, np.inf),
        (np.True_, True),
        ("b", "a"),
        (5, None),
    ]
    same += [(np.ones(3), np.zeros(3)), (1.0, np.zeros(())), (np.ones(2), np.zeros(0)), ([2, 3], [1, 1])]
    assert [difference(value, own, "it") for value, own in same] == [None] * len(same)
