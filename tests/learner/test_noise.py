"""The noise of a Gaussian policy: what was learned, times what its schedule says, however often."""

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from acktr import ACKTR
from acktr.errors import ConfigurationError
from acktr.learner.noise import auto_log_std
from acktr.networks.policies import MlpPolicy
from acktr.run.state import capture_learner, restore_learner, trees
from acktr.schedules import Late, Linear
from tests.helpers.models import Recorded, make, parameters, same
from tests.helpers.small_envs import small_env
from tests.helpers.toy_envs import Toy


def still(action="Box", **kwargs):
    """A model whose networks hardly learn, so that what moves its noise is the schedule."""
    return make(small_env(action), cls=Recorded, learning_rate=1e-9, **kwargs)


def test_noise_fades_by_the_changes_of_its_schedule():
    model = still(std_scale=Late(1, 0.5), policy_kwargs={"log_std_init": -0.3})
    model.learn(4 * 16)
    halved = np.array([1.0, 1.0, 0.75, 0.5])
    np.testing.assert_allclose(model.logged("std"), np.exp(-0.3) * halved, rtol=1e-5)
    for _ in range(4):  # a schedule that begins anew begins with the noise that was learned
        model.learn(4 * 16)
    np.testing.assert_allclose(model.logged("std"), np.tile(np.exp(-0.3) * halved, 5), rtol=1e-5)


def test_noise_goes_on_learning_while_it_fades():
    """A step of log_std is the one that would have been, and the change of the schedule on top."""
    plain, fading = (
        make(small_env("Box"), cls=Recorded, std_scale=scale).learn(16)
        for scale in (1.0, Linear(1, 0.1))
    )
    fallen = fading.policy.log_std - plain.policy.log_std
    np.testing.assert_allclose(fallen.detach(), np.log(0.1), rtol=1e-5)
    assert not np.allclose(plain.policy.log_std.detach(), 0.0, atol=1e-4)
    assert fading.logged("kl") == plain.logged("kl")


def test_a_number_scales_nothing():
    trained = []
    for scale in (1.0, 0.5):
        model = make(small_env("Box"), std_scale=scale)
        model.learn(2 * 16)
        trained.append(parameters(model))
    assert same(*trained)


def test_actions_without_a_standard_deviation_have_nothing_to_fade():
    model = still("Discrete", std_scale=Linear(1, 0.5))
    model.learn(16)
    assert "train/std" not in model.history[0]


def test_a_schedule_that_ends_the_noise_is_refused_and_the_noise_stays():
    model = still(
        std_scale=lambda progress_remaining: abs(progress_remaining - 0.25),
        policy_kwargs={"log_std_init": 0.0},
    )
    with pytest.raises(ConfigurationError, match=r"std_scale must stay positive.* gave 0.0 at 0.250"):
        model.learn(4 * 16)
    np.testing.assert_allclose(model.policy.log_std.exp().detach(), 1 / 3, rtol=1e-5)


def noise(model):
    return model.policy.log_std.exp().detach().numpy()


LATE = {"std_scale": Late(1, 0.5), "policy_kwargs": {"log_std_init": -0.3}}


@pytest.mark.parametrize("reset", [True, False])
def test_learning_again_and_again_ends_with_the_schedules_last_value(reset):
    model = still(**LATE)
    for _ in range(5):
        model.learn(4 * 16, reset_num_timesteps=reset)
        np.testing.assert_allclose(noise(model), 0.5 * np.exp(-0.3), rtol=1e-5)


def test_after_a_stop_the_whole_again_is_the_whole():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 58  # in the last rollout: the noise is at 0.75

    model = still(**LATE)
    model.learn(4 * 16, Stop())
    np.testing.assert_allclose(noise(model), 0.75 * np.exp(-0.3), rtol=1e-5)
    model.learn(4 * 16)
    np.testing.assert_allclose(noise(model), 0.5 * np.exp(-0.3), rtol=1e-5)


def reloaded(model):
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    return ACKTR.load(buffer, env=small_env("Box"))


@pytest.mark.parametrize("known", [True, False])
def test_a_model_that_was_loaded_goes_on_likewise(known):
    model = still(**LATE).learn(4 * 16)
    if not known:
        model.parts.noise.scale = None  # as a file says it that is older than the attribute
    loaded = reloaded(model)
    loaded.learn(2 * 16)
    loaded = reloaded(loaded)
    loaded.learn(4 * 16)
    np.testing.assert_allclose(noise(loaded), 0.5 * np.exp(-0.3), rtol=1e-5)


