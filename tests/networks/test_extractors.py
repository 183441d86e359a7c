"""Networks for small images, and those of a Dict."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn

from acktr.errors import ConfigurationError
from acktr.networks.checks import try_networks
from acktr.networks.extractors import MixedExtractor, SmallCNN
from acktr.networks.policies import CnnPolicy, MlpPolicy, PaperCNN


def images(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "strides", "width"),
    [
        ((3, 1, 1), [1, 2], 32),
        ((3, 7, 7), [1, 2], 4 * 4 * 32),
        ((10, 10, 10), [1, 2], 5 * 5 * 32),
        ((4, 16, 16), [1, 2], 8 * 8 * 32),
        ((4, 35, 35), [2, 2], 9 * 9 * 32),
        ((1, 20, 400), [2, 2, 2, 2], 2 * 25 * 32),
    ],
)
def test_small_images_keep_what_is_in_them(shape, strides, width):
    network = SmallCNN(images(*shape))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.stride[0] for c in convolutions] == strides
    linear = next(m for m in network.modules() if isinstance(m, nn.Linear))
    assert (linear.in_features, linear.out_features) == (width, 256)
    assert network(torch.zeros(2, *shape)).shape == (2, network.features_dim)


@pytest.mark.parametrize("shape", [(1, 36, 36), (100, 36, 40), (1, 36, 35), (100, 40, 30), (3, 7, 7)])
def test_the_policy_takes_the_network_that_fits(shape):
    kwargs = {"features_extractor_kwargs": {"standardize_images": True}}
    policy = CnnPolicy(images(*shape), spaces.Discrete(2), lambda _: 0.0, **kwargs)
    expected = PaperCNN if min(shape[1:]) >= 36 else SmallCNN
    assert type(policy.features_extractor) is expected
    assert policy(torch.zeros(2, *shape, dtype=torch.uint8))[0].shape == (2,)


def test_large_images_of_a_dict_are_read_as_by_stable_baselines():
    space = spaces.Dict({"image": images(3, 40, 40), "vector": spaces.Box(-1, 1, (2,))})
    states = []
    for kind in (MixedExtractor, CombinedExtractor):
        torch.manual_seed(0)
        states.append(kind(space).state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_images_of_a_dict_may_be_of_any_size():
    space = spaces.Dict({"a": images(3, 7, 7), "b": images(1, 36, 36), "c": spaces.Discrete(3)})
    network = MixedExtractor(space, cnn_output_dim=8)
    batch = {"a": torch.zeros(2, 3, 7, 7), "b": torch.zeros(2, 1, 36, 36), "c": torch.zeros(2, 3)}
    assert network(batch).shape == (2, network.features_dim) == (2, 19)
    assert isinstance(network.extractors["a"], SmallCNN)


class Own(BaseFeaturesExtractor):
    """Says one width and returns another; takes what it knows alone."""

    def __init__(self, space, says, returns, least=-1.0):
        super().__init__(space, says)
        self.linear = nn.Linear(space.shape[0], returns)
        self.least = least

    def forward(self, observations):
        if observations.min() < self.least:
            raise ValueError("no such observation")
        return self.linear(observations)


@pytest.mark.parametrize(("says", "least", "fits"), [(8, -1.0, True), (9, -1.0, False), (9, 5.0, True)])
@pytest.mark.parametrize("shared", [True, False])
def test_an_extractor_returns_as_many_features_as_it_says(says, least, fits, shared):
    arguments = {"says": says, "returns": 8, "least": least}
    policy = MlpPolicy(
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(2),
        lambda _: 0.0,
        features_extractor_class=Own,
        features_extractor_kwargs=arguments,
        share_features_extractor=shared,
    )
    if fits:
        try_networks(policy)  # of one that takes no made-up observation nothing is known
        return
    with pytest.raises(ConfigurationError, match=r"Own returns 8 features .* says that they are 9"):
        try_networks(policy)
