"""Nothing that a run keeps grows with its episodes, nor with the steps of an endless one (fault 30)."""

import tracemalloc

import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor

from acktr.envs import make_vec_env
from acktr.envs.monitor import BoundedMonitor
from acktr.envs.state import NotCapturable, capture, capture_single, restore_single
from acktr.errors import CheckpointWriteError
from acktr.files import bundle
from acktr.files.checkpoints import CheckpointStore
from acktr.files.codec import Unstorable, encode
from tests.helpers.runs import new, train
from tests.helpers.toy_envs import Toy

pytestmark = pytest.mark.usefixtures("no_pictures", "known_versions")


LOADED = "tests.helpers.toy_envs:"


class Short(Toy):
    """Ends after so many steps.

    :param length: of an episode, steps
    """

    def __init__(self, length=1):
        super().__init__()
        self.length = length

    def step(self, action):
        observation, *_ = super().step(action)
        return observation, 0.1 * self.time, self.time >= self.length, False, {}


def build(length):
    return BoundedMonitor(Monitor(Short(length)))


def play(env, n_steps):
    found = []
    for _ in range(n_steps):
        *_, terminated, truncated, info = env.step(1)
        if terminated or truncated:
            found.append({k: v for k, v in info["episode"].items() if k != "t"})
            env.reset()
    return found


@pytest.mark.parametrize("length", [1, 7, 1000, 3000])
def test_it_says_of_episodes_what_sb3_says(length):
    ours, theirs = build(length), Monitor(Short(length))
    ours.reset(seed=0), theirs.reset(seed=0)
    assert play(ours, 7000) == play(theirs, 7000)
    assert ours.get_episode_rewards() == pytest.approx(theirs.get_episode_rewards()[-100:])
    assert ours.get_episode_lengths() == theirs.get_episode_lengths()[-100:]
    assert len(ours.get_episode_times()) == len(ours.get_episode_lengths())
    assert ours.get_total_steps() == 7000
    with pytest.raises(RuntimeError, match="needs reset"):
        build(1).step(1)


@pytest.mark.parametrize("length", [1, 10**9])
def test_neither_memory_nor_state_grow(length):
    env = build(length)
    env.reset(seed=0)
    play(env, 3000)
    structure, tensors, _ = encode(capture_single(env))
    tracemalloc.start()
    try:
        play(env, 6000)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    again, more, _ = encode(capture_single(env))
    assert abs(len(bundle._dump(again)) - len(bundle._dump(structure))) < 100
    size = sum(x.nbytes for x in tensors.values()), sum(x.nbytes for x in more.values())
    assert max(size) < 9000


@pytest.mark.parametrize("length", [7, 3000])
def test_a_state_of_sb3s_monitor_is_taken_up(length):
    theirs, ours = Monitor(Short(length)), build(length)
    theirs.reset(seed=0)
    play(theirs, 1499)
    ours.reset(seed=1)
    restore_single(ours, capture_single(theirs))
    assert play(ours, 4000) == play(theirs, 4000)


def test_make_vec_env_has_it():
    env = make_vec_env(f"{LOADED}Toy-v0", 2, 0)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert type(env.unwrapped.envs[0]) is BoundedMonitor
    env.close()


def test_times_are_not_those_of_a_clock_that_is_set(monkeypatch):
    env = build(1)
    env.reset()
    monkeypatch.setattr("time.time", lambda: -1e9)
    assert 0 <= env.step(1)[-1]["episode"]["t"] < 3600


def test_an_endless_episode_of_envpool(monkeypatch):
    pytest.importorskip("envpool")
    monkeypatch.setattr("acktr.envs.envpool._LONGEST", 30)
    env = make_vec_env("Pendulum-v1", 2, 0, backend="envpool")
    env.reset()
    for step in range(230):
        env.step(np.zeros((2, 1), np.float32))
        assert len(env.unwrapped._played) <= 30
        if 30 < step < 199:
            with pytest.raises(NotCapturable, match="an episode has more than 30 steps"):
                capture(env)
        elif step >= 200:
            capture(env)
    env.close()


def test_a_state_that_is_too_large_is_left_out_by_name(tmp_path, monkeypatch):
    limit = 12_000  # bytes; the learner has some hundreds

    def refuse(json_size, header_size):
        return f"its state has {json_size:,} bytes" if json_size > limit else None

    monkeypatch.setattr(bundle, "_too_large", refuse)
    path = new(tmp_path / "run")
    train(path, f"{LOADED}Hoarder-v0", "n_timesteps=128")
    checkpoint, _ = CheckpointStore(path / "checkpoints").newest()
    assert checkpoint.steps == 128
    assert checkpoint.components["rank-0"]["environment"] is None
    assert not checkpoint.info["exact"]
    assert checkpoint.info["reasons"][0].startswith("the environments begin anew: its state has ")
    _, told = train(path, f"{LOADED}Hoarder-v0", "n_timesteps=160", resume=True)
    assert "the environments begin anew: its state has" in told[0]


def test_what_would_not_be_read_is_not_written(monkeypatch):
    monkeypatch.setattr(bundle, "MAX_JSON", 1000)
    with pytest.raises(CheckpointWriteError, match="learner cannot be saved"):
        bundle.pack("checkpoint", {"learner": list(range(1000))}, {})
    with pytest.raises(Unstorable, match="bytes besides its arrays, and only 1,000 are read"):
        bundle.encode_part(list(range(1000)))
    monkeypatch.setattr(bundle, "MAX_JSON", 10**6)
    monkeypatch.setattr(bundle, "MAX_TENSOR_HEADER", 1000)
    with pytest.raises(Unstorable, match="so many arrays"):
        bundle.encode_part([np.zeros(1)] * 100)
    with pytest.raises(CheckpointWriteError, match="so many arrays"):
        bundle.pack("checkpoint", {"learner": [np.zeros(1)] * 100}, {})