def test_another_schedule_at_load_is_of_what_was_learned():
    model = still(**LATE).learn(4 * 16)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = ACKTR.load(buffer, env=small_env("Box"), std_scale=Linear(1, 0.25))
    loaded.learn(4 * 16)
    np.testing.assert_allclose(noise(loaded), 0.25 * np.exp(-0.3), rtol=1e-5)


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_goes_on_from_the_scale_in_force(old):
    def start():
        return make(small_env("Box"), std_scale=Linear(1, 0.1))

    whole = start()
    taken = []

    class Taken(BaseCallback):
        def _on_rollout_start(self):
            if self.num_timesteps == 3 * 16:
                taken.append(trees(capture_learner(self.model)[0]))

        def _on_step(self):
            return True

    whole.learn(6 * 16, Taken())
    if old:
        taken[0]["learner"]["parts"]["noise"]["scale"] = None
    resumed = start()
    restore_learner(resumed, taken[0], "it")
    resumed.learn(3 * 16, reset_num_timesteps=False)
    assert same(parameters(whole), parameters(resumed))
    assert whole.parts.noise.scale == resumed.parts.noise.scale == pytest.approx(0.1)


@pytest.mark.parametrize("scale", [Late(1, 0.5), lambda left: 0.5 + left / 2])
def test_the_last_rollout_goes_beyond_the_end_and_the_noise_does_not(scale):
    model = still(std_scale=scale, policy_kwargs={"log_std_init": -0.3})
    model.learn(60)
    np.testing.assert_allclose(noise(model), 0.5 * np.exp(-0.3), rtol=1e-5)


# How it begins, and how it searches ----------------------------------------------------------


@pytest.mark.parametrize(
    ("action_dim", "color", "std"),
    [
        (1, 0.0, 0.497),
        (3, 0.0, 0.497),
        (6, 0.0, 0.355),
        (1, 0.5, 0.497),
        (3, 0.5, 0.371),
        (6, 0.5, 0.262),
        (17, 0.5, 0.156),
    ],
)
def test_many_actuators_and_lasting_noise_begin_with_less(action_dim, color, std):
    assert np.exp(auto_log_std(action_dim, color)) == pytest.approx(std, abs=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "unit"),
    [
        ([-2, 0, -0.4], [2, 1, 0.4], [2, 0.5, 0.4]),
        ([-3e38, 5, -1], [3e38, 5, 3], [1, 1, 2]),  # a range that is none, and one of a single number
    ],
)
def test_noise_begins_in_units_of_the_ranges_of_actions(low, high, unit):
    env = small_env(spaces.Box(np.float32(low), np.float32(high), dtype=np.float32))
    model = make(env)
    began = model.policy.log_std.exp().detach()
    np.testing.assert_allclose(began, np.exp(-0.7) * np.array(unit), rtol=1e-6)
    own = make(env, policy_kwargs={"log_std_init": -1.0})  # a number is one of the action's own units
    np.testing.assert_array_equal(own.policy.log_std.detach(), -1.0)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert same(parameters(ACKTR.load(file)), parameters(model))


