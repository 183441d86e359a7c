"""Settings that change over training: what a schedule says is what each update learns with."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.schedules import Linear
from tests.helpers.models import Recorded, make, parameters, same, setting
from tests.helpers.small_envs import small_env

UNCORRECTED = Natural(kl_feedback=False)
RATES = ["learning_rate", "critic.learning_rate", "natural.corrected_learning_rate", "target_kl"]


def test_schedules_are_honoured():
    seen = []

    def halving(progress_remaining):
        seen.append(progress_remaining)
        return 0.5 * progress_remaining

    model = make(cls=Recorded, learning_rate=halving, target_kl=Linear(0.02), natural=UNCORRECTED)
    model.learn(4 * 16)
    left = np.array([0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(model.logged("learning_rate"), 0.5 * left)
    np.testing.assert_allclose(model.logged("target_kl"), 0.02 * left)
    assert np.all(model.logged("step_scale") <= 0.5 * left * (1 + 1e-6))
    assert np.all(model.logged("predicted_kl") <= 0.02 * left * (1 + 1e-4) + 1e-9)
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert set(left) <= set(seen)


def test_no_step_is_longer_than_so_many_corrected_natural_gradients():
    # A radius that no step meets: eta_max rules, and K-FAC's promise is put to the test.
    natural = Natural(corrected_learning_rate=Linear(0.4))
    model = make(cls=Recorded, natural=natural, learning_rate=0.2, target_kl=10.0)
    model.parts.trust_region.scale = 0.5
    model.learn(4 * 16)
    left = np.array([0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(model.logged("kl_scale"), 0.5)  # where eta_max rules it does not rise
    np.testing.assert_allclose(model.logged("max_step_scale"), np.minimum(0.2, 0.4 * left * 0.5))
    np.testing.assert_allclose(model.logged("step_scale"), model.logged("max_step_scale"))


@pytest.mark.parametrize(("critic", "default"), [(NaturalCritic, 0.3), (AdamCritic, 1e-3)])
def test_the_critics_learning_rate_may_fall(critic, default):
    rates = []

    class Watched(ACKTR):
        def train(self):
            super().train()
            rates.append(self.critic_optimizer.param_groups[0]["lr"])

    model = make(cls=Watched, critic=critic(learning_rate=Linear(0.1)))
    model.learn(4 * 16)
    np.testing.assert_allclose(rates, [0.075, 0.05, 0.025, 0.0])
    model = make(critic=critic()).learn(16)
    assert model.critic_optimizer.param_groups[0]["lr"] == default


def test_a_learning_rate_falls_linearly():
    model = make(cls=Recorded, learning_rate=Linear(0.001))
    model.learn(2 * 16)
    np.testing.assert_allclose(model.logged("learning_rate"), [0.0005, 0.0])
    assert model.logged("step_scale")[0] <= 0.0005 * (1 + 1e-6)


DOCUMENTED = [
    lambda progress_remaining: 0.25 * progress_remaining,
    lambda progress_remaining: progress_remaining * 1e-3,
    lambda progress_remaining: np.float32(0.25 * progress_remaining),
    lambda progress_remaining: torch.tensor(0.25 * progress_remaining),
    lambda progress_remaining: 0.25 * (1 - progress_remaining),  # a warm-up: 0 at the beginning
    LinearSchedule(0.25, 0.0, 1.0),
    LinearSchedule(0.25, 0.1, 0.5),
    FloatSchedule(LinearSchedule(0.25, 0.0, 1.0)),
    ConstantSchedule(0.25),
]


@pytest.mark.parametrize("schedule", DOCUMENTED)
@pytest.mark.parametrize("name", RATES)
def test_a_schedule_of_somebodys_own_holds_to_the_very_end(name, schedule):
    """The last rollout goes beyond the end: SB3's progress is -0.067 there."""
    model = make(cls=Recorded, **setting(name, schedule))
    model.learn(60)
    assert model.num_timesteps == 64
    assert model._current_progress_remaining == 0.0
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_progress_never_leaves_its_range_however_often_one_learns():
    seen = {}

    def watch(name, value):
        def schedule(progress_remaining):
            seen.setdefault(name, []).append(progress_remaining)
            return value

        return schedule

    names = [*RATES, "gamma", "std_scale"]
    env = VecNormalize(small_env("Box"))
    arguments = [setting(name, watch(name, 0.5)) for name in names]
    model = make(env, **{name: value for one in arguments for name, value in one.items()})

    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < self.model._total_timesteps - 20

    for arguments in ({}, {"reset_num_timesteps": False}, {"callback": Stop()}, {}):
        model.learn(60, **arguments)
    for name in names:
        assert min(seen[name]) == 0.0, name
        assert max(seen[name]) == 1.0, name


def test_a_learning_that_begins_anew_begins_with_all_of_it_left():
    gammas = []
    model = make(cls=Recorded, gamma=lambda left: gammas.append(left) or 0.9)
    model.learn(16)
    gammas.clear()
    model.learn(16)
    assert gammas[0] == 1.0


