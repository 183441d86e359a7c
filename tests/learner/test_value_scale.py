"""Normalised value targets: values stay when moments move, and the unit of rewards does not matter."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import CheckpointMismatchError, ConfigurationError
from acktr.kfac import KFAC
from acktr.learner.value_scale import rescale_optimizer
from acktr.networks.value_head import NormalizedValue
from tests.helpers.models import POLICIES, Recorded, make, parameters, same
from tests.helpers.small_envs import ACTIONS, VECTOR, Small, small_env

NORMALIZING = NaturalCritic(normalize_targets=True)
CRITICS = [
    {},
    {"critic": NaturalCritic(std="adaptive", normalize_targets=True)},
    {"critic": NaturalCritic(std=0.5, n_updates=3, batch_size=5, normalize_targets=True)},
    {"critic": AdamCritic(normalize_targets=True)},
    {"critic": AdamCritic(std="adaptive", normalize_targets=True)},
    {
        "natural": Natural(cg_iterations=2),
        "critic": NaturalCritic(cg_iterations=2, normalize_targets=True),
    },
]


def normalizing(policy="MlpPolicy", action="Box", env=None, cls=Recorded, **kwargs):
    observation, policy_kwargs = POLICIES[policy]
    kwargs = {"policy_kwargs": policy_kwargs, "critic": NORMALIZING, **kwargs}
    return make(env or small_env(action, observation), policy, cls=cls, **kwargs)


def apart(policy, kwargs):
    """Give a critic of several updates, if it is a natural one, a trunk of its own."""
    critic = kwargs.get("critic", NORMALIZING)
    if policy == "MlpPolicy" or critic.batch_size is None:
        return kwargs
    return {**kwargs, "policy_kwargs": {**POLICIES[policy][1], "share_features_extractor": False}}


def head():
    torch.manual_seed(0)
    return NormalizedValue(nn.Linear(6, 1).double())


def test_moments_are_those_of_all_returns_at_first():
    module = head()
    batches = torch.randn(5, 50, dtype=torch.float64) * 3 + torch.arange(5.0).unsqueeze(1)
    for batch in batches:
        module.update(batch.mean().item(), batch.var(correction=0).item())
    assert module.mean.item() == pytest.approx(batches.mean().item(), rel=1e-12)
    assert module.std.item() == pytest.approx(batches.std(correction=0).item(), rel=1e-12)


def test_later_batches_count_by_a_hundredth():
    module = head()
    for _ in range(100):
        module.update(2.0, 1.0)
    module.update(5.0, 4.0)
    mean = 0.99 * 2.0 + 0.01 * 5.0
    square = 0.99 * (1.0 + 4.0) + 0.01 * (4.0 + 25.0)
    assert module.mean.item() == pytest.approx(mean, rel=1e-12)
    assert module.std.item() == pytest.approx(math.sqrt(square - mean**2), rel=1e-12)


def test_before_the_first_returns_every_value_is_0():
    latent = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(head()(latent), torch.zeros(4, 1, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_values_stay_when_the_moments_move(scale):
    module = head()
    latent = torch.randn(20, 6, dtype=torch.float64)
    module.update(scale * 1.0, scale**2 * 4.0)
    for mean, variance in ((-3.0, 0.1), (40.0, 900.0), (0.0, 0.0)):
        before, std = module(latent), module.std.item()
        ratio = module.update(scale * mean, scale**2 * variance)
        assert ratio == pytest.approx(std / module.std.item())
        assert ratio != 1.0
        torch.testing.assert_close(module(latent), before, atol=1e-10 * scale, rtol=0)


def test_returns_that_are_all_alike_leave_a_spread_above_0():
    module = head()
    module.update(7.0, 0.0)
    assert module.std.item() == 1e-4


@pytest.mark.parametrize("kwargs", CRITICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollouts_values_are_those_after_the_moments_have_moved(policy, kwargs, monkeypatch):
    """Whatever the critic is: the moments move, K-FAC and losses go on, and no value has changed."""
    kwargs = apart(policy, kwargs)
    model = normalizing(policy, "Discrete", **kwargs).learn(3 * 16)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 8)
    batch = model.rollout_buffer.batch()
    seen = []

    def look(*args, **kwargs):
        seen.append(model.policy.predict_values(batch.observations).flatten().detach())
        raise StopIteration

    # The first thing that looks at a value after the moments have moved.
    updates = model.parts.actor_update, model.parts.critic_update
    for update, name in zip(updates, ("update", "fit"), strict=True):
        if update is not None:
            monkeypatch.setattr(update, name, look)
    count = model.policy.value_net.count.item()
    with pytest.raises(StopIteration):
        model.train()
    assert model.policy.value_net.count.item() == count + 1
    torch.testing.assert_close(seen[0], batch.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kwargs", CRITICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_parameter_moves_and_values_are_in_units_of_returns(policy, kwargs):
    kwargs = apart(policy, kwargs)
    model = normalizing(policy, "Discrete", **kwargs)
    before = parameters(model)
    model.learn(4 * 16)
    for name, p in model.policy.named_parameters():
        assert torch.isfinite(p).all(), name
        assert not torch.equal(p, before[name]), name
    assert model.policy.value_net.count == 4
    assert np.isfinite(model.logged("explained_variance")).all()
    assert (model.logged("return_std") > 0).all()


class Paid(Small):
    """Pays in another unit."""

    unit = 1.0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, self.unit * reward, *rest


def paid(unit, action="Box"):
    env = DummyVecEnv([lambda i=i: Paid(VECTOR, ACTIONS[action], 5 + i) for i in range(2)])
    for single in env.envs:
        single.unit = unit
    env.seed(0)
    return env


def learned(unit, **kwargs):
    model = normalizing(env=paid(unit), cls=ACKTR, **kwargs)
    model.learn(10 * 16)
    actor = [p for name, p in model.policy.named_parameters() if "value" not in name]
    observations = torch.linspace(-1, 1, 30).view(10, 3)
    return [p.detach() for p in actor], model.policy.predict_values(observations).detach()


@pytest.mark.parametrize("kwargs", CRITICS)
def test_the_unit_of_rewards_makes_no_difference(kwargs):
    policy, values = learned(1.0, **kwargs)
    # A power of two changes no digit but where 1e-8 is added to the spread of advantages.
    for unit, tolerance in ((1024.0, 1e-5), (1000.0, 1e-3)):
        scaled_policy, scaled_values = learned(unit, **kwargs)
        torch.testing.assert_close(scaled_policy, policy, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(scaled_values, unit * values, atol=unit * tolerance, rtol=tolerance)


def test_without_the_option_it_does():
    policy, _ = learned(1.0, critic=NaturalCritic(normalize_targets=False))
    scaled, _ = learned(1024.0, critic=NaturalCritic(normalize_targets=False))
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(policy, scaled, strict=True))


def moved(monkeypatch, optimizer, **kwargs):
    """A critic in float64 before and after its moments have moved, and what an optimiser is told of it.

    :param optimizer: makes one of the critic's parameters
    :return: the optimiser, and what was measured before and after
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # SB3 makes observations float32
    model = normalizing(**kwargs)
    model.policy.double()
    scale = model.parts.value_scale
    scale.bellman_std = 0.7
    module = model.policy.value_net
    module.update(1.0, 4.0)
    observations = torch.randn(40, 3, dtype=torch.float64)
    params = model.critic_optimizer.param_groups[0]["params"]
    own = optimizer(model, params)
    before = measure(model, observations, own)
    ratio = module.update(30.0, 900.0)
    assert ratio < 0.5
    sigma_ratio = 1.0 if model.critic.std == "adaptive" else ratio
    rescale_optimizer(own, model.outputs, module, ratio, sigma_ratio)
    return own, before, measure(model, observations, optimizer(model, params))


