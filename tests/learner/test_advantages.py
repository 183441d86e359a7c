"""Advantages on the scale on which the actor learns."""

import math

import pytest
import torch

from acktr import ACKTR, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.learner.advantages import AdvantageScale
from tests.helpers.models import make


def normalized(scale, advantages):
    return scale.begin(advantages)()


def test_each_rollout_by_its_own_standard_deviation():
    by_each = AdvantageScale(True)
    for scale in (1.0, 100.0):
        found = normalized(by_each, scale * torch.arange(8.0))
        assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert found.std().item() == pytest.approx(1.0)


def test_a_quiet_rollout_stays_quiet():
    """By the root mean square of the standard deviations of all rollouts so far."""
    running, stds = AdvantageScale("running"), []
    for scale in (1.0, 0.5, 0.01, 0.02):
        advantages = 3.0 + scale * torch.arange(8.0)
        stds.append(advantages.std().item())
        expected = stds[-1] / math.sqrt(sum(s**2 for s in stds) / len(stds))
        found = normalized(running, advantages)
        assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert found.std().item() == pytest.approx(expected, rel=1e-5)


def test_the_rollout_of_a_critic_that_knew_no_scale_counts_until_the_next():
    """Normalised targets are known after the first rollout, of which every value was 0."""
    running, ratios = AdvantageScale("running", blind_first=True), []
    for scale in (100.0, 1.0, 0.5):
        advantages = scale * torch.arange(8.0)
        ratios.append(normalized(running, advantages).std().item())
    assert ratios == pytest.approx([1.0, 1.0, 0.5 / math.sqrt((1.0 + 0.25) / 2)], rel=1e-5)


def test_what_is_not_finite_leaves_the_scale_alone():
    scale = AdvantageScale("running")
    normalized(scale, torch.arange(8.0))
    before = scale.state_dict()
    assert normalized(scale, torch.tensor([1.0, math.nan])).isnan().all()  # which the loss's check sees
    assert scale.state_dict() == before


def test_none_and_a_single_sample_are_left_alone():
    advantages = torch.arange(8.0)
    assert normalized(AdvantageScale(False), advantages) is advantages
    assert normalized(AdvantageScale(True), advantages[3:4]).tolist() == [3.0]


def test_a_saved_model_goes_on_with_its_scale(tmp_path):
    model = make(normalize_advantage="running")
    model.learn(64)
    scale = model.parts.advantage_scale
    assert scale.count > 0
    model.save(tmp_path / "model.zip")
    loaded = ACKTR.load(tmp_path / "model.zip").parts.advantage_scale
    assert loaded.variance == scale.variance > 0
    assert loaded.count == scale.count


@pytest.mark.parametrize(("targets", "first"), [(True, 1.0), (False, 100.0)])
def test_a_critic_of_normalised_targets_knows_no_scale_at_first(targets, first):
    model = make(critic=NaturalCritic(normalize_targets=targets))
    scale = model.parts.advantage_scale
    ratios = [normalized(scale, x * torch.arange(8.0)).std().item() for x in (100.0, 1.0)]
    mean = (first**2 + 1.0) / 2
    assert ratios == pytest.approx([1.0, 1.0 / math.sqrt(mean)], rel=1e-5)


@pytest.mark.parametrize("how", ["batch", 1, None])
def test_another_normalisation_is_refused(how):
    with pytest.raises(ConfigurationError, match="normalize_advantage must be True, False or 'running'"):
        make(normalize_advantage=how)
