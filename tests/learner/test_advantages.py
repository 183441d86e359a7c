"""Advantages on the scale on which the actor learns."""

import math

import pytest
import torch

from acktr import ACKTR
from acktr.errors import ConfigurationError
from acktr.learner.advantages import normalize_advantages
from tests.helpers.models import batch_of, make
from tests.helpers.small_envs import VECTOR, small_env


def normalized(model, advantages):
    batch = batch_of(model)._replace(advantages=advantages)
    return normalize_advantages(model, batch)().advantages


def build(how, *, scaled=False):
    env = small_env("Discrete", VECTOR)
    model = make(env, "MlpPolicy", normalize_advantage=how, normalize_value_targets=scaled)
    model.action_space.seed(0)
    return model


def test_each_rollout_by_its_own_standard_deviation():
    model = build(True)
    for scale in (1.0, 100.0):
        found = normalized(model, scale * torch.arange(8.0))
        assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert found.std().item() == pytest.approx(1.0)


def test_a_quiet_rollout_stays_quiet():
    """By the root mean square of the standard deviations of all rollouts so far."""
    model, stds = build("running"), []
    for scale in (1.0, 0.5, 0.01, 0.02):
        advantages = 3.0 + scale * torch.arange(8.0)
        stds.append(advantages.std().item())
        expected = stds[-1] / math.sqrt(sum(s**2 for s in stds) / len(stds))
        found = normalized(model, advantages)
        assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert found.std().item() == pytest.approx(expected, rel=1e-5)


def test_the_rollout_of_a_critic_that_knew_no_scale_counts_until_the_next():
    """Normalised targets are known after the first rollout, of which every value was 0."""
    model, ratios = build("running", scaled=True), []
    for scale in (100.0, 1.0, 0.5):
        advantages = scale * torch.arange(8.0)
        ratios.append(normalized(model, advantages).std().item())
    assert ratios == pytest.approx([1.0, 1.0, 0.5 / math.sqrt((1.0 + 0.25) / 2)], rel=1e-5)


def test_what_is_not_finite_leaves_the_scale_alone():
    model = build("running")
    normalized(model, torch.arange(8.0))
    before = model.advantage_variance, model.advantage_count
    assert normalized(model, torch.tensor([1.0, math.nan])).isnan().all()  # which the loss's check sees
    assert (model.advantage_variance, model.advantage_count) == before


def test_none_and_a_single_sample_are_left_alone():
    advantages = torch.arange(8.0)
    assert normalized(build(False), advantages) is advantages
    assert normalized(build(True), advantages[3:4]).tolist() == [3.0]


def test_a_saved_model_goes_on_with_its_scale(tmp_path):
    model = build("running")
    model.learn(64)
    assert model.advantage_count > 0
    model.save(tmp_path / "model.zip")
    loaded = ACKTR.load(tmp_path / "model.zip")
    assert loaded.advantage_variance == model.advantage_variance > 0
    assert loaded.advantage_count == model.advantage_count


@pytest.mark.parametrize("how", ["batch", 1, None])
def test_another_normalisation_is_refused(how):
    with pytest.raises(ConfigurationError, match="normalize_advantage must be True, False or 'running'"):
        build(how)
