"""Tasks of other packages: what they observe and take, and what is said where a package is missing."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from acktr.cli import main
from acktr.envs import make_vec_env
from acktr.envs.masks import draw_allowed
from acktr.errors import ConfigurationError
from acktr.run.build import make
from benchmarks import masked_tasks, run, suites, tasks

_IDS = [
    f"{tasks.MODULE}:{env_id}"
    for env_id, spec in gym.registry.items()
    if str(spec.entry_point or spec.vector_entry_point).startswith(tasks.MODULE)
]
_MASKED_IDS = [
    f"{masked_tasks.MODULE}:{env_id}"
    for env_id, spec in gym.registry.items()
    if str(spec.entry_point).startswith(masked_tasks.MODULE)
]
# Of dm_control and gymnasium-robotics where there is no display, and of their age.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable is missing"),
]


def _build(env_id, n_envs=2, seed=0):
    try:
        tasks.check_installed(env_id)
    except ConfigurationError as error:
        pytest.skip(str(error))
    return make_vec_env(env_id, n_envs, seed, backend="gymnasium")


def test_the_suite_has_every_task():
    assert set(_IDS) == {env for env in suites.load("general").envs if ":" in env}
    assert set(_MASKED_IDS) == set(suites.load("masks").envs)


@pytest.mark.parametrize("env_id", [*_IDS, *_MASKED_IDS])
def test_a_seed_says_what_happens(env_id):
    histories = []
    for _ in range(2):
        env = _build(env_id)
        env.action_space.seed(0)
        steps = [env.reset()]
        for _ in range(20):
            observation, rewards, _, _ = env.step(
                np.stack([env.action_space.sample() for _ in range(env.num_envs)])
            )
            steps += [observation, rewards]
        env.close()
        histories.append(steps)
    for one, other in zip(*histories, strict=True):
        parts = (one, other) if isinstance(one, dict) else ({"": one}, {"": other})
        assert all(np.array_equal(parts[0][key], parts[1][key]) for key in parts[0])


@pytest.mark.parametrize(
    ("env_id", "observations", "actions"),
    [
        ("dmc-walker-walk-v0", spaces.Box(-np.inf, np.inf, (24,), np.float32), spaces.Box),
        ("minigrid-DoorKey-5x5-v0", spaces.Box(0, 255, (147,), np.float32), spaces.Discrete),
        ("minatar-breakout-v0", spaces.Box(0, 1, (4, 10, 10), np.float32), spaces.Discrete),
        (
            "multidiscrete-Reacher-v0",
            spaces.Box(-np.inf, np.inf, (10,), np.float64),
            spaces.MultiDiscrete,
        ),
    ],
)
def test_spaces(env_id, observations, actions):
    env = _build(f"{tasks.MODULE}:{env_id}", 1)
    env.close()
    assert env.observation_space == observations
    assert isinstance(env.action_space, actions)


def test_a_goal_is_observed_in_a_dictionary():
    env = _build(f"{tasks.MODULE}:robotics-FetchReachDense-v0", 1)
    env.close()
    assert set(env.observation_space) == {"observation", "achieved_goal", "desired_goal"}


def test_games_of_minatar_show_channels_of_zeros_and_ones():
    env = _build("benchmarks.tasks:minatar-space_invaders-v0", 1)
    observation = env.reset()
    env.close()
    assert env.action_space.n == 4
    assert set(np.unique(observation)) == {0, 1}
    # The cannon is one pixel in the last row of the first channel.
    assert observation[0, 0].sum() == observation[0, 0, -1].sum() == 1


def test_agents_of_a_game_are_environments():
    env = _build(f"{tasks.MODULE}:mpe-simple_spread-v0", 4)
    assert (env.num_envs, env.observation_space.shape, env.action_space.n) == (6, (18,), 5)
    env.reset()
    for _ in range(25):
        observations, _, dones, infos = env.step(np.zeros(6, int))
    env.close()
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and info["episode"]["l"] == 25 for info in infos)
    # What an agent observes first is its own velocity, which a new game begins without.
    assert not observations[:, :2].any()


@pytest.mark.parametrize("env_id", _MASKED_IDS)
def test_tasks_with_masks_end_and_allow_what_they_say(env_id):
    env = _build(env_id)
    rng, ended, returns = np.random.default_rng(0), 0, []
    env.reset()
    for _ in range(300):
        _, rewards, dones, _ = env.step(draw_allowed(env, rng))
        ended += dones.sum()
        returns += list(rewards[dones])
    env.close()
    assert ended >= 4
    if "connect_four" in env_id:
        assert set(returns) == {-1.0, 1.0}


def test_an_invalid_move_loses_and_an_invalid_job_is_none():
    env = _build(f"{masked_tasks.MODULE}:pettingzoo-connect_four-v0", 1).envs[0].unwrapped
    env.reset(seed=1)
    over = False
    while not over:
        full = not env.action_masks()[3]
        _, reward, over, *_ = env.step(3)
    assert not full or reward == -1.0
    shop = gym.make("jobshop-6x4-v0").unwrapped
    shop.reset(seed=0)
    busy = shop._busy.copy()
    shop.step(np.where(shop.action_masks().reshape(4, 7)[:, 0], 6, 0))
    assert np.array_equal(shop._busy, busy)


def test_a_job_shop_is_done_when_all_jobs_are():
    shop = gym.make("jobshop-6x4-v0").unwrapped
    shop.reset(seed=0)
    score, over = 0.0, False
    while not over:
        masks = shop.action_masks().reshape(4, 7)
        _, reward, over, *_ = shop.step(masks.argmax(1))  # the first that waits, none if none does
        score += reward
    assert shop._times.sum(1).max() <= -score <= shop._times.sum()


def test_the_network_of_minatar():
    network = tasks.MinAtarCNN(spaces.Box(0, 1, (4, 10, 10), np.float32))
    assert network(torch.zeros(3, 4, 10, 10)).shape == (3, 128)
    assert (
        sum(parameter.numel() for parameter in network.parameters())
        == 4 * 9 * 16 + 16 + 1024 * 128 + 128
    )


def test_acktr_learns_a_game_with_that_network():
    _build("benchmarks.tasks:minatar-breakout-v0", 1).close()
    model = make(
        "benchmarks.tasks:minatar-breakout-v0",
        preset="classic",
        policy_kwargs={"features_extractor_class": "benchmarks.tasks:MinAtarCNN"},
    )
    model.learn(model.n_envs * model.n_steps)
    model.env.close()
    assert isinstance(model.policy.features_extractor, tasks.MinAtarCNN)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tasks, "is_installed", lambda module: module != "minatar")
    env_id = "benchmarks.tasks:minatar-breakout-v0"
    with pytest.raises(
        ConfigurationError, match=r'minatar, which is .* `pip install "acktr\[general\]"`'
    ):
        tasks.check_installed(env_id)
    tasks.check_installed("Hopper-v5")
    tasks.check_installed("benchmarks.tasks:dmc-walker-walk-v0")
    assert main(["train", env_id, "--out", str(tmp_path / "run")]) == 2
    assert run.main(["general", "--only", f"env={env_id}", "--out", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.count("acktr[general]") == 2
    assert not list(tmp_path.iterdir())
