"""Policies of ACKTR: SB3's, with the paper's network for pixels."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from acktr.networks.extractors import ImageNetwork, MixedExtractor, SmallCNN, is_large


class PaperCNN(ImageNetwork):
    """The paper's network for 84 x 84 pixels: 32 8x8/4, 64 4x4/2, **32** 3x3/1, 512 units.

    The third layer has half the filters of the DQN network, which keeps the input factor of the fully
    connected layer at 1569 instead of 3137 (Wu et al. 2017, sec. 5).

    :param observation_space: images, channels first
    :param features_dim: width of the fully connected layer
    :param normalized_image: the images lie in [0, 1] already
    :param standardize_images: take the running mean image off, see
        :class:`~acktr.networks.images.ImageStandardization`
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 512,
        normalized_image: bool = False,
        standardize_images: bool = False,
    ) -> None:
        channels = observation_space.shape[0]
        convolutions = [
            nn.Conv2d(channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, stride=1),
            nn.ReLU(),
        ]
        super().__init__(observation_space, features_dim, convolutions, nn.ReLU, standardize_images)


class PixelCNN(ImageNetwork):
    """The paper's network for continuous control from 42 x 42 pixels: twice 32 3x3/2, 256 units.

    Wu et al. 2017 (sec. 5) give actor and critic one each: ``share_features_extractor=False``. Padded by
    1, as in the released code: 42 x 42 becomes 21 x 21 and 11 x 11.

    :param observation_space: images, channels first
    :param features_dim: width of the fully connected layer
    :param activation_fn: after each layer; the released code has ReLU in the actor and ELU in the critic
    :param normalized_image: the images lie in [0, 1] already
    :param standardize_images: take the running mean image off, see
        :class:`~acktr.networks.images.ImageStandardization`
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int = 256,
        activation_fn: type[nn.Module] = nn.ELU,
        normalized_image: bool = False,
        standardize_images: bool = False,
    ) -> None:
        convolutions = [
            nn.Conv2d(observation_space.shape[0], 32, 3, stride=2, padding=1),
            activation_fn(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            activation_fn(),
        ]
        super().__init__(
            observation_space, features_dim, convolutions, activation_fn, standardize_images
        )


class CnnPolicy(ActorCriticPolicy):
    """Actor and critic on one shared :class:`PaperCNN`, each with a linear head.

    Images below 36 x 36 get a :class:`~acktr.networks.extractors.SmallCNN`.
    """

    image_dtype = torch.float32  # what images of bytes become before the features extractor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        space = kwargs["observation_space"] if "observation_space" in kwargs else args[0]
        kwargs.setdefault("features_extractor_class", PaperCNN if is_large(space) else SmallCNN)
        if kwargs.get("net_arch") is None:
            kwargs["net_arch"] = []
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 leaves this one out, and a saved policy would be built anew with the other networks.
        share = {"share_features_extractor": self.share_features_extractor}
        return {**super()._get_constructor_parameters(), **share}

    def features(self, obs: Any, extractor: BaseFeaturesExtractor) -> Tensor:
        """Scale images of bytes to [0, 1] and extract features, as SB3 does.

        The bytes are brought into order and made numbers once, where SB3 makes three copies of four
        times their size: that took longer than the network itself.

        :param obs: ``(B, C, H, W)``, or what else SB3's ``preprocess_obs`` takes
        :param extractor: one of the policy's
        :return: ``(B, features_dim)``
        """
        bytes_ = isinstance(obs, Tensor) and obs.dtype == torch.uint8 and obs.ndim == 4
        if not (bytes_ and self.normalize_images and is_image_space(self.observation_space)):
            return BasePolicy.extract_features(self, obs, extractor)
        images = obs.contiguous(memory_format=torch.channels_last).to(self.image_dtype)
        features: Tensor = extractor(images.div_(255.0))
        return features

    def extract_features(  # type: ignore[override]  # as SB3's own override
        self, obs: Any, features_extractor: BaseFeaturesExtractor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Extract features for actor and critic: one tensor if they share them, else two."""
        if features_extractor is not None or self.share_features_extractor:
            return self.features(obs, features_extractor or self.features_extractor)
        extractors = self.pi_features_extractor, self.vf_features_extractor
        return self.features(obs, extractors[0]), self.features(obs, extractors[1])

    def get_distribution(self, obs: Any) -> Distribution:
        """Return the distribution of actions."""
        features = self.features(obs, self.pi_features_extractor)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features))

    def predict_values(self, obs: Any) -> Tensor:
        """Return values ``(B, 1)``."""
        features = self.features(obs, self.vf_features_extractor)
        values: Tensor = self.value_net(self.mlp_extractor.forward_critic(features))
        return values


MlpPolicy = ActorCriticPolicy


class MultiInputPolicy(MultiInputActorCriticPolicy):
    """SB3's policy for a ``Dict``, whose images may be of any size."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", MixedExtractor)
        super().__init__(*args, **kwargs)
