"""``sub_sampling_factor``: curvature and measured KL of a part, the gradient of the whole batch."""

import pytest
import torch

from acktr import Natural, NaturalCritic
from acktr.kfac.averages import Gram
from acktr.kfac.likelihood import likelihoods_of, mean_kl, sample_count
from acktr.learner.natural_step import NaturalStep
from tests.helpers.models import make
from tests.helpers.small_envs import IMAGE, VECTOR, small_env

POLICIES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE}


def rollout(policy, factor, **options):
    env = small_env("Discrete", POLICIES[policy])
    natural = Natural(sub_sampling_factor=factor, **options)
    model = make(env, policy, natural=natural, critic=NaturalCritic(normalize_targets=False))
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.set_logger(model.logger)
    return model, model.rollout_buffer.batch()


def step(model, factor, batch):
    return NaturalStep(model.kfac, factor)(model.parts.actor_update, batch)


@pytest.mark.parametrize("cg_iterations", [0, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_statistics_and_kl_are_of_a_part_unless_the_exact_fisher_is(policy, cg_iterations, monkeypatch):
    model, batch = rollout(policy, 4, cg_iterations=cg_iterations)
    seen = []
    take = type(model.kfac).update_curvature
    monkeypatch.setattr(
        type(model.kfac),
        "update_curvature",
        lambda self, *d, **kw: (seen.append(sample_count(likelihoods_of(d))), take(self, *d, **kw))[1],
    )
    rows = []
    average_into = Gram.average_into
    monkeypatch.setattr(
        Gram,
        "average_into",
        lambda self, *args: (rows.append(self.rows.shape[-2]), average_into(self, *args))[1],
    )
    losses, _, part, old = step(model, 4, batch)
    part_size = max(len(batch.returns) // 4, 1)
    # Beside the exact Fisher of a part, statistics and KL are those of the whole batch.
    expected = len(batch.returns) if cg_iterations else part_size
    assert seen == [expected]
    assert all(n % expected == 0 for n in rows)  # rows of linear layers; T times as many of convolutions
    assert rows
    assert len(part.returns) == expected
    new = model.parts.actor_update.distributions(part)
    assert mean_kl(old, new) > 0
    assert torch.isfinite(losses["policy_gradient_loss"])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_gradient_is_of_all_samples(policy):
    gradients = []
    for factor in (1, 4):
        model, batch = rollout(policy, factor)
        step(model, factor, batch)
        gradients.append([p.grad for p in model.kfac.param_groups[0]["params"]])
    for whole, with_part in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, with_part)


def test_a_batch_smaller_than_the_factor_leaves_one_sample():
    model, batch = rollout("MlpPolicy", 10**6)
    part = step(model, 10**6, batch).part
    assert len(part.returns) == 1
