"""Native engines step what gymnasium steps, and hand it over as Stable-Baselines3 expects it."""

import csv
from importlib import metadata

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from packaging.requirements import Requirement
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, get_monitor_files
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from acktr import ACKTR
from acktr.envs import backends, make_vec_env
from acktr.envs import envpool as envpool_adapter
from acktr.envs.ale import AleVecEnv
from acktr.envs.backends import choose_backend
from acktr.envs.envpool import ENVPOOL_IDS, EnvPoolVecEnv
from acktr.envs.native import check_autoreset
from acktr.errors import ConfigurationError

BREAKOUT = "BreakoutNoFrameskip-v4"
TIME_LIMIT = 40


@pytest.fixture
def envpool():
    pytest.importorskip("mujoco")
    return pytest.importorskip("envpool")


@pytest.fixture
def atari():
    pytest.importorskip("cv2")
    gym.register_envs(pytest.importorskip("ale_py"))


def sample(env, n_steps, seed=0):
    """Actions ``(n_steps, n_envs, *action)``."""
    env.action_space.seed(seed)
    return np.array([[env.action_space.sample() for _ in range(env.num_envs)] for _ in range(n_steps)])


def set_state(env, observation):
    """Put gymnasium's environment where an observation was made, just after a reset."""
    name, inner = env.spec.id.split("-")[0], env.unwrapped
    x = np.asarray(observation, np.float64)
    if name == "Pendulum":
        inner.state = np.array([np.arctan2(x[1], x[0]), x[2]])
    elif name == "Acrobot":
        inner.state = np.array([np.arctan2(x[1], x[0]), np.arctan2(x[3], x[2]), x[4], x[5]])
    elif not hasattr(inner, "set_state"):
        inner.state = x
    else:
        mujoco = pytest.importorskip("mujoco")
        nq, nv = inner.model.nq, inner.model.nv
        if name == "InvertedDoublePendulum":
            q, v = np.r_[x[0], np.arctan2(x[1:3], x[3:5])], x[5:8]
        elif name == "Reacher":
            q, v = np.r_[np.arctan2(x[2:4], x[:2]), x[4:6]], np.r_[x[6:8], 0, 0]
        else:
            # Coordinates that observations leave out, x and perhaps y, change nothing.
            left_out = {"HalfCheetah": 1, "Hopper": 1, "Walker2d": 1, "Ant": 2, "Swimmer": 2}.get(
                name, 0
            )
            q = np.r_[np.zeros(left_out), x[: nq - left_out]]
            v = x[nq - left_out :][:nv]
        mujoco.mj_resetData(inner.model, inner.data)
        inner.set_state(q, v)


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("env_id", sorted(ENVPOOL_IDS))
def test_envpool_steps_what_gymnasium_steps(envpool, env_id):
    n_envs = 3
    singles = [gym.make(env_id, max_episode_steps=TIME_LIMIT) for _ in range(n_envs)]
    env = EnvPoolVecEnv(singles[0], n_envs)
    env.seed(3)
    observations = env.reset()
    assert env.observation_space.contains(observations[0])
    totals = np.zeros((n_envs, 2))
    for i, single in enumerate(singles):
        single.reset(seed=0)
        set_state(single, observations[i])
    n_episodes = 0
    for actions in sample(env, 2 * TIME_LIMIT + 10):
        observations, rewards, dones, infos = env.step(actions)
        for i, single in enumerate(singles):
            expected, reward, terminated, truncated, _ = single.step(actions[i])
            totals[i] += reward, 1
            assert dones[i] == (terminated or truncated)
            assert rewards[i] == pytest.approx(reward, rel=1e-4, abs=1e-4)
            last = infos[i]["terminal_observation"] if dones[i] else observations[i]
            np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-5)
            if dones[i]:
                assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[i]["episode"]["r"] == pytest.approx(totals[i, 0], rel=1e-4, abs=1e-3)
                assert infos[i]["episode"]["l"] == totals[i, 1]
                assert not np.array_equal(last, observations[i])
                totals[i] = 0
                n_episodes += 1
                single.reset()
                set_state(single, observations[i])
            else:
                assert infos[i] == {}
    assert n_episodes >= 2 * n_envs
    env.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_envpool_environments_have_their_own_seeds_whatever_the_threads(envpool, monkeypatch, env_id):
    def play(seed, threads):
        monkeypatch.setattr(envpool_adapter, "count_threads", lambda n_envs: threads)
        env = make_vec_env(env_id, 2, seed=seed, backend="envpool")
        actions = np.repeat(sample(env, 60)[:, :1], 2, axis=1)
        return np.array([env.reset(), *(env.step(a)[0] for a in actions)])

    first = play(4, 1)
    np.testing.assert_array_equal(first, play(4, 2))
    # Environment i starts from seed + i.
    np.testing.assert_array_equal(first[:, 1], play(5, 1)[:, 0])
    assert not np.array_equal(first[:, 0], first[:, 1])


