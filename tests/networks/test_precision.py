"""bfloat16 trunks: close to fp32, heads and names as they were, and fp32 where the hardware lacks it."""

import copy

import pytest
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.networks import bfloat16 as precision
from tests.helpers.small_envs import IMAGE, MIXED, VECTOR, small_env

POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE, "MultiInputPolicy": MIXED}
BF16 = Natural(precision="bf16")


@pytest.fixture
def capable(monkeypatch):
    """Autocast computes in bfloat16 on any CPU, only slowly."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)


def make(policy="MlpPolicy", **options):
    options = {"n_steps": 8, "seed": 0, "device": "cpu", **options}
    return ACKTR(policy, small_env("Discrete", POLICIES[policy], n_envs=2, seed=1), **options)


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_are_near_those_of_fp32_and_in_fp32(policy):
    exact, rounded = make(policy), make(policy, natural=BF16)
    obs = obs_as_tensor(exact.env.reset(), exact.device)
    logits = [m.policy.get_distribution(obs).distribution.logits for m in (exact, rounded)]
    for model in (exact, rounded):
        model.policy.value_net.update(0.0, 1.0)  # before the first returns every value is 0
    values = [m.policy.predict_values(obs) for m in (exact, rounded)]
    for one, other in (logits, values):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)
    assert exact.policy.state_dict().keys() == rounded.policy.state_dict().keys()
    features = rounded.policy.extract_features(obs)
    features = features[0] if isinstance(features, tuple) else features
    assert features.dtype == torch.float32


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cg_iterations", [0, 2])
@pytest.mark.parametrize("critic", [NaturalCritic, AdamCritic])
def test_learning_in_bfloat16(policy, cg_iterations, critic):
    model = make(policy, natural=Natural(precision="bf16", cg_iterations=cg_iterations), critic=critic())
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    assert model.kfac.counters["rejected_steps"] == 0
    for factors in model.kfac.factors().values():
        assert all(x.dtype == torch.float32 for x in factors)
    after = model.policy.state_dict()
    assert all(x.isfinite().all() for x in after.values())
    assert all(
        p.dtype == torch.float32 for p in model.policy.parameters()
    )  # moments of returns have more
    for layer in ("action_net", "value_net"):
        assert not torch.equal(before[f"{layer}.weight"], after[f"{layer}.weight"])
    assert not torch.is_autocast_enabled("cpu")


def test_statistics_dtype_of_the_user_wins():
    model = make(natural=Natural(kfac_kwargs={"curvature": {"statistics_dtype": "bfloat16"}}))
    assert model.kfac.curvature.statistics_dtype == torch.bfloat16


@pytest.mark.usefixtures("capable")
def test_an_error_in_a_forward_pass_leaves_no_autocast_behind():
    net = nn.Sequential(nn.Linear(3, 3))
    precision.run_in_bfloat16([net])
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert net(torch.zeros(1, 3)).dtype == torch.float32


@pytest.mark.usefixtures("capable")
def test_a_copy_is_independent():
    net = nn.Sequential(nn.Linear(3, 3))
    precision.run_in_bfloat16([net])
    other = copy.deepcopy(net)
    nn.init.zeros_(other[0].weight)
    nn.init.zeros_(other[0].bias)
    assert other(torch.ones(1, 3)).abs().sum() == 0
    assert net(torch.ones(1, 3)).abs().sum() > 0


def test_hardware_without_bfloat16_warns_once_and_goes_on_in_fp32(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="goes on in fp32") as caught:
        model = make(natural=BF16)
    assert len(caught) == 1
    model.learn(16)
    assert model.used_precision == "fp32"
    fp32 = make()
    fp32.learn(16)
    for one, other in zip(model.policy.parameters(), fp32.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"^natural\.precision must be one of fp32, bf16, got 'fp8'"
    ):
        Natural(precision="fp8")


def test_save_and_load(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    model = make(natural=BF16)
    model.learn(16)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", env=model.env)
    assert loaded.used_precision == "bf16"
    obs = obs_as_tensor(model.env.reset(), model.device)
    assert torch.equal(model.policy.predict_values(obs), loaded.policy.predict_values(obs))
