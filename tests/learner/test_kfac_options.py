"""ACKTR with the options of K-FAC that change the direction and the length of a step."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import DivergenceError
from tests.helpers.models import POLICIES, make, parameters, same
from tests.helpers.options import in_groups
from tests.helpers.small_envs import small_env

OPTIONS = {
    "ekfac": in_groups(inverse="ekfac", inverse_period=2),
    "ekfac, reduced": in_groups(inverse="ekfac", weight_sharing="reduce", max_factor_size=10),
    "exact scaling": in_groups(exact_scaling=True),
    "adaptive damping": in_groups(adapt_damping=True),
    "all of them": in_groups(inverse="ekfac", exact_scaling=True, adapt_damping=True),
}

ADAPTIVE = Natural(kfac_kwargs={"step_rule": {"adapt_damping": True}})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("critic", [NaturalCritic, AdamCritic])
@pytest.mark.parametrize("policy", POLICIES)
def test_they_work_with_every_policy(policy, critic, options):
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env("Box", observation), policy, policy_kwargs=policy_kwargs, critic=critic(),
        natural=Natural(kfac_kwargs={**options, "momentum": 0.5}),
    )  # fmt: skip
    before = parameters(model)
    model.learn(64)
    assert not same(before, parameters(model))
    assert all(p.isfinite().all() for p in model.policy.parameters())
    logged = model.logger.name_to_value
    assert np.isfinite(logged["train/predicted_kl"])
    assert logged["train/fallbacks"] == 0


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("action", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize("policy", POLICIES)
def test_exact_scaling_gives_the_kl_asked_for(policy, action, factor):
    """Without feedback, and where the whole batch gives the exact Fisher."""
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env(action, observation), policy, policy_kwargs=policy_kwargs,
        natural=Natural(
            kl_feedback=False, kfac_kwargs={"step_rule": {"exact_scaling": True}, "momentum": 0.5},
            sub_sampling_factor=factor,
        ),
        learning_rate=1e3, target_kl=1e-4,
    )  # fmt: skip
    model.learn(64)
    kl = model.logger.name_to_value["train/kl"]
    assert np.isfinite(kl)
    if factor == 1:
        assert 0.5e-4 < kl < 2e-4


def watched(model, optimizer, told):
    """Keep what an optimiser is told, and the ratio that it makes of it."""
    report = optimizer.report_reduction
    optimizer.report_reduction = lambda actual: told.append((float(actual), report(actual)))
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_short_steps_lower_the_loss_as_promised(policy):
    """To first order the surrogate, and the loss of the critic, fall by slope times length."""
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env("Box", observation), policy, policy_kwargs=policy_kwargs,
        natural=Natural(kl_feedback=False, kfac_kwargs={"step_rule": {"adapt_damping": True}}),
        critic=NaturalCritic(n_updates=1, trust_region=1e-7), target_kl=1e-7, ent_coef=0.01,
    )  # fmt: skip
    of_actor, of_critic = [], []
    watched(model, model.kfac, of_actor)
    if model.critic_optimizer is not None:
        watched(model, model.critic_optimizer, of_critic)
    model.learn(10 * model.n_steps * model.n_envs)
    assert len(of_actor) == 2
    assert len(of_critic) == (0 if model.shared else 2)
    for actual, ratio in of_actor + of_critic:
        assert actual > 0
        assert ratio == pytest.approx(1.0, abs=0.2)
    expected = 0.1 * 0.95 ** (5 * len(of_actor))
    assert model.logger.name_to_value["train/damping"] == pytest.approx(expected)


def test_a_step_that_breaks_the_policy_raises_the_damping():
    model = make(small_env("Discrete"), natural=ADAPTIVE, target_kl=1e-3)
    model.learn(4 * model.n_steps * model.n_envs)
    step = model.kfac.step

    def broken():
        step()
        with torch.no_grad():
            model.kfac.param_groups[0]["params"][0].fill_(torch.nan)

    model.kfac.step = broken
    with pytest.raises(DivergenceError, match="taken back"):
        model.learn(1, reset_num_timesteps=False)
    assert model.kfac.param_groups[0]["damping"] == pytest.approx(0.1 / 0.95**5)


def test_a_saved_model_goes_on_with_its_damping(tmp_path):
    model = make(natural=ADAPTIVE, target_kl=1e-6)
    model.learn(10 * model.n_steps * model.n_envs)
    assert model.kfac.param_groups[0]["damping"] != 0.1
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", env=model.env)
    for one, other in zip(
        (model.kfac, model.critic_optimizer), (loaded.kfac, loaded.critic_optimizer), strict=True
    ):
        assert other.param_groups[0]["damping"] == one.param_groups[0]["damping"]


def test_a_damping_that_cannot_adapt_is_refused():
    with pytest.raises(
        ValueError, match=r"adapt_damping moves damping between 1e-06 and 10000: .* got 0"
    ):
        make(natural=Natural(damping=0.0, kfac_kwargs={"step_rule": {"adapt_damping": True}}))


def test_a_wide_layer_has_blocks_and_says_so(capsys):
    observation = spaces.Box(-1.0, 1.0, (2100,), np.float32)
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "n_steps": 4, "verbose": 1}
    model = ACKTR("MlpPolicy", small_env(observation=observation), **kwargs).learn(8)
    inputs = model.kfac.factors()["mlp_extractor.policy_net.0"][0]
    assert inputs.shape == (3, 701, 701)
    assert "mlp_extractor.policy_net.0 (2100 inputs, 4 outputs)" in model.notes[0]
    assert "value_net.0" in model.notes[1]
    assert model.notes[0] in capsys.readouterr().out
    natural = Natural(kfac_kwargs={"curvature": {"max_factor_size": None}})
    whole = ACKTR("MlpPolicy", small_env(observation=observation), natural=natural, **kwargs)
    assert not whole.notes
    assert not ACKTR("MlpPolicy", small_env()).notes