def test_an_unseeded_environment_differs_and_a_seed_can_be_set_later(envpool):
    env, other = (make_vec_env("CartPole-v1", 2, backend="envpool") for _ in range(2))
    assert not np.array_equal(env.reset(), other.reset())
    env.seed(7)
    other.seed(7)
    np.testing.assert_array_equal(env.reset(), other.reset())
    # A seed is used once, as with DummyVecEnv: the next episodes are others.
    assert not np.array_equal(env.reset(), env.reset())


@pytest.mark.parametrize(("env_id", "backend"), [("CartPole-v1", "envpool"), (BREAKOUT, "ale")])
def test_what_was_returned_is_not_written_to_again(request, env_id, backend):
    request.getfixturevalue("envpool" if backend == "envpool" else "atari")
    env = make_vec_env(env_id, 2, seed=0, backend=backend)
    kept, copies = [], []
    env.reset()
    for actions in sample(env, 120):
        observations, rewards, dones, infos = env.step(actions)
        ends = [info["terminal_observation"] for info in infos if info]
        kept.append([observations, rewards, dones, *ends])
        copies.append([x.copy() for x in kept[-1]])
    assert any(len(arrays) > 3 for arrays in kept)
    for arrays, copied in zip(kept, copies, strict=True):
        for array, copy in zip(arrays, copied, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("env_id", "backend"), [("CartPole-v1", "envpool"), (BREAKOUT, "ale")])
def test_a_step_begins_when_it_is_sent_and_a_reset_waits_for_it(request, monkeypatch, env_id, backend):
    request.getfixturevalue("envpool" if backend == "envpool" else "atari")
    env = make_vec_env(env_id, 2, seed=0, backend=backend).unwrapped
    env.reset()
    calls = []
    for name in ("_send", "_receive"):
        method = getattr(env, name)
        monkeypatch.setattr(env, name, lambda *a, f=method, name=name: (calls.append(name), f(*a))[1])
    env.step_async(np.array([1, 0]))
    assert calls == ["_send"]
    env.step_wait()
    env.step_async(np.array([1, 0]))
    assert env.reset().shape == (2, *env.observation_space.shape)
    assert calls == ["_send", "_receive"] * 2
    assert env.step(np.array([1, 0]))[1].shape == (2,)
    env.step_async(np.array([1, 0]))
    env.close()


def compare_with_atari_wrapper(env_id, n_steps, noise=40):
    """Play the same actions with SB3's wrappers, and return the infos of the ends."""
    inner = DummyVecEnv([lambda: AtariWrapper(Monitor(gym.make(env_id, frameskip=1)), noop_max=0)])
    reference = VecFrameStack(inner, 4)
    env = VecFrameStack(AleVecEnv(gym.spec(env_id), 1, noop_max=0), 4)
    assert env.action_space == reference.action_space
    difference = np.zeros(0)
    ends = []

    def check(observation, expected):
        nonlocal difference
        found = np.abs(observation.astype(int) - np.moveaxis(expected, -1, -3))
        difference = np.append(difference, found.mean())
        assert found.max() <= noise

    check(env.reset(), reference.reset())
    for actions in sample(env, n_steps):
        step, expected = env.step(actions), reference.step(actions)
        check(step[0], expected[0])
        np.testing.assert_array_equal(step[1], expected[1])
        np.testing.assert_array_equal(step[2], expected[2])
        info, wanted = step[3][0], expected[3][0]
        if not step[2][0]:
            continue
        ends.append(info)
        assert info["TimeLimit.truncated"] == wanted["TimeLimit.truncated"]
        assert info.get("episode", {}).get("r") == wanted.get("episode", {}).get("r")
        assert info.get("episode", {}).get("l") == wanted.get("episode", {}).get("l")
        if "episode" not in info:
            # Where the game is over, SB3's last observation is the one before it.
            check(info["terminal_observation"], wanted["terminal_observation"])
        assert not np.array_equal(info["terminal_observation"], step[0][0])
    assert difference.mean() < 0.5
    env.close()
    return ends