OUT_OF_RANGE = [
    lambda left: 0.1 - left,
    lambda left: left - 0.1,
    lambda left: math.nan if left < 0.5 else 1.0,
]
OUT_OF_RANGE += [
    lambda left: None,
    lambda left: "0.1",
    lambda left: 1 / left,
    LinearSchedule(0.1, -0.1, 1.0),
]
OUT_OF_RANGE += [lambda left: np.array([0.1, 0.2]), ConstantSchedule(-1.0)]


@pytest.mark.parametrize("schedule", OUT_OF_RANGE)
@pytest.mark.parametrize("name", [*RATES, "gamma", "std_scale"])
def test_a_schedule_that_ends_or_begins_out_of_range_is_refused_before_training(name, schedule):
    with pytest.raises(
        ConfigurationError, match=rf"{name} must .*, but its schedule .* of the training"
    ) as caught:
        make(**setting(name, schedule))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RATES)
def test_a_value_out_of_range_in_between_is_refused_before_anything_is_changed(name):
    model = make(**setting(name, lambda left: math.nan if left == 0.25 else 0.1))
    seen = []

    class Watch(BaseCallback):
        def _on_rollout_end(self):
            seen.append(parameters(self.model))

        def _on_step(self):
            return True

    with pytest.raises(ConfigurationError, match=f"{name} must not be negative.* gave nan at 0.250"):
        model.learn(4 * 16, Watch())
    assert len(seen) == 3
    assert same(seen[-1], parameters(model))
    model.lr_schedule = lambda left: 0.1
    for argument, value in setting(name, 0.1).items():
        setattr(model, argument, value)  # and learning goes on
    model.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "value", [np.float32(0.02), np.float64(0.02), torch.tensor(0.02), np.int64(1), 1]
)
@pytest.mark.parametrize("name", RATES)
def test_numbers_of_numpy_and_torch_are_numbers(name, value):
    make(**setting(name, value)).learn(16)


@pytest.mark.parametrize("value", [[0.1], {"a": 1}, (1, 2)])
@pytest.mark.parametrize("name", [*RATES, "gamma", "std_scale"])
def test_what_is_no_number_and_no_schedule_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must"):
        make(**setting(name, value))


def test_a_target_that_is_changed_counts_from_the_next_update():
    """As PPO's: who sets ``model.target_kl`` in a callback is heard."""

    class Change(BaseCallback):
        def _on_rollout_end(self):
            if self.num_timesteps == 32:
                self.model.target_kl = Linear(0.5)
                self.model.critic = replace(self.model.critic, learning_rate=0.125)

        def _on_step(self):
            return True

    model = make(cls=Recorded)
    model.learn(4 * 16, Change())
    np.testing.assert_allclose(model.logged("target_kl"), [0.01, 0.25, 0.125, 0.0])
    assert model.critic_optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("natural", lambda x: replace(x, damping=9.0), r"natural\.damping is 9\.0 now.*with 0\.1"),
        ("natural", lambda x: replace(x, kl_feedback=False), r"natural\.kl_feedback is False now"),
        ("critic", lambda x: replace(x, n_updates=7), r"critic\.n_updates is 7 now.*with None"),
        ("critic", lambda x: AdamCritic(), r"critic is AdamCritic\(.* now.*with NaturalCritic\("),
        ("critic", lambda x: None, "critic is None now"),
        ("normalize_advantage", lambda x: True, "normalize_advantage is True now.*with 'running'"),
    ],
)
def test_a_setting_that_a_model_is_built_with_is_not_changed_in_silence(name, change, says):
    model = make()
    model.learn(16)
    before = copy.deepcopy(model.policy.state_dict())
    built = getattr(model, name)
    setattr(model, name, change(built))
    with pytest.raises(ConfigurationError, match=f"^{says}.*build a new one"):
        model.learn(16)
    assert all(torch.equal(x, before[key]) for key, x in model.policy.state_dict().items())
    setattr(model, name, built if name == "normalize_advantage" else replace(built))  # an equal one
    model.learn(16)


@pytest.mark.parametrize("name", ["critic_std", "kl_feedback", "n_actor_updates"])
def test_who_sets_what_has_moved_is_told(name):
    model = ACKTR("MlpPolicy", small_env(), n_steps=8)
    setattr(model, name, 2)
    with pytest.warns(UserWarning, match=rf"^model\.{name} was set, and changes nothing: {name} is "):
        model.learn(16)


def test_a_policy_that_would_not_learn_is_refused():
    model = make()
    own, model.policy = model.policy, copy.deepcopy(model.policy)
    with pytest.raises(ConfigurationError, match=r"another policy .*policy\.load_state_dict"):
        model.learn(16)
    model.policy = own
    model.learn(16)


def test_settings_are_those_of_one_model():
    options = {"curvature": {"stat_decay": 0.9}}
    natural = Natural(kfac_kwargs=options)
    options["momentum"] = 0.5
    assert natural.kfac_kwargs == {"curvature": {"stat_decay": 0.9}}
    make().natural.kfac_kwargs["momentum"] = 0.5
    assert make().natural == Natural(damping=0.1)
    again = Natural(kfac_kwargs={"curvature": {"stat_decay": 0.9}})
    assert len({natural, again, NaturalCritic(), AdamCritic()}) == 3
