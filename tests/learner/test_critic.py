"""The updates that a critic makes of one rollout: one curvature for all, none that raises the loss."""

import numpy as np
import pytest
import torch
from torch import nn

from acktr import NaturalCritic
from acktr.errors import DivergenceError
from acktr.rollout.batch import RolloutBatch
from tests.helpers.models import Trunk, batch_of, make, parameters, same


def watched(**critic):
    """A critic on its own, its rollout, and the losses that its updates have seen."""
    model = make(critic=NaturalCritic(normalize_targets=False, **critic))
    batch = RolloutBatch(*(x if x is None else x.float() for x in batch_of(model)))
    update, losses = model.parts.critic_update, []
    make_one = update._update

    def watch(batch, curvature):
        loss = make_one(batch, curvature)
        losses.append(loss.item())
        return loss

    update._update = watch
    return model, batch, losses


def curvatures(model):
    return model.critic_optimizer._curvature_calls


def test_all_updates_of_a_rollout_share_the_curvature_of_the_first():
    model, batch, losses = watched(n_updates=5)
    loss = model.parts.critic_update.fit(batch, 0.3)
    assert curvatures(model) == 1
    assert losses == sorted(losses, reverse=True)
    assert loss.item() == losses[-1]
    model.parts.critic_update.fit(batch, 0.3)
    assert curvatures(model) == 2


def test_one_update_is_a_step_with_the_curvature_of_the_batch():
    one, batch, _ = watched(n_updates=1)
    other, same_batch, _ = watched(n_updates=1)
    one.parts.critic_update.fit(batch, 0.3)
    for group in other.critic_optimizer.param_groups:
        group["lr"] = 0.3
    other.parts.critic_update._step(other.parts.critic_update, same_batch, 0.05)
    assert same(parameters(one), parameters(other))


def test_a_step_that_raised_the_loss_is_taken_back_and_curvature_taken_anew():
    """Nothing bounds the steps, and they are far too long: without it the loss runs away."""
    model, batch, losses = watched(n_updates=12, trust_region=None, damping=1e-6)
    update = model.parts.critic_update
    kept = update.fit(batch, 30.0).item()
    rises = [i for i, loss in enumerate(losses) if i and loss > min(losses[:i])]
    assert rises
    assert update.metrics()["critic_taken_back"] == len(rises)
    assert curvatures(model) == 1 + len([i for i in rises if i + 1 < len(losses)])
    for i in rises:  # the next update begins where the last good one began
        if i + 1 < len(losses):
            assert losses[i + 1] == pytest.approx(min(losses[:i]), rel=1e-6)
    assert kept == min(losses)


@pytest.mark.parametrize("worse", [np.inf, np.nan])
def test_a_step_to_where_nothing_is_finite_is_taken_back(worse):
    model, batch, losses = watched(n_updates=3)
    update = model.parts.critic_update
    make_one = update._update

    def blow_up(batch, curvature):
        loss = make_one(batch, curvature)
        if len(losses) == 1:
            with torch.no_grad():
                for p in model.critic_optimizer.param_groups[0]["params"]:
                    p.fill_(worse)
        return loss

    update._update = blow_up
    loss = update.fit(batch, 0.3)
    assert np.isfinite(loss.item())
    assert update.metrics()["critic_taken_back"] >= 1
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_a_loss_that_is_not_finite_to_begin_with_is_an_error_and_nothing_moves():
    model, batch, _ = watched(n_updates=3)
    before = parameters(model)
    batch.returns[3] = np.nan
    with pytest.raises(DivergenceError, match="loss is not finite"):
        model.parts.critic_update.fit(batch, 0.3)
    assert same(before, parameters(model))


DROPOUT = {
    "features_extractor_class": Trunk,
    "features_extractor_kwargs": {"noise": nn.Dropout(0.5)},
    "share_features_extractor": False,
}


@pytest.mark.parametrize(
    ("batch_size", "policy_kwargs", "taken"), [(None, {}, 1), (6, {}, 4), (None, DROPOUT, 4)]
)
def test_losses_that_cannot_be_compared_have_a_curvature_each(batch_size, policy_kwargs, taken):
    critic = NaturalCritic(n_updates=4, batch_size=batch_size)
    model = make(critic=critic, policy_kwargs=policy_kwargs).learn(16)
    assert curvatures(model) == taken