def measure(model, observations, optimizer):
    """The Fisher of the critic's blocks, taken in by K-FAC, or its loss's gradients."""
    torch.manual_seed(0)
    with optimizer.capture() if isinstance(optimizer, KFAC) else torch.enable_grad():
        values = model.policy.predict_values(observations).flatten()
    if isinstance(optimizer, KFAC):
        optimizer.update_curvature(model.parts.value_scale.distribution(values))
        return {name: block.clone() for name, block in optimizer.fisher_blocks().items()}
    loss = model.parts.value_scale.loss(values, observations.sum(1))
    params = optimizer.param_groups[0]["params"]
    gradients = torch.autograd.grad(loss, params)
    for p, gradient in zip(params, gradients, strict=True):
        optimizer.state[p] = {"exp_avg": gradient.clone(), "exp_avg_sq": gradient.square()}
    return dict(zip(params, gradients, strict=True))


@pytest.mark.parametrize("std", [1.0, 0.5, "adaptive"])
def test_averaged_curvature_is_that_of_the_new_units(std, monkeypatch):
    def kfac(model, params):
        return KFAC(model.policy, param_groups=[{"params": params}])

    own, before, after = moved(monkeypatch, kfac, critic=replace(NORMALIZING, std=std))
    assert not all(torch.allclose(before[name], after[name], rtol=1e-2) for name in after)
    for name, block in own.fisher_blocks().items():
        torch.testing.assert_close(block, after[name], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("std", [1.0, "adaptive"])
def test_adams_moments_are_those_of_the_new_units(std, monkeypatch):
    def adam(model, params):
        return torch.optim.Adam(params)

    own, before, after = moved(monkeypatch, adam, critic=AdamCritic(std=std, normalize_targets=True))
    assert not all(torch.allclose(before[p], after[p], rtol=1e-2) for p in after)
    for p, gradient in after.items():
        torch.testing.assert_close(own.state[p]["exp_avg"], gradient, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(own.state[p]["exp_avg_sq"], gradient**2, atol=1e-12, rtol=1e-10)


def test_the_momentum_of_the_values_layer_is_of_the_new_units_too():
    """On a shared trunk; the step that momentum stands for changes values as it did before."""
    model = normalizing("CnnPolicy", "Discrete", natural=Natural(kfac_kwargs={"momentum": 0.9}))
    model.learn(2 * 16)
    module, state = model.policy.value_net, model.kfac.state
    before = {p: state[p]["momentum_buffer"].clone() for p in model.kfac.param_groups[0]["params"]}
    factors = {name: [x.clone() for x in values] for name, values in model.kfac.factors().items()}
    slope, ratio = module.std.item(), module.update(50.0, 4.0)
    rescale_optimizer(model.kfac, model.outputs, module, ratio, ratio)
    for p, velocity in before.items():
        factor = slope / module.std.item() if p in set(module.parameters()) else 1.0
        torch.testing.assert_close(state[p]["momentum_buffer"], factor * velocity)
    # The policy's part is in the trunk's average too: it stays. That of the last layer has no unit.
    for name, values in model.kfac.factors().items():
        assert all(map(torch.equal, values, factors[name])), name


class Deep(ActorCriticPolicy):
    """With a critic whose last layer is two."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.value_net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))


def test_a_critic_without_a_linear_last_layer_is_refused():
    with pytest.raises(ConfigurationError, match=r"value_net.*Deep is Sequential"):
        make(policy=Deep, policy_kwargs={"net_arch": [8]}, critic=NORMALIZING)


@pytest.mark.parametrize(("norm_reward", "expected"), [(None, True), (False, True), (True, False)])
def test_by_default_where_nothing_else_scales_the_rewards(norm_reward, expected, tmp_path):
    env = small_env("Box", VECTOR)
    if norm_reward is not None:
        env = VecNormalize(env, norm_reward=norm_reward)
    model = make(env)
    assert model.critic.normalize_targets is expected
    assert isinstance(model.policy.value_net, NormalizedValue) is expected
    model.save(tmp_path / "model")
    # What None stood for is saved: another environment does not change it.
    loaded = ACKTR.load(tmp_path / "model", env=small_env("Box", VECTOR))
    assert loaded.critic.normalize_targets is expected


def test_by_default_not_where_it_is_not_possible():
    assert not make(policy=Deep, policy_kwargs={"net_arch": [8]}).critic.normalize_targets


def test_a_model_without_the_option_does_not_take_the_parameters_of_one_with_it():
    with pytest.raises(CheckpointMismatchError, match=r"value_net\.linear\.weight"):
        make(critic=NaturalCritic(normalize_targets=False)).set_parameters(
            make(critic=NORMALIZING).get_parameters()
        )


def test_saved_values_come_back(tmp_path):
    model = normalizing(cls=ACKTR).learn(5 * 16)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", device="cpu")
    assert loaded.critic.normalize_targets
    assert same(model.policy.state_dict(), loaded.policy.state_dict())
    observations = torch.randn(5, 3)
    assert torch.equal(*(m.policy.predict_values(observations) for m in (model, loaded)))
