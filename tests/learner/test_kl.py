"""The measured-KL control: hand-worked steps of the controller, and steps that are rescaled."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.optim import SGD

from acktr import ACKTR, Natural
from acktr.errors import DivergenceError
from acktr.kfac.likelihood import mean_kl
from acktr.learner.natural_step import check_loss
from acktr.learner.trust_region import adapt_scale, measure_or_undo, rescale_step, shorten
from acktr.learner.undo import Undo
from acktr.networks.outputs import as_list
from tests.helpers.small_envs import small_env


def test_mean_kl_sums_the_parts_and_averages_the_samples():
    old = [Normal(torch.zeros(5, 2), 1.0), Normal(torch.zeros(5), 2.0)]
    new = [Normal(torch.full((5, 2), 0.1), 1.0), Normal(torch.full((5,), 0.4), 2.0)]
    assert mean_kl(old, new) == pytest.approx(2 * 0.1**2 / 2 + 0.4**2 / 8)


def test_as_list_keeps_the_parts_of_a_multi_discrete_action():
    parts = [Categorical(logits=torch.zeros(3, 2)), Categorical(logits=torch.zeros(3, 4))]
    assert as_list(parts) == parts
    assert as_list(parts[0]) == [parts[0]]


@pytest.mark.parametrize(
    ("kl", "room", "expected"),
    [
        (0.01, 9.0, 0.5),  # on target
        (0.0125, 9.0, 0.4),  # 0.5 * 0.01 / 0.0125
        (0.1, 9.0, 0.5 / 1.4),  # never by more than 1.4 at once
        (0.001, 9.0, 0.5 * 1.4),
        (0.001, 1.0, 0.5),  # eta_max rules: a larger bound would change nothing
        (0.1, 1.0, 0.5 / 1.4),
    ],
)
def test_the_multiplier_of_the_bound(kl, room, expected):
    assert adapt_scale(0.5, kl, 0.01, room) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "room", "kl", "rescales"),
    [
        (1.0, 9.0, 0.5, 0),  # on target
        (4.0, 9.0, 0.5, 1),  # 16 times too far
        (0.2, 9.0, 0.5 * 0.8**2, 2),  # twice as long, and again
        (0.2, 2.0, 0.5 * 0.4**2, 1),  # eta_max leaves room for twice as long
        (0.2, 1.0, 0.5 * 0.2**2, 0),
    ],
)
def test_a_step_far_off_is_rescaled(step, room, kl, rescales):
    """The mean of a unit Gaussian moves by ``step``: its KL is half the square."""
    p = nn.Parameter(torch.zeros(1))
    undo = Undo(SGD([p]))
    p.data.fill_(step)

    def measure():
        return 0.5 * p.item() ** 2

    result = rescale_step(undo, measure, measure(), 0.5, room)
    assert result == (pytest.approx(kl), rescales)
    assert measure() == pytest.approx(kl)


@pytest.mark.parametrize("far", [math.nan, math.inf])
def test_a_step_of_infinite_kl_is_made_shorter_until_it_is_finite(far):
    p = nn.Parameter(torch.ones(2))
    undo = Undo(SGD([p]))
    p.data.fill_(51.0)
    kl, length = shorten(undo, lambda: far if p[0] > 2.0 else 0.3)
    assert (kl, length) == (0.3, pytest.approx(0.01))
    torch.testing.assert_close(p.detach(), torch.full((2,), 1.5))
    with pytest.raises(DivergenceError, match="taken back"):
        shorten(undo, lambda: far)
    assert torch.equal(p, torch.ones(2))


def test_an_action_that_a_step_makes_impossible_does_not_end_training():
    """Two samples, and moments of EKFAC that are 0: the first step is far too long."""
    natural = Natural(kfac_kwargs={"curvature": {"approximation": "ekfac"}})
    model = ACKTR(
        "MlpPolicy", small_env("MultiDiscrete"), n_steps=2, natural=natural, seed=0, device="cpu"
    )
    step, params, far = model.kfac.step, model.kfac.param_groups[0]["params"], []

    def much_further():
        before = [p.detach().clone() for p in params]
        step()
        if not far:
            far.append(True)
            for p, start in zip(params, before, strict=True):
                p.data.add_(p.data - start, alpha=1e6)

    model.kfac.step = much_further
    model.learn(8)
    assert all(p.isfinite().all() for p in model.policy.parameters())


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_step_without_finite_outputs_is_taken_back(kl):
    p = nn.Parameter(torch.ones(2))
    undo = Undo(SGD([p]))
    p.data.fill_(math.nan)
    with pytest.raises(DivergenceError, match="taken back"):
        measure_or_undo(lambda: kl, undo)
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize("loss", [math.nan, -math.inf])
def test_no_step_is_taken_on_a_loss_that_is_not_finite(loss):
    check_loss(torch.tensor(1e30))
    with pytest.raises(DivergenceError, match=r"loss is not finite .*not taken"):
        check_loss(torch.tensor(loss))


@pytest.fixture(params=[True, False])
def model(request, monkeypatch):
    """After one rollout; each step of its actor goes ``times`` as far as K-FAC says."""
    natural = Natural(kl_feedback=request.param)
    made = ACKTR("MlpPolicy", small_env("Box"), n_steps=32, natural=natural, seed=0, device="cpu")
    _, callback = made._setup_learn(64)
    made.collect_rollouts(made.env, callback, made.rollout_buffer, 32)
    step, params = made.kfac.step, made.kfac.param_groups[0]["params"]

    def far():
        before = [p.detach().clone() for p in params]
        step()
        with torch.no_grad():
            for p, start in zip(params, before, strict=True):
                p.copy_(start + made.times * (p - start))

    monkeypatch.setattr(made.kfac, "step", far)
    return made


@pytest.mark.parametrize("model", [True], indirect=True)
def test_an_update_that_goes_too_far_is_shortened_and_counted(model):
    model.times = 40.0
    model.train()
    logged = model.logger.name_to_value
    assert 1 <= model.parts.trust_region.rescales == logged["train/kl_rescales"]
    assert 0.0 < logged["train/kl"] <= 1.5 * logged["train/target_kl"]


def test_an_update_without_finite_outputs_is_taken_back(model):
    model.times = math.nan
    before = [p.detach().clone() for p in model.kfac.param_groups[0]["params"]]
    with pytest.raises(DivergenceError, match=r"^At step 64: .* was taken back"):
        model.train()
    assert all(map(torch.equal, before, model.kfac.param_groups[0]["params"]))
