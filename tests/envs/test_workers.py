"""Environment workers that are killed, hang or raise: named within seconds, or replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from acktr import ACKTR
from acktr.envs import make_vec_env
from acktr.envs import workers as workers_module
from acktr.envs.workers import WorkerVecEnv
from acktr.errors import ConfigurationError, WorkerError


class Faulty(gym.Env):
    """Fails at one step: ``"raise"``, ``"hang"``, ``"die"``; or when it is built: ``"build"``."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault=None, at=3):
        self.fault, self.at, self.steps = fault, at, 0
        if fault == "build":
            raise OSError("no licence")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(2, 0.25, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            if self.fault == "raise":
                raise ZeroDivisionError("a bug in the simulator")
            if self.fault == "hang":
                time.sleep(20)
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return np.full(2, self.steps / 100, np.float32), 1.0, False, False, {}


class Once:
    """Builds an environment that is faulty the first time only, whichever process builds it."""

    def __init__(self, fault, marker):
        self.fault, self.marker = fault, marker

    def __call__(self):
        first = not os.path.exists(self.marker)
        open(self.marker, "w").close()
        return Faulty(self.fault if first else None)


def workers(fault, timeout=60.0, **kwargs):
    env = WorkerVecEnv([Faulty, lambda: Faulty(fault)], timeout=timeout, **kwargs)
    env.reset()
    return env


def step(env, times):
    for _ in range(times):
        result = env.step(np.zeros(env.num_envs, int))
    return result


@pytest.mark.parametrize(
    ("fault", "timeout", "message"),
    [
        ("raise", 60.0, r"environment 1 \(process \d+\) raised an error:(.|\n)*Error: a bug"),
        ("hang", 1.0, r"environment 1 \(process \d+\) has not answered for 1 seconds"),
        ("die", 60.0, r"environment 1 \(process \d+\) is gone \(killed by SIGKILL\)"),
    ],
    ids=["raise", "hang", "die"],
)  # fmt: skip
def test_a_worker_that_fails_is_named(fault, timeout, message):
    env = workers(fault, timeout)
    step(env, 2)
    with pytest.raises(WorkerError, match=message):
        step(env, 1)
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_a_worker_killed_from_outside_is_named_at_every_call():
    env = workers(None)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    for call in (lambda: step(env, 1), env.reset, lambda: env.get_attr("steps")):
        with pytest.raises(WorkerError, match=r"environment 0 .* \(killed by SIGKILL\)"):
            call()
    env.close()


def test_an_environment_that_cannot_be_built_says_why():
    with pytest.raises(WorkerError, match=r"OSError: no licence"):
        WorkerVecEnv([lambda: Faulty("build")])


@pytest.mark.parametrize(("fault", "timeout"), [("raise", 60.0), ("hang", 1.0), ("die", 60.0)])
def test_a_failed_worker_is_replaced_and_its_slot_cut_off(fault, timeout, tmp_path):
    env = WorkerVecEnv([Faulty, Once(fault, str(tmp_path / "built"))], timeout=timeout, restarts=1)
    env.reset()
    step(env, 2)
    with pytest.warns(UserWarning, match=r"(?s)environment 1 .* was replaced, and its episode cut off"):
        obs, rewards, dones, infos = step(env, 1)
    assert dones.tolist() == [False, True]
    assert rewards.tolist() == [1.0, 0.0]
    assert infos[1]["TimeLimit.truncated"]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], np.full(2, 0.02, np.float32))
    np.testing.assert_array_equal(obs[1], np.full(2, 0.25, np.float32))
    obs, _, dones, _ = step(env, 1)
    assert not dones.any()
    np.testing.assert_allclose(obs, [[0.04, 0.04], [0.01, 0.01]])
    os.kill(env.processes[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="killed by SIGKILL"):  # one replacement was allowed
        step(env, 1)
    env.close()


def test_learning_goes_on_after_a_replacement(tmp_path):
    env = WorkerVecEnv([Faulty, Once("die", str(tmp_path / "built"))], restarts=1)
    model = ACKTR("MlpPolicy", env, n_steps=8, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="was replaced"):
        model.learn(64)
    assert model.num_timesteps == 64
    env.close()


def test_the_setting_reaches_the_workers_and_needs_some():
    env = make_vec_env("CartPole-v1", 2, 0, backend="subproc", worker_timeout=7.0, worker_restarts=3)
    inner = env.unwrapped
    assert isinstance(inner, WorkerVecEnv)
    assert (inner.timeout, inner.restarts_left) == (7.0, 3)
    env.close()
    with pytest.raises(ConfigurationError, match=r"'gymnasium' has no worker processes"):
        make_vec_env("CartPole-v1", 2, 0, backend="gymnasium", worker_restarts=1)


# Fault 29: pauses ---------------------------------------------------------------------------


class Clock:
    """The time, and a connection to a worker that hears nothing and is paused at times.

    :param pauses: how many of the waits take an hour
    :param answers: after so many seconds in which nothing was paused
    """

    def __init__(self, pauses=0, answers=float("inf")):
        self.now, self.pauses, self.answers = 0.0, pauses, answers

    def monotonic(self):
        return self.now

    def poll(self, seconds):
        self.now += seconds
        if self.pauses:  # and so is the worker
            self.pauses -= 1
            self.now += 3600
        else:
            self.answers -= seconds
        return self.answers < 0


def remote(clock, timeout, monkeypatch):
    monkeypatch.setattr(workers_module, "time", clock)
    return workers_module._Remote(clock, None, 0, timeout)


@pytest.mark.parametrize("timeout", [0.5, 2.0, 60.0])
def test_hours_in_which_all_was_paused_do_not_count(timeout, monkeypatch):
    late = remote(Clock(pauses=8, answers=0.99 * timeout), timeout, monkeypatch)
    assert late._answers_within(timeout)


@pytest.mark.parametrize("pauses", [0, 3])
def test_a_worker_that_hangs_is_named_in_time(pauses, monkeypatch):
    clock = Clock(pauses)
    assert not remote(clock, 60.0, monkeypatch)._answers_within(60.0)
    assert clock.now <= pauses * 3601 + 61


PAUSED = """
import time
import gymnasium as gym, numpy as np
from gymnasium import spaces
from acktr.envs.workers import WorkerVecEnv

class Slow(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        print("steps", flush=True)
        for _ in range(8):
            time.sleep(0.05)  # a pause of the process is at most one of them
        return np.ones(2, np.float32), 1.0, False, False, {}

env = WorkerVecEnv([Slow], start_method="fork", timeout=0.8)
env.reset()
env.step(np.zeros(1, int))
env.close()
print("done", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals of job control")
def test_a_paused_process_group_goes_on():
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as group:
        assert group.stdout.readline() == "steps\n"
        os.killpg(group.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.killpg(group.pid, signal.SIGCONT)
        assert group.stdout.read() == "done\n"
