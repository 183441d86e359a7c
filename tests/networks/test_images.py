"""Images with the mean image taken off: the statistics, and everything that they must survive."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.networks.images import ImageStandardization, standardize_images
from acktr.networks.policies import CnnPolicy, PaperCNN, PixelCNN
from acktr.presets.classes import check_policy
from tests.helpers.processes import run_in_processes
from tests.helpers.small_envs import ACTIONS, IMAGE, small_env

STANDARDIZED = {"features_extractor_kwargs": {"standardize_images": True}}
PIXELS = spaces.Box(0, 255, (3, 42, 42), "uint8")


def frames(count, seed=0, space=PIXELS):
    """Frames of a game: a bright background and little that moves."""
    generator = np.random.default_rng(seed)
    background = np.random.default_rng(99).integers(0, 256, space.shape)
    moving = generator.random((count, *space.shape)) < 0.02
    values = np.where(moving, generator.integers(0, 256, moving.shape), background)
    return torch.as_tensor(values, dtype=torch.uint8)


def build(space=PIXELS, **kwargs):
    kwargs = {"features_extractor_class": PixelCNN, **STANDARDIZED, **kwargs}
    return CnnPolicy(space, ACTIONS["Discrete"], lambda _: 0.0, **kwargs)


def module_of(policy):
    return policy.features_extractor.standardize


def test_statistics_are_those_of_all_images_seen():
    policy = build()
    parts = [frames(n, seed) for seed, n in enumerate((300, 7, 512))]
    for part in parts:
        standardize_images(policy, part)
    images = torch.cat(parts).double().numpy() / 255
    module = module_of(policy)
    np.testing.assert_allclose(module.mean, images.mean(0), atol=1e-6)
    np.testing.assert_allclose(module.variance, images.var(0).mean(), rtol=1e-5)
    assert module.count == len(images)


def test_what_the_first_layer_sees_has_mean_0_and_standard_deviation_1():
    policy = build()
    images = frames(400)
    standardize_images(policy, images)
    seen = module_of(policy)(images / 255.0)
    assert seen.mean(0).abs().max() < 1e-4
    assert seen.var(0, unbiased=False).mean().item() == pytest.approx(1, rel=1e-4)


def test_before_the_first_update_images_pass_as_they_are():
    plain, standardized = build(features_extractor_kwargs={}), build()
    standardized.load_state_dict({**standardized.state_dict(), **plain.state_dict()})
    images = frames(5)
    assert torch.equal(plain.extract_features(images), standardized.extract_features(images))


def test_an_unchanging_image_is_not_magnified():
    module = ImageStandardization((1, 2, 2))
    module.update(torch.full((1, 2, 2), 0.5), torch.zeros(()), 10)
    assert torch.equal(module(torch.full((3, 1, 2, 2), 0.5)), torch.zeros(3, 1, 2, 2))
    assert module(torch.full((1, 1, 2, 2), 0.51)).abs().max() < 1.01


@pytest.mark.parametrize("network", [PaperCNN, PixelCNN])
@pytest.mark.parametrize("shared", [True, False])
def test_each_extractor_has_the_same_statistics(network, shared):
    space = spaces.Box(0, 255, (2, 84, 84), "uint8")
    policy = build(space, features_extractor_class=network, share_features_extractor=shared)
    standardize_images(policy, frames(20, space=space))
    modules = [m for m in policy.modules() if isinstance(m, ImageStandardization)]
    assert len(modules) == (1 if shared else 2)
    assert all(torch.equal(m.mean, modules[0].mean) and m.count == 20 for m in modules)


def test_images_that_are_not_scaled_are_standardized_in_their_own_unit():
    policy = build(normalize_images=False)
    images = frames(50)
    standardize_images(policy, images)
    torch.testing.assert_close(module_of(policy).mean, images.float().mean(0))


def test_a_policy_without_it_is_left_alone():
    policy = build(features_extractor_kwargs={})
    standardize_images(policy, {"not": "looked at"})
    assert not any("mean" in name for name, _ in policy.named_buffers())


def model_with(n_envs=2, **kwargs):
    env = small_env("Discrete", IMAGE, n_envs=n_envs)
    extractor = {"features_dim": 8, "standardize_images": True}
    kwargs = {"n_steps": 8, "seed": 0, "critic": AdamCritic(), **kwargs}
    return ACKTR("CnnPolicy", env, policy_kwargs={"features_extractor_kwargs": extractor}, **kwargs)


def test_a_rollout_is_taken_in_before_its_update(monkeypatch):
    """The first factors are of standardised images already."""
    counts = []
    model = model_with()
    update = model.parts.actor_update.update

    def seen(*args):
        counts.append(module_of(model.policy).count.item())
        return update(*args)

    monkeypatch.setattr(model.parts.actor_update, "update", seen)
    model.learn(48)
    assert counts == [16, 32, 48]


def test_a_saved_model_predicts_as_before(tmp_path):
    model = model_with().learn(32)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model")
    assert module_of(loaded.policy).count == 32
    images = np.stack([IMAGE.sample() for _ in range(9)])
    tensor = torch.as_tensor(images)
    assert torch.equal(loaded.policy.predict_values(tensor), model.policy.predict_values(tensor))


@pytest.mark.parametrize(
    "options",
    [
        {"natural": Natural(precision="bf16")},
        {"critic": NaturalCritic()},
        {"critic": AdamCritic(normalize_targets=True)},
        {"natural": Natural(sub_sampling_factor=2, cg_iterations=2)},
    ],
)
@pytest.mark.filterwarnings("ignore:precision='bf16' needs hardware")
def test_with_the_other_options(options):
    model = model_with(n_envs=4, **options).learn(96)
    assert module_of(model.policy).count == 96
    assert all(p.isfinite().all() for p in model.policy.parameters())


def learn(rank, size):
    model = model_with(n_steps=4)
    model.learn(16 * size)
    module = module_of(model.policy)
    own = model.rollout_buffer.batch().observations.float() / 255
    return [module.mean, module.variance, module.count], own, [*model.policy.parameters()]


@pytest.mark.distributed
def test_ranks_have_the_statistics_of_all_images():
    """One rollout each of two ranks, then another: the same on both, and those of the whole."""
    first, second = run_in_processes(2, learn)
    torch.testing.assert_close(first[0], second[0], atol=0, rtol=0)
    torch.testing.assert_close(first[2], second[2], atol=0, rtol=0)
    assert not torch.equal(first[1], second[1])
    assert first[0][2] == 32


def take(rank, size):
    policy = build()
    for seed in (0, 1):
        standardize_images(policy, frames(30, seed=10 * rank + seed))
    return module_of(policy).state_dict()


@pytest.mark.distributed
def test_the_statistics_of_ranks_are_those_of_one_with_all_images():
    parts = [frames(30, seed=10 * rank + seed) for seed in (0, 1) for rank in range(3)]
    images = torch.cat(parts).double() / 255
    for state in run_in_processes(3, take):
        torch.testing.assert_close(state["mean"], images.mean(0).float(), atol=1e-6, rtol=0)
        variance = images.var(0, unbiased=False).mean().float()
        torch.testing.assert_close(state["variance"], variance, rtol=1e-5, atol=0)
        assert state["count"] == len(images)


def test_an_extractor_that_cannot_is_named():
    arguments = {"features_extractor_class": "NatureCNN", **STANDARDIZED}
    with pytest.raises(ConfigurationError, match=r"NatureCNN has \(features_dim, .*={}"):
        check_policy("CnnPolicy", arguments)
    check_policy("CnnPolicy", STANDARDIZED)
    check_policy("CnnPolicy", {"features_extractor_class": "PixelCNN", **STANDARDIZED})
