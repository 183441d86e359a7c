"""Networks that draw random numbers: they learn with them, and no KL is measured with them."""

import numpy as np
import pytest
import torch
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from tests.helpers.models import Trunk
from tests.helpers.small_envs import IMAGE, VECTOR, small_env


class Scatter(nn.Module):
    """Noise of a generator of its own, as long as the network learns, or always."""

    def __init__(self, always):
        super().__init__()
        self.always = always
        self.numbers = np.random.default_rng(0)

    def forward(self, x):
        if self.always:
            return x + 0.3 * torch.randn_like(x)
        noise = torch.as_tensor(self.numbers.normal(size=tuple(x.shape)), dtype=x.dtype)
        return x + 0.3 * noise if self.training else x


NOISE = {
    "dropout": lambda: nn.Dropout(0.5),
    "of its own": lambda: Scatter(False),
    "always": lambda: Scatter(True),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"features_extractor_kwargs": False},
        {"critic": AdamCritic(learning_rate=1e-12, normalize_targets=False)},
        {"natural": Natural(kfac_kwargs={"step_rule": {"adapt_damping": True}})},
        {"natural": Natural(sub_sampling_factor=2)},
    ],
)
def test_noise_is_no_kl(noise, kwargs):
    """Of steps that go nowhere the measured KL is nothing, and the feedback wants longer ones."""
    kwargs = {"critic": NaturalCritic(trust_region=None, normalize_targets=False), **kwargs}
    share = kwargs.pop("features_extractor_kwargs", True)
    policy_kwargs = {
        "features_extractor_class": Trunk,
        "features_extractor_kwargs": {"noise": NOISE[noise]()},
        "share_features_extractor": share,
    }
    model = ACKTR(
        "MlpPolicy", small_env(), n_steps=8, seed=0, learning_rate=1e-9, policy_kwargs=policy_kwargs,
        **kwargs,
    )  # fmt: skip
    assert model.outputs.noisy
    model.learn(16)
    assert model.logger.name_to_value["train/kl"] < 1e-6
    assert model.parts.trust_region.rescales == 0
    assert model.parts.trust_region.scale >= 1.0


def test_networks_learn_with_their_noise():
    seen = []

    class Watched(nn.Dropout):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    kwargs = {"features_extractor_class": Trunk, "features_extractor_kwargs": {"noise": Watched(0.1)}}
    model = ACKTR("MlpPolicy", small_env(), n_steps=8, seed=0, policy_kwargs=kwargs)
    seen.clear()
    model.learn(16)
    assert (True, True) in seen  # where gradients and curvature are taken
    assert all(mode == gradients for mode, gradients in seen)  # and nowhere else


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_a_plain_policy_has_no_noise(policy):
    observation = IMAGE if policy == "CnnPolicy" else VECTOR
    assert not ACKTR(policy, small_env(observation=observation)).outputs.noisy
