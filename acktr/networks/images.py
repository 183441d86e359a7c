"""Images with the mean image taken off, for networks that see nearly the same image all the time."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from acktr import distributed

# Of images that are looked at together: as floats they take four times the memory of their bytes.
_CHUNK = 256
# About two grey levels of 255: smaller changes are noise.
_MINIMUM_STD = 0.01


class ImageStandardization(nn.Module):
    """Subtracts the running mean image and divides by one standard deviation, that of all pixels.

    In most pixels a frame of a game is like any other. What all frames have in common moves the output
    of a network most, in each of its layers, and tells it nothing about what to do: most of the noise of
    a policy gradient, and of a KL radius, goes there. Taken off at the input it is gone from all layers.
    Pixels keep their contrast among each other: one standard deviation serves them all, so that those
    that hardly ever change are not magnified.

    Before the first :meth:`update` images pass as they are.

    :param shape: ``(C, H, W)`` of one image
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        return (images - self.mean).mul_(self.variance.clamp_min(_MINIMUM_STD**2).rsqrt())

    def update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take more images into the statistics (Chan, Golub & LeVeque 1979).

        :param mean: of these images, ``(C, H, W)``
        :param variance: of each pixel about its mean, averaged over pixels, 0-dim tensor
        :param count: how many images
        """
        share = count / (self.count + count)
        between = (mean - self.mean).square().mean() * (1 - share)
        self.variance += share * (variance + between - self.variance)
        self.mean += share * (mean - self.mean)
        self.count += count


@torch.no_grad()
def standardize_images(policy: ActorCriticPolicy, observations: Any) -> None:
    """Take a rollout into the statistics of each :class:`ImageStandardization` of a policy.

    All ranks take the images of all of them, and have the same statistics.

    :param policy: of any kind; without such a module nothing happens
    :param observations: ``(B, C, H, W)`` as the policy takes them; the same B on all ranks
    """
    modules = [m for m in policy.modules() if isinstance(m, ImageStandardization)]
    if not modules:
        return
    sums, squares = torch.zeros_like(modules[0].mean), torch.zeros_like(modules[0].variance)
    for part in observations.split(_CHUNK):
        images = preprocess_obs(part, policy.observation_space, policy.normalize_images)
        assert isinstance(images, Tensor)
        sums += images.sum(0)
        # About the mean so far, or the squares would lose their digits in each other.
        squares += (images - modules[0].mean).square_().mean((1, 2, 3)).sum()
    both = torch.cat([sums.flatten(), squares.view(1)]) / len(observations)
    both = distributed.mean(both)
    mean = both[:-1].view_as(sums)
    variance = both[-1] - (mean - modules[0].mean).square().mean()
    for module in modules:
        module.update(mean, variance, len(observations) * distributed.size())