@pytest.mark.parametrize(
    "env_id",
    [
        BREAKOUT,  # needs its fire button after each lost life
        "SeaquestNoFrameskip-v4",  # pays 20 at a time
        "PongNoFrameskip-v4",  # pays -1, has no lives, and pixels that flicker
        "QbertNoFrameskip-v4",  # goes on at 0 lives, and has no fire button
    ],
)
def test_ale_presents_a_game_as_atari_wrapper_does(atari, env_id):
    ends = compare_with_atari_wrapper(env_id, 900)
    games = [info["episode"] for info in ends if "episode" in info]
    assert games
    assert len(ends) > len(games) or env_id.startswith("Pong")
    if env_id.startswith("Seaquest"):
        assert max(game["r"] for game in games) >= 20


def test_ale_games_have_their_own_seeds(atari):
    def play(seed):
        env = make_vec_env("SeaquestNoFrameskip-v4", 2, seed=seed, backend="ale")
        actions = np.repeat(sample(env, 60)[:, :1], 2, axis=1)
        return np.array([env.reset(), *(env.step(a)[0] for a in actions)])

    first = play(0)
    assert first.shape == (61, 2, 4, 84, 84)
    np.testing.assert_array_equal(first, play(0))
    np.testing.assert_array_equal(first[:, 1], play(1)[:, 0])
    assert not np.array_equal(first[:, 0], first[:, 1])


def test_ale_keeps_the_settings_of_the_id_and_takes_some_of_its_own(atari):
    def endings(env_id, **env_kwargs):
        env = make_vec_env(env_id, 1, seed=0, backend="ale", env_kwargs=env_kwargs)
        assert env.action_space.n == (18 if env_kwargs.get("full_action_space") else 4)
        env.reset()
        steps = [env.step(np.array([t % 4])) for t in range(200)]
        return [t for t, step in enumerate(steps) if step[2][0]], steps

    sticky, _ = endings("ALE/Breakout-v5")
    assert sticky == endings(BREAKOUT, repeat_action_probability=0.25)[0]
    assert sticky != endings(BREAKOUT)[0]
    endings(BREAKOUT, full_action_space=True)
    cut, steps = endings(BREAKOUT, max_num_frames_per_episode=60)
    # 60 frames are 15 steps, of which 2 press buttons before the learner comes.
    assert cut[:2] == [12, 25]
    info = steps[12][3][0]
    assert info["TimeLimit.truncated"]
    assert info["episode"]["l"] >= 60
    assert not np.array_equal(info["terminal_observation"], steps[12][0][0])


def test_a_game_that_is_over_before_the_learner_is_back_counts(atari):
    def play(**settings):
        env = AleVecEnv(gym.spec(BREAKOUT), 1, settings, noop_max=0)
        env.seed(0)
        env.reset()
        for step, actions in enumerate(sample(env, 100)):
            observations, _, dones, infos = env.step(actions)
            if dones[0]:
                return step, infos[0], env._lives[0], observations

    step, info, lives, _ = play()
    assert "episode" not in info
    assert lives == 4
    # Two steps open the game, and the limit falls into the one that leads out of the lost life.
    limit = 4 * (2 + step + 1 + 1)
    same_step, over, lives, observations = play(max_num_frames_per_episode=limit)
    assert same_step == step
    assert over["episode"]["l"] == limit
    # For the learner it was the life that ended; then it is in a new game.
    assert not over["TimeLimit.truncated"]
    np.testing.assert_array_equal(over["terminal_observation"], info["terminal_observation"])
    assert lives == 5
    assert not np.array_equal(observations[0], over["terminal_observation"])


def test_auto_takes_the_fastest_that_can_do_what_is_asked(envpool, atari, monkeypatch):
    assert choose_backend("auto", "HalfCheetah-v5", 8) == "envpool"
    assert choose_backend("auto", "HalfCheetah-v5", 4) == "gymnasium"
    assert choose_backend("auto", "CartPole-v1", 16) == "gymnasium"
    assert choose_backend("auto", "Humanoid-v5", 8) == "gymnasium"
    assert choose_backend("auto", BREAKOUT, 1) == "ale"
    assert choose_backend("auto", BREAKOUT, 1, env_kwargs={"render_mode": "rgb_array"}) == "gymnasium"
    assert choose_backend("auto", "HalfCheetah-v5", 8, wrapper=lambda env: env) == "gymnasium"
    assert choose_backend("auto", "HalfCheetah-v5", 8, env_kwargs={"frame_skip": 1}) == "gymnasium"
    assert make_vec_env("Pendulum-v1", 8).backend == "envpool"
    assert make_vec_env("Pendulum-v1", 2).backend == "gymnasium"
    monkeypatch.setattr(backends, "is_installed", lambda module: module != "envpool")
    assert choose_backend("auto", "HalfCheetah-v5", 8) == "gymnasium"
    with pytest.raises(ConfigurationError, match='pip install "acktr\\[envpool\\]"'):
        make_vec_env("HalfCheetah-v5", 8, backend="envpool")


