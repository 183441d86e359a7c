"""ACKTR with ``cg_iterations``: every policy, action space and critic norm, all or part of the batch."""

import numpy as np
import pytest

from acktr import AdamCritic, Natural, NaturalCritic
from tests.helpers.models import POLICIES, make, parameters, same
from tests.helpers.small_envs import small_env


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("critic", [NaturalCritic(cg_iterations=2), AdamCritic()])
@pytest.mark.parametrize("action", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize("policy", POLICIES)
def test_conjugate_gradients_work_with_everything(policy, action, critic, factor):
    """With the exact Fisher of the whole batch the first step already has the KL asked for."""
    observation, policy_kwargs = POLICIES[policy]
    model = make(
        small_env(action, observation), policy, policy_kwargs=policy_kwargs, critic=critic,
        natural=Natural(
            cg_iterations=4, sub_sampling_factor=factor, kl_feedback=False, kfac_kwargs={"momentum": 0.5}
        ),
        learning_rate=1e3, target_kl=1e-4,
    )  # fmt: skip
    before = parameters(model)
    model.learn(64)
    assert not same(before, parameters(model))
    logged = model.logger.name_to_value
    assert np.isfinite(logged["train/cg_residual"])
    if factor == 1:
        assert 0.5e-4 < logged["train/kl"] < 2e-4
