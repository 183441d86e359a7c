"""Two halves of the environments in flight: what is learned from is what it is without."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from acktr import ACKTR
from acktr.envs import make_vec_env
from acktr.envs.finite import VecCheckFinite
from acktr.envs.halves import HalvedVecEnv, build_halves
from acktr.errors import ConfigurationError, DivergenceError
from acktr.experiment import build_environment, build_model
from acktr.presets import resolve
from tests.helpers.small_envs import IMAGE, MIXED, VECTOR, Small, small_env

LAST_CHANNEL = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)


def cartpoles(count, kind=DummyVecEnv):
    return kind([lambda: Monitor(gym.make("CartPole-v1")) for _ in range(count)])


def smalls(action="Box", observation=VECTOR, **kwargs):
    return lambda first, count: small_env(action, observation, count, length=5 + first, **kwargs)


def pair(build, n_envs, wrap=lambda env: env):
    """The same environments without and with overlap."""
    return wrap(build(0, n_envs)), wrap(build_halves(build, n_envs))


def halves_of(env):
    return env.unwrapped.halves


def start(env, policy="MlpPolicy", **kwargs):
    model = ACKTR(policy, env, **{"n_steps": 13, "gamma": 0.9, "seed": 3, **kwargs})
    _, callback = model._setup_learn(1000)
    return model, callback


def collect(model, callback):
    storage = model.rollout_buffer
    return model.collect_rollouts(model.env, callback, storage, len(storage.rewards))


CASES = {
    "CartPole": ("MlpPolicy", lambda _, count: cartpoles(count), 4),
    "odd": ("MlpPolicy", smalls(ends="both"), 5),
    "Discrete": ("MlpPolicy", smalls("Discrete", ends="terminated"), 4),
    "MultiDiscrete": ("MlpPolicy", smalls("MultiDiscrete", ends="truncated"), 2),
    "MultiBinary": ("MlpPolicy", smalls("MultiBinary", ends="both"), 3),
    "dict": ("MultiInputPolicy", smalls("Discrete", MIXED, ends="both"), 4),
    "pixels": ("CnnPolicy", smalls("Discrete", IMAGE, ends="both"), 4),
}
WRAPPERS = {
    "frames": ("CnnPolicy", lambda env: VecTransposeImage(VecFrameStack(env, 3))),
    "checked": ("CnnPolicy", lambda env: VecFrameStack(VecTransposeImage(VecCheckFinite(env)), 2)),
}
for name, (policy, wrap) in WRAPPERS.items():
    CASES[name] = (policy, smalls("Discrete", LAST_CHANNEL, ends="both"), 4, wrap)


def observations(storage):
    stored = storage.observations
    return stored if isinstance(stored, dict) else {"": stored}


@pytest.mark.parametrize("name", CASES)
def test_a_rollout_is_the_same_with_and_without(name):
    policy, *case = CASES[name]
    (off, off_callback), (on, on_callback) = (start(env, policy) for env in pair(*case))
    close = {"rtol": 1e-4, "atol": 1e-5}
    for _ in range(3):
        torch.manual_seed(0)
        assert collect(off, off_callback)
        after = torch.rand(1)
        torch.manual_seed(0)
        assert collect(on, on_callback)
        assert torch.equal(torch.rand(1), after)
        mine, other = on.rollout_buffer, off.rollout_buffer
        for key, stored in observations(other).items():
            np.testing.assert_allclose(observations(mine)[key], stored, **close)
        for part in ("actions", "rewards", "values", "advantages"):
            np.testing.assert_allclose(getattr(mine, part), getattr(other, part), **close)
        np.testing.assert_array_equal(mine.episode_starts, other.episode_starts)
        assert on.num_timesteps == off.num_timesteps
        assert [e["l"] for e in on.ep_info_buffer] == [e["l"] for e in off.ep_info_buffer]
        assert not any(half.in_flight for half in halves_of(on.env))


def test_a_rollout_is_the_same_with_and_without_subprocesses():
    build = lambda _, count: cartpoles(count, SubprocVecEnv)  # noqa: E731
    off, off_callback = start(cartpoles(2), n_steps=40)
    on, on_callback = start(build_halves(build, 2), n_steps=40)
    for model, callback in ((off, off_callback), (on, on_callback)):
        torch.manual_seed(0)
        collect(model, callback)
    np.testing.assert_array_equal(on.rollout_buffer.actions, off.rollout_buffer.actions)
    np.testing.assert_allclose(
        on.rollout_buffer.observations, off.rollout_buffer.observations, rtol=1e-4
    )

    class Asks(BaseCallback):
        """Speaks to the environments in the middle of their steps."""

        def _on_step(self):
            assert self.training_env.get_attr("spec", 1)[0].id == "CartPole-v1"
            assert len(self.training_env.env_method("get_wrapper_attr", "x_threshold")) == 2
            return True

    on.learn(80, Asks())
    assert not any(half.in_flight for half in halves_of(on.env))
    on.env.close()


def normalised(env):
    return VecNormalize(VecCheckFinite(env), gamma=0.9)


def test_normalisation_is_brought_back_to_the_whole_stack():
    off, on = pair(smalls(ends="both"), 5, normalised)
    for env in (off, on):
        env.training = False  # with statistics that stay, nothing may differ
        env.obs_rms.mean, env.ret_rms.var = np.full(3, 0.2), 2.0
    (theirs, their_callback), (ours, callback) = start(off), start(on)
    for model, each in ((theirs, their_callback), (ours, callback)):
        torch.manual_seed(0)
        collect(model, each)
    for name in ("old_obs", "old_reward", "returns"):
        np.testing.assert_allclose(getattr(on, name), getattr(off, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours._last_obs, theirs._last_obs, rtol=1e-5)
    np.testing.assert_allclose(ours._last_obs, on.normalize_obs(on.get_original_obs()))


def test_statistics_are_shared_by_the_halves():
    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            env = self.model.get_vec_normalize_env()
            assert np.array_equal(env.get_original_obs(), raw["obs"])
            seen.append(env.obs_rms.count)
            return True

    raw = {}
    env = build_halves(smalls(ends="both"), 4)
    for part, half in zip(env.parts, env.halves, strict=True):
        _remember(half, part, raw)
    env = normalised(env)
    model = ACKTR("MlpPolicy", env, n_steps=8, seed=0)
    raw["obs"] = np.zeros((4, 3), np.float32)
    model.learn(64, Look())
    np.testing.assert_allclose(np.diff(seen), 4)
    assert env.returns.shape == (4,)
    assert env.ret_rms.count == pytest.approx(64, abs=1)


def _remember(half, part, raw):
    step_wait = half.step_wait

    def noted():
        result = step_wait()
        raw["obs"][part] = result[0]
        return result

    half.step_wait = noted


def test_learning_is_the_same_with_and_without():
    parameters = []
    for env in pair(CASES["CartPole"][1], 4):
        model = ACKTR("MlpPolicy", env, n_steps=16, seed=0).learn(256)
        assert model.num_timesteps == 256
        parameters.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    torch.testing.assert_close(*parameters, rtol=1e-2, atol=1e-3)


class Own(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(obs)


@pytest.mark.parametrize("policy", ["MlpPolicy", Own])
def test_learning_with_normalisation(policy):
    env = normalised(build_halves(smalls(ends="both"), 3))
    model = ACKTR(policy, env, n_steps=8, seed=0).learn(96)
    assert model.num_timesteps == 96


class Watch(BaseCallback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at = stop_at
        self.seen = []

    def _on_step(self):
        self.seen.append({k: (type(v), getattr(v, "shape", None)) for k, v in self.locals.items()})
        return self.n_calls != self.stop_at


def test_callbacks_see_the_same_local_variables():
    watchers = [Watch(), Watch()]
    for env, watch in zip(pair(smalls(), 3), watchers, strict=True):
        ACKTR("MlpPolicy", env, n_steps=4, seed=0).learn(24, watch)
    for mine, other in zip(watchers[1].seen, watchers[0].seen, strict=True):
        assert mine.keys() == other.keys()
        assert [k for k in mine if mine[k] != other[k]] == ["env"]


@pytest.mark.parametrize("stop_at", [1, 5, 8, 9])
def test_a_stop_leaves_nothing_in_flight(stop_at):
    env = build_halves(smalls(), 3)
    model = ACKTR("MlpPolicy", env, n_steps=8, seed=0)
    newest = {"obs": np.zeros((3, 3), np.float32)}
    for half, part in zip(env.halves, env.parts, strict=True):
        _remember(half, part, newest)
    watch = Watch(stop_at)
    model.learn(480, watch)
    assert watch.n_calls == stop_at
    assert model.num_timesteps == 3 * stop_at
    assert not any(half.in_flight for half in env.halves)
    # Whoever goes on starts where the environments are.
    np.testing.assert_array_equal(model._last_obs, newest["obs"])
    model.learn(24, reset_num_timesteps=False)


def test_a_callback_that_fails_leaves_nothing_in_flight():
    class Fails(BaseCallback):
        def _on_step(self):
            raise KeyError("mine")

    env = build_halves(smalls(), 4)
    with pytest.raises(KeyError, match="mine"):
        ACKTR("MlpPolicy", env, n_steps=8, seed=0).learn(32, Fails())
    assert not any(half.in_flight for half in env.halves)


def test_a_callback_that_resets_is_told():
    class Resets(BaseCallback):
        def _on_step(self):
            self.training_env.reset()
            return True

    env = build_halves(smalls(), 4)
    with pytest.raises(RuntimeError, match="do not reset or step the training environments"):
        ACKTR("MlpPolicy", env, n_steps=8, seed=0).learn(32, Resets())


class Fragile(Small):
    """Breaks in its fourth step."""

    def step(self, action):
        if self.steps == 3:
            raise ZeroDivisionError("fragile")
        return super().step(action)


def fragile(index, kind, n_envs):
    """Environments of which one is fragile."""

    def build(first, count):
        makers = [Fragile if first + i == index else Small for i in range(count)]
        return kind([lambda make=make: make(VECTOR, gym.spaces.Discrete(2)) for make in makers])

    return build_halves(build, n_envs)


@pytest.mark.filterwarnings("ignore:The `render_mode` attribute:UserWarning")
@pytest.mark.parametrize("case", [(0, DummyVecEnv, 4), (3, DummyVecEnv, 4), (1, SubprocVecEnv, 2)])
def test_what_an_environment_raises_is_heard_and_nothing_hangs(case):
    env, kind = fragile(*case), case[1]
    error = ZeroDivisionError if kind is DummyVecEnv else (EOFError, ConnectionError)
    with pytest.raises(error):
        ACKTR("MlpPolicy", env, n_steps=8, seed=0).learn(32)
    assert not any(half.in_flight for half in env.halves)
    if kind is SubprocVecEnv:
        for half in env.halves:
            for process in half.venv.processes:
                process.terminate()


@pytest.mark.parametrize("wrap", [lambda env: env, VecCheckFinite, normalised, VecNormalize])
@pytest.mark.parametrize("bad", ["reward", "observation"])
def test_the_environment_that_returned_nan_is_named(bad, wrap):
    env = build_halves(smalls(ends="both"), 5)
    broken = env.halves[1].venv.envs[1]
    broken.bad, broken.bad_step = bad, 6
    model = ACKTR("MlpPolicy", wrap(env), n_steps=8, seed=0)
    with pytest.raises(
        DivergenceError, match=rf"(?i)environment 3 .*{bad}|{bad}.* environment 3 "
    ) as caught:
        model.learn(80)
    if wrap in (VecCheckFinite, normalised):
        assert "at its step 6 (step 30 of all)" in str(caught.value)
    else:
        assert "at step 25" in str(caught.value)
    assert not any(half.in_flight for half in env.halves)


def test_a_wrapper_that_cannot_be_divided_is_refused():
    env = VecMonitor(build_halves(smalls(), 4))
    with pytest.raises(ConfigurationError, match=r"VecMonitor cannot be divided.*leave overlap off"):
        ACKTR("MlpPolicy", env, n_steps=8).learn(32)
    A2C("MlpPolicy", env).learn(40)  # who does not overlap takes it as it is


@pytest.mark.parametrize(
    ("env_id", "backend", "package"),
    [("Pendulum-v1", "envpool", "envpool"), ("ALE/Breakout-v5", "ale", "ale_py")],
)
def test_native_engines_step_in_halves(env_id, backend, package, tmp_path):
    pytest.importorskip(package)
    policy = "CnnPolicy" if backend == "ale" else "MlpPolicy"
    rollouts = []
    for overlap in (False, True):
        env = make_vec_env(env_id, 3, seed=5, backend=backend, overlap=overlap)
        assert env.backend == backend
        model, callback = start(env, policy, n_steps=12)
        torch.manual_seed(0)
        collect(model, callback)
        rollouts.append(model.rollout_buffer)
        env.close()
    for part in ("actions", "rewards"):
        mine, other = (getattr(storage, part) for storage in rollouts)
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigurationError, match="leave out monitor_dir or overlap"):
        make_vec_env(env_id, 4, backend=backend, overlap=True, monitor_dir=str(tmp_path))


def test_a_configuration_can_ask_for_it():
    overrides = ["overlap=true", "backend=gymnasium", "n_envs=3", "normalize=true"]
    configuration, _ = resolve("CartPole-v1", overrides=overrides)
    env = build_environment(configuration)
    assert isinstance(env.unwrapped, HalvedVecEnv)
    evaluation = build_environment(configuration, training=False)
    assert not isinstance(evaluation.unwrapped, HalvedVecEnv)
    model = build_model(configuration, env)
    model.learn(300, EvalCallback(evaluation, eval_freq=20, n_eval_episodes=1, verbose=0))
    assert model.num_timesteps >= 300


def test_half_of_the_threads_are_left_to_the_environments_while_they_are_in_flight():
    seen = []

    class Note(BaseCallback):
        def _on_step(self):
            seen.append(torch.get_num_threads())
            return True

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for overlap, expected in ((False, 4), (True, 2)):
            env = make_vec_env("CartPole-v1", 4, seed=0, backend="gymnasium", overlap=overlap)
            ACKTR("MlpPolicy", env, n_steps=3, seed=0).learn(12, Note())
            assert torch.get_num_threads() == 4
            assert seen == [expected] * 3
            seen.clear()
    finally:
        torch.set_num_threads(threads)