def test_a_python_without_wheels_is_told_so_and_not_to_install_again(monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda module: False)
    monkeypatch.setattr(backends, "_PYTHON", (3, 10))
    assert choose_backend("auto", "CartPole-v1", 8) == "gymnasium"
    with pytest.raises(ConfigurationError, match=r"Python 3\.10, only from 3\.11") as caught:
        make_vec_env("CartPole-v1", 2, backend="envpool")
    assert "pip install" not in str(caught.value)
    monkeypatch.setattr(backends, "is_installed", lambda module: True)  # built from its source
    assert choose_backend("envpool", "CartPole-v1", 8) == "envpool"


@pytest.mark.parametrize("backend", backends.NATIVE)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_an_extra_brings_its_engine_where_the_message_says_so(backend, python):
    module, extra, first = backends.NATIVE[backend]
    name = extra.removeprefix("acktr[").removesuffix("]")
    needed = [Requirement(line) for line in metadata.requires("acktr")]
    where = {"python_version": python, "python_full_version": f"{python}.0", "extra": name}
    brought = {r.name.replace("-", "_") for r in needed if r.marker and r.marker.evaluate(where)}
    assert (module in brought) == (tuple(map(int, python.split("."))) >= first)


def test_what_an_engine_cannot_do_is_refused(envpool, atari):
    for arguments, message in (
        ({"wrapper": lambda env: env}, "cannot wrap single environments"),
        ({"env_kwargs": {"render_mode": "rgb_array"}}, "does not take the env_kwargs render_mode"),
    ):
        for env_id, backend in (("CartPole-v1", "envpool"), (BREAKOUT, "ale")):
            with pytest.raises(ConfigurationError, match=message) as caught:
                make_vec_env(env_id, 2, backend=backend, **arguments)
            assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="'envpool' does not have Humanoid-v5"):
        make_vec_env("Humanoid-v5", 2, backend="envpool")
    env = make_vec_env("CartPole-v1", 2, backend="envpool")
    for call in (
        lambda: env.get_attr("state"),
        lambda: env.set_attr("gravity", 1),
        lambda: env.env_method("reset"),
    ):
        with pytest.raises(AttributeError, match='use backend="gymnasium"'):
            call()
    env.set_options({"low": 0.0})
    with pytest.raises(ConfigurationError, match="takes no reset options"):
        env.reset()


def test_an_unknown_autoreset_mode_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="DISABLED, which acktr does not know"):
        check_autoreset("EnvPool", {"autoreset_mode": AutoresetMode.DISABLED}, AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigurationError, match="None, which acktr does not know"):
        check_autoreset("EnvPool", {}, AutoresetMode.NEXT_STEP)


def test_monitor_files_hold_the_episodes(envpool, tmp_path):
    env = make_vec_env("CartPole-v1", 2, seed=0, backend="envpool", monitor_dir=str(tmp_path))
    env.reset()
    episodes = [i["episode"] for a in sample(env, 100) for i in env.step(a)[3] if i]
    env.close()
    rows = []
    for name in get_monitor_files(str(tmp_path)):
        with open(name) as file:
            assert file.readline().startswith("#")
            rows += [(float(row["r"]), int(row["l"])) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted((e["r"], e["l"]) for e in episodes)


@pytest.mark.parametrize(
    ("env_id", "backend"), [("Pendulum-v1", "envpool"), ("Hopper-v5", "envpool"), (BREAKOUT, "ale")]
)
def test_a_model_learns_on_an_engine_and_plays_on_gymnasium(request, tmp_path, env_id, backend):
    request.getfixturevalue("envpool" if backend == "envpool" else "atari")
    image = backend == "ale"
    env = make_vec_env(env_id, 2, seed=0, backend=backend)
    model = ACKTR("CnnPolicy" if image else "MlpPolicy", env, n_steps=10, seed=0, device="cpu")
    model.learn(40)
    assert model.num_timesteps == 40
    model.save(tmp_path / "model")
    other = make_vec_env(env_id, 1, seed=0, backend="gymnasium", frame_stack=4 if image else None)
    loaded = ACKTR.load(tmp_path / "model", env=other)
    assert loaded.get_env().observation_space == model.get_env().observation_space
    if not image:
        assert np.isfinite(evaluate_policy(loaded, loaded.get_env(), 1)[0])
    loaded.learn(20)
