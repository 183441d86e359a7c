"""ACKTR as a Stable-Baselines3 algorithm: what it learns with, logs and keeps to."""

import itertools
import json
import zipfile

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.kfac import KFAC
from acktr.schedules import Linear
from tests.helpers.models import POLICIES, Recorded, make, parameters, same
from tests.helpers.small_envs import ACTIONS, small_env

# All combinations where they are cheap; the others take each value once.
COMBINATIONS = [
    *itertools.product(
        ["MlpPolicy"], ACTIONS, [NaturalCritic, AdamCritic], [True, False], [1.0, "adaptive"]
    ),
    *(
        (policy, action, critic, shared, std)
        for policy in ("CnnPolicy", "MultiInputPolicy")
        for action, (critic, shared, std) in zip(
            itertools.cycle(ACTIONS),
            itertools.product([NaturalCritic, AdamCritic], [True, False], [1.0, "adaptive"]),
        )
    ),
]


@pytest.mark.parametrize(("policy", "action", "critic", "shared", "std"), COMBINATIONS)
def test_every_parameter_moves_and_stays_finite(policy, action, critic, shared, std):
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env(action, observation),
        policy,
        critic=critic(std=std),
        ent_coef=0.01,
        policy_kwargs={**policy_kwargs, "share_features_extractor": shared},
    )
    before = parameters(model)
    model.learn(2 * 16)
    for name, p in model.policy.named_parameters():
        assert torch.isfinite(p).all(), name
        assert not torch.equal(p, before[name]), name
    assert model.num_timesteps == 32
    assert isinstance(model.policy.optimizer, KFAC)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_action_that_pays_is_learned(action):
    model = make(small_env(action, n_envs=4), n_steps=16, target_kl=0.05)
    start = action_mean(model)
    model.learn(30 * 64)
    assert action_mean(model) > start + 0.3


def action_mean(model):
    obs = np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)
    torch.manual_seed(0)
    return model.predict(obs)[0].mean()


two_networks = pytest.mark.parametrize(
    "kwargs",
    [{}, {"policy_kwargs": {"activation_fn": nn.ReLU}, "critic": NaturalCritic(std="adaptive")}],
    ids=["default", "relu"],
)


@two_networks
def test_the_measured_kl_lies_near_its_target_on_cartpole(kwargs):
    env = make_vec_env("CartPole-v1", 8, seed=0)
    # At its default of 1 learning_rate, not the KL, ends some steps of a nearly certain policy.
    model = make(env, cls=Recorded, n_steps=32, target_kl=0.01, learning_rate=100.0, **kwargs)
    model.learn(50 * 256)
    kl = model.logged("kl")[20:]
    assert np.mean((kl > 0.005) & (kl < 0.02)) >= 0.95
    assert model.logged("target_kl").tolist() == [0.01] * 50
    assert np.all(model.logged("step_scale") <= 100.0)


@two_networks
def test_the_kl_or_the_learning_rate_ends_a_step(kwargs):
    env = make_vec_env("CartPole-v1", 8, seed=0)
    model = make(env, cls=Recorded, n_steps=32, target_kl=0.01, **kwargs)
    model.learn(50 * 256)
    kl, scale = model.logged("kl")[20:], model.logged("step_scale")[20:]
    at_largest = np.isclose(scale, 1.0) & (kl < 0.01)
    assert np.mean((kl > 0.005) & (kl < 0.02) | at_largest) >= 0.95
    assert np.all(model.logged("step_scale") <= 1.0)


def test_without_feedback_the_predicted_kl_meets_the_bound():
    env = make_vec_env("CartPole-v1", 4, seed=0)
    model = make(env, cls=Recorded, target_kl=0.01, natural=Natural(kl_feedback=False))
    model.learn(5 * 32)
    predicted, scale = model.logged("predicted_kl"), model.logged("step_scale")
    at_bound = np.isclose(predicted, 0.01, rtol=1e-3)
    at_largest = np.isclose(scale, 1.0) & (predicted < 0.01)
    assert np.all(at_bound | at_largest)


