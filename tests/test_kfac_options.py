"""ACKTR with the options of K-FAC that change the direction and the length of a step."""

import numpy as np
import pytest

from tests.small_envs import small_env
from tests.test_algorithm import POLICIES, make, parameters, same

OPTIONS = {
    "ekfac": {"inverse": "ekfac", "inverse_period": 2},
    "ekfac, reduced": {"inverse": "ekfac", "weight_sharing": "reduce", "max_factor_size": 10},
    "exact scaling": {"exact_scaling": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("norm", ["gauss-newton", "euclidean"])
@pytest.mark.parametrize("policy", POLICIES)
def test_they_work_with_every_policy(policy, norm, options):
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env("Box", observation), policy, policy_kwargs=policy_kwargs, critic_norm=norm,
        kfac_kwargs=options, momentum=0.5,
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
        small_env(action, observation), policy, policy_kwargs=policy_kwargs, kl_feedback=False,
        kfac_kwargs={"exact_scaling": True}, sub_sampling_factor=factor, learning_rate=1e3,
        target_kl=1e-4, momentum=0.5,
    )  # fmt: skip
    model.learn(64)
    kl = model.logger.name_to_value["train/kl"]
    assert np.isfinite(kl)
    if factor == 1:
        assert 0.5e-4 < kl < 2e-4