def test_a_policys_own_single_number_stays_in_its_units():
    class One(MlpPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.log_std = torch.nn.Parameter(torch.tensor([-0.3]))
            self.optimizer = self.optimizer_class(self.parameters(), lr=1.0)

    env = small_env(spaces.Box(-2, 2, (3,), np.float32))
    assert make(env, One).policy.log_std.item() == pytest.approx(-0.3)


def told(reward, *, high=1.0, ends=False, endless=False, noise=None, cls=ACKTR, n_steps=8, **kwargs):
    """A model that has learned from rollouts of 16 steps whose rewards and ends are given."""

    class Told(Toy):
        action_space = spaces.Box(-high, high, (2,), np.float32)

        def step(self, action):
            observation, _, _, truncated, info = super().step(action)
            return observation, reward(self.np_random), ends, truncated and not endless, info

    env = VecMonitor(DummyVecEnv([Told, Told]))
    policy_kwargs = {} if noise is None else {"log_std_init": noise}
    return cls(
        "MlpPolicy",
        env,
        n_steps=n_steps,
        learning_rate=1e-9,
        policy_kwargs=policy_kwargs,
        seed=0,
        **kwargs,
    )


def std(model):
    return model.policy.log_std.exp().mean().item()


@pytest.mark.parametrize("high", [1.0, 3.0])
def test_noise_that_finds_nothing_doubles_in_7000_steps_and_ends_at_half_the_range(high):
    model = told(lambda _: -1.0, high=high)
    began = std(model)
    model.learn(1600)
    assert std(model) == pytest.approx(began * 2 ** (1600 / 7000), rel=1e-4)
    model.learn(8000)
    assert std(model) == pytest.approx(high)


@pytest.mark.parametrize(
    "finds",
    [
        {"reward": lambda rng: rng.random()},
        {"reward": lambda _: 0.0, "ends": True},
        {"reward": lambda _: 0.0, "noise": -0.5},  # a number of the user's own
    ],
)
def test_noise_that_finds_something_or_was_chosen_stays(finds):
    model = told(**finds)
    began = std(model)
    model.learn(160)
    assert std(model) == pytest.approx(began, rel=1e-6)


def test_ten_rollouts_that_tell_something_end_the_search_for_good():
    """Who earns the same at each step later on may do everything right."""
    pays = []
    model = told(lambda rng: rng.random() if pays else 0.0, endless=True)
    began = std(model)
    model.learn(16)
    grown = std(model)
    assert grown > began
    pays.append(1)
    model.learn(9 * 16)
    pays.clear()
    model.learn(16)  # the tenth tells nothing: the search goes on
    assert std(model) > grown * 1.001
    pays.append(1)
    model.learn(10 * 16)
    pays.clear()
    grown = std(model)
    model.learn(10 * 16)
    assert std(model) == pytest.approx(grown, rel=1e-6)


def test_an_actor_does_not_learn_from_what_tells_nothing():
    model = told(lambda _: 0.0, cls=Recorded)
    model.learning_rate = 1.0
    before = parameters(model)
    model.learn(32)
    after = parameters(model)
    actor = [name for name in before if name.startswith(("action_net", "mlp_extractor.policy_net"))]
    assert actor
    assert all(torch.equal(before[name], after[name]) for name in actor)
    assert model.logged("kl").tolist() == [0.0, 0.0]
    assert "train/step_scale" not in model.history[0]


def test_rewards_that_come_late_end_the_search_by_ten_episodes():
    """Of 10 steps each, two at a time: most rollouts of 4 steps tell nothing."""
    time = iter(range(10**6))
    model = told(lambda _: float(next(time) // 2 % 10 == 9), n_steps=4)
    model.learn(40 * 2)
    assert model.parts.noise.state_dict()["searches"]
    assert model.parts.noise.episodes == 8
    model.learn(10 * 2, reset_num_timesteps=False)
    assert not model.parts.noise.state_dict()["searches"]


def test_noise_that_is_frozen_stays():
    model = told(lambda _: 0.0)
    model.policy.log_std.requires_grad_(False)
    began = std(model)
    model.learn(160)
    assert std(model) == began


def test_noise_larger_than_1_does_not_shrink():
    model = told(lambda _: 0.0)
    with torch.no_grad():
        model.policy.log_std.fill_(0.5)
    model.learn(160)
    assert model.policy.log_std.min().item() == pytest.approx(0.5)


def test_what_counts_are_the_rewards_of_the_environments_and_not_the_scaled_ones():
    model = told(lambda _: -1.0)
    began = std(model)
    model = ACKTR("MlpPolicy", VecNormalize(model.env), n_steps=8, learning_rate=1e-9, seed=0)
    model.learn(160)
    assert std(model) > began * 1.01


def test_the_search_goes_on_where_a_saved_model_had_got_to():
    model = told(lambda _: 0.0).learn(160)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = ACKTR.load(buffer, env=model.env)
    assert loaded.parts.noise.state_dict() == model.parts.noise.state_dict()
    before = std(loaded)
    loaded.learn(16)
    assert std(loaded) > before


def test_actions_that_are_counted_have_nothing_to_search_with():
    make(small_env("Discrete")).learn(16)


@pytest.mark.parametrize("color", [-0.1, 1.0, float("nan"), "pink"])
def test_a_color_beyond_its_range_is_refused(color):
    with pytest.raises(ConfigurationError, match="noise_color must be at least 0 and below 1"):
        make(small_env("Box"), noise_color=color)