def test_the_measured_kl_is_that_of_the_step_taken():
    model = make(cls=Recorded, target_kl=0.05)
    model.learn(16)
    obs = model.rollout_buffer.batch().observations
    new = model.policy.get_distribution(obs).distribution
    fresh = make(target_kl=0.05)  # the same seed: the policy before the step
    old = fresh.policy.get_distribution(obs).distribution
    expected = torch.distributions.kl_divergence(old, new).mean().item()
    assert model.logged("kl")[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("critic", [NaturalCritic, AdamCritic])
def test_all_metrics_are_logged(critic):
    model = make(small_env("Box"), cls=Recorded, critic=critic())
    model.learn(32)
    names = {
        *("kl", "predicted_kl", "target_kl", "step_scale", "damping", "fallbacks"),
        *("entropy_loss", "policy_gradient_loss", "value_loss", "explained_variance"),
        *("std", "n_updates", "learning_rate"),
    }
    if critic is NaturalCritic:
        names.add("critic_step_scale")
    for metrics in model.history:
        assert names <= {name.removeprefix("train/") for name in metrics}
        assert all(np.isfinite(value) for value in metrics.values())
    assert model.logged("n_updates").tolist() == [1, 2]
    assert model.logged("std")[-1] == pytest.approx(model.policy.log_std.exp().mean().item())
    assert not model.logged("fallbacks").any()


def test_updates_of_the_critic_and_its_own_trust_region():
    def value_change(**critic):
        # The first returns would move all values to their mean.
        model = make(critic=NaturalCritic(normalize_targets=False, **critic))
        obs = torch.rand(50, 3)
        before = model.policy.predict_values(obs)
        model.learn(16)
        return (model.policy.predict_values(obs) - before).square().mean().item()

    for parts in (None, 4):
        one, ten = (value_change(n_updates=n, batch_size=parts) for n in (1, 10))
        assert ten > 2 * one
    assert value_change() == value_change(n_updates=8)
    assert 0 < value_change(trust_region=1e-6) < 1e-2 * value_change()
    assert 0 < value_change(learning_rate=1e-4) < 1e-2 * value_change()


def test_options_of_kfac_are_handed_through():
    model = make(
        small_env("Box"),
        natural=Natural(
            damping=0.05,
            kfac_kwargs={
                "curvature": {"inverse": "eigen", "fisher": "monte-carlo", "stat_decay": 0.9},
                "momentum": 0.5,
                "weight_decay": 0.01,
            },
        ),
        critic=NaturalCritic(damping=0.2, kfac_kwargs={"momentum": 0.25}),
    )
    model.learn(32)
    actor, critic = model.policy.optimizer, model.policy.critic_optimizer
    options = actor.curvature
    assert (options.inverse, options.fisher, options.stat_decay) == ("eigen", "monte-carlo", 0.9)
    group = actor.param_groups[0]
    assert (group["damping"], group["momentum"], group["weight_decay"]) == (0.05, 0.5, 0.01)
    group = critic.param_groups[0]
    assert (group["damping"], group["momentum"], group["weight_decay"]) == (0.2, 0.25, 0.01)


def test_the_same_seed_gives_the_same_parameters():
    for action in ("Discrete", "Box"):
        models = [make(small_env(action, seed=3), seed=3).learn(64) for _ in range(2)]
        other = make(small_env(action, seed=3), seed=4).learn(64)
        first, second = map(parameters, models)
        assert same(first, second)
        assert not same(first, parameters(other))


def test_learning_goes_on_without_resetting_the_steps():
    model = make()
    model.learn(32)
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 64
    model.learn(32)
    assert model.num_timesteps == 32


class Watcher(BaseCallback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.calls, self.names, self.events = stop_at, 0, set(), []

    def _on_rollout_start(self):
        self.events.append("start")

    def _on_rollout_end(self):
        self.events.append("end")

    def _on_step(self):
        self.calls += 1
        self.names |= self.locals.keys()
        n_envs = self.training_env.num_envs
        assert self.locals["rewards"].shape == self.locals["dones"].shape == (n_envs,)
        assert len(self.locals["infos"]) == n_envs
        assert self.locals["n_steps"] == (self.calls - 1) % self.locals["n_rollout_steps"]
        assert self.locals["self"] is self.model
        return self.calls != self.stop_at


def test_callbacks_see_what_stable_baselines_shows_them():
    watcher = Watcher()
    make().learn(32, callback=watcher)
    assert watcher.calls == 16
    assert watcher.events == ["start", "end"] * 2
    names = "env callback rollout_buffer n_rollout_steps obs_tensor actions clipped_actions new_obs"
    assert set(names.split()) <= watcher.names


def test_a_callback_stops_learning():
    watcher = Watcher(stop_at=11)
    model = make()
    model.learn(64, callback=watcher)
    assert watcher.calls == 11
    assert model.num_timesteps == 22
    assert watcher.events == ["start", "end", "start"]


def test_normalised_observations_and_rewards():
    env = VecNormalize(small_env("Box"), gamma=0.99)
    model = make(env)
    model.learn(64)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 60


def test_monitored_episodes_fill_the_info_buffer():
    model = make(make_vec_env("CartPole-v1", 2, seed=0), n_steps=64, stats_window_size=3)
    model.learn(128)
    assert len(model.ep_info_buffer) == 3


def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    make(tensorboard_log=str(tmp_path)).learn(32, log_interval=1)
    assert list((tmp_path / "ACKTR_1").glob("events.out.tfevents.*"))


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")  # rich bars are, to tqdm
def test_a_progress_bar_is_drawn(capsys):
    pytest.importorskip("rich")
    make().learn(32, progress_bar=True)
    assert "32" in capsys.readouterr().out


def continue_learning(model, env):
    """Learn on from one fixed state of environments and random numbers."""
    model.set_env(env)
    model.set_random_seed(7)
    return model.learn(64)


MOMENTUM = Natural(kfac_kwargs={"momentum": 0.5})


@pytest.mark.parametrize(
    ("policy", "action", "kwargs"),
    [
        ("MlpPolicy", "Box", {"natural": MOMENTUM, "critic": NaturalCritic(std="adaptive")}),
        ("MlpPolicy", "Discrete", {"critic": AdamCritic(), "learning_rate": Linear(0.5)}),
        ("CnnPolicy", "MultiDiscrete", {"target_kl": LinearSchedule(0.02, 0.0, 1.0)}),
        ("CnnPolicy", "Discrete", {"natural": Natural(cg_iterations=2, sub_sampling_factor=2)}),
        ("MlpPolicy", "Box", {"critic": NaturalCritic(normalize_targets=True), "natural": MOMENTUM}),
    ],
)
def test_a_saved_model_comes_back_and_learns_on_bit_for_bit(policy, action, kwargs, tmp_path):
    observation, policy_kwargs = POLICIES[policy]
    env = small_env(action, observation)
    model = make(env, policy, policy_kwargs=policy_kwargs, **kwargs).learn(64)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", env=small_env(action, observation), device="cpu")
    obs = np.stack([observation.sample() for _ in range(5)])
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )
    assert same(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    assert loaded.policy.optimizer.factors().keys() == model.policy.optimizer.factors().keys()
    if (critic := model.policy.critic_optimizer) is not None:
        assert same(critic.state_dict(), loaded.policy.critic_optimizer.state_dict())
    assert loaded.num_timesteps == 64
    continue_learning(model, small_env(action, observation))
    continue_learning(loaded, small_env(action, observation))
    assert same(parameters(model), parameters(loaded))
    assert same(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())


def test_parameters_move_between_models():
    first, second = make().learn(64), make(seed=1)
    second.set_parameters(first.get_parameters())
    assert same(parameters(first), parameters(second))
    assert same(first.policy.optimizer.state_dict(), second.policy.optimizer.state_dict())
    state = first.policy.optimizer.state_dict()
    kept = {name: [x.clone() for x in pair] for name, pair in first.policy.optimizer.factors().items()}
    second.learn(64)
    assert same(kept, {k: list(v) for k, v in first.policy.optimizer.factors().items()})
    assert same(state, first.policy.optimizer.state_dict())


def test_parameters_of_another_kind_of_critic_are_refused():
    first_order = make(critic=AdamCritic()).get_parameters()
    with pytest.raises(ValueError, match="belongs to another model"):
        make().set_parameters(first_order)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_the_saved_attributes_hold_no_optimiser_and_no_rollout(policy, tmp_path):
    observation, policy_kwargs = POLICIES[policy]
    model = make(small_env(observation=observation), policy, policy_kwargs=policy_kwargs).learn(32)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data.json"))
    assert not {"policy", "rollout_buffer", "env", "_logger"} & data.keys()
    attributes = {k: v for k, v in vars(model).items() if k != "policy"}
    assert not any(isinstance(v, torch.optim.Optimizer) for v in attributes.values())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
def test_the_critic_is_stable_on_plain_rewards(activation):
    """Values near 100 and an unbounded activation: a critic step without a bound diverges here."""
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = ACKTR("MlpPolicy", env, n_steps=32, seed=0, policy_kwargs={"activation_fn": activation})
    model.learn(20 * 256)
    assert model.policy.predict_values(torch.zeros(1, 4)).abs().item() < 1000
