"""ACKTR with the options of K-FAC that change the direction and the length of a step."""

import numpy as np
import pytest

from tests.small_envs import small_env
from tests.test_algorithm import POLICIES, make, parameters, same

OPTIONS = {
    "ekfac": {"inverse": "ekfac", "inverse_period": 2},
    "ekfac, reduced": {"inverse": "ekfac", "weight_sharing": "reduce", "max_factor_size": 10},
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
