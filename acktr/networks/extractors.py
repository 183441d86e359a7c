"""Networks for images: what all of them share, and one that fits where the paper's does not."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import Tensor, nn

from acktr.networks.images import ImageStandardization

MIN_IMAGE_SIDE = 36  # in pixels: of less the layers of ``PaperCNN`` and ``NatureCNN`` leave nothing
# Positions that the small network sees at full resolution, and that its linear layer gets at most.
_FINE, _COARSE = 256, 100


class ImageNetwork(BaseFeaturesExtractor):
    """Convolutions and a fully connected layer.

    :param observation_space: images, channels first
    :param features_dim: width of the fully connected layer
    :param convolutions: with their activations
    :param activation_fn: after the fully connected layer
    :param standardize_images: whether :class:`~acktr.networks.images.ImageStandardization` comes first
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int,
        convolutions: list[nn.Module],
        activation_fn: type[nn.Module],
        standardize_images: bool,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self.standardize = (
            ImageStandardization(observation_space.shape) if standardize_images else nn.Identity()
        )
        self.cnn = nn.Sequential(*convolutions, nn.Flatten())
        with torch.no_grad():
            width = self.cnn(torch.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(width, features_dim), activation_fn())

    def forward(self, observations: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, features_dim)``."""
        # Channels last in memory: on a CPU the backward pass of a convolution takes half the time.
        images = self.standardize(observations)
        return self.linear(self.cnn(images.contiguous(memory_format=torch.channels_last)))


class SmallCNN(ImageNetwork):
    """A network for images of any size, such as MinAtar's 10 x 10 and MiniGrid's 7 x 7: 32 filters 3x3.

    The first layer keeps each of up to 16 x 16 pixels, where a pixel is a thing and not a texture. The
    others halve the picture until 100 positions are left at most, which bounds the input factor of the
    fully connected layer at 3201. All are padded by 1.

    :param observation_space: images, channels first
    :param features_dim: width of the fully connected layer
    :param normalized_image: the images lie in [0, 1] already
    :param standardize_images: take the running mean image off, see
        :class:`~acktr.networks.images.ImageStandardization`
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 256,
        normalized_image: bool = False,
        standardize_images: bool = False,
    ) -> None:
        channels, height, width = observation_space.shape
        convolutions: list[nn.Module] = []
        stride = 1 if height * width <= _FINE else 2
        while not convolutions or height * width > _COARSE or len(convolutions) < 4:
            convolutions += [nn.Conv2d(channels, 32, 3, stride, padding=1), nn.ReLU()]
            channels, height, width = 32, math.ceil(height / stride), math.ceil(width / stride)
            stride = 2
        super().__init__(observation_space, features_dim, convolutions, nn.ReLU, standardize_images)


class MixedExtractor(CombinedExtractor):
    """SB3's ``CombinedExtractor`` with a network that fits for images that are too small for its own.

    :param observation_space: a flat ``Dict``
    :param cnn_output_dim: features of each image
    :param normalized_image: take each ``Box`` of three dimensions for an image in [0, 1]
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
    ) -> None:
        small = {
            key: part
            for key, part in observation_space.spaces.items()
            if is_image_space(part, normalized_image=normalized_image) and not is_large(part)
        }
        others = {key: part for key, part in observation_space.spaces.items() if key not in small}
        super().__init__(spaces.Dict(others), cnn_output_dim, normalized_image)
        self._observation_space = observation_space
        for key, part in small.items():
            assert isinstance(part, spaces.Box)
            self.extractors[key] = SmallCNN(part, cnn_output_dim, normalized_image)
            self._features_dim += cnn_output_dim


def is_large(space: spaces.Space) -> bool:
    """Tell whether images, channels first, are large enough for the usual networks."""
    return min((space.shape or (0,))[1:], default=0) >= MIN_IMAGE_SIDE
