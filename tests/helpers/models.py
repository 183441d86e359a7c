"""Small learners, what is asked of them, and a batch to learn from."""

import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from acktr import ACKTR, Natural, NaturalCritic
from acktr.rollout.batch import RolloutBatch
from tests.helpers.small_envs import IMAGE, MIXED, VECTOR, small_env

POLICIES = {
    "MlpPolicy": (VECTOR, {"net_arch": [8]}),
    "CnnPolicy": (IMAGE, {"features_extractor_kwargs": {"features_dim": 16}}),
    "MultiInputPolicy": (
        MIXED,
        {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 16}},
    ),
}
B = 24  # samples of a batch


class Recorded(ACKTR):
    """Keeps what was logged at each update."""

    def train(self):
        super().train()
        if not hasattr(self, "history"):
            self.history = []
        self.history.append(dict(self.logger.name_to_value))

    def logged(self, name):
        return np.array([metrics[f"train/{name}"] for metrics in self.history])


def make(env=None, policy="MlpPolicy", cls=ACKTR, **kwargs):
    return cls(policy, env or small_env(), **{"n_steps": 8, "seed": 0, "device": "cpu", **kwargs})


def setting(name, value):
    """The argument of ACKTR for a setting, such as ``"natural.damping"``."""
    group, _, part = name.rpartition(".")
    kinds = {"natural": Natural, "critic": NaturalCritic}
    return {group: kinds[group](**{part: value})} if group else {name: value}


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def same(first, second):
    """Whether two nested states are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def learn(policy, action="Discrete", steps=48, env=None, **kwargs):
    model = ACKTR(policy, env or small_env(action), n_steps=8, seed=0, **kwargs)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(steps)
    still = {n for n, p in model.policy.named_parameters() if n in before and torch.equal(p, before[n])}
    return model, still


def names(model, params):
    own = {p: name for name, p in model.policy.named_parameters()}
    return {own[p] for p in params}


class Trunk(BaseFeaturesExtractor):
    """One layer for actor and critic, with noise if there is to be any."""

    def __init__(self, space, noise=None):
        super().__init__(space, 16)
        self.net = nn.Linear(3, 16)
        self.noise = noise or nn.Identity()

    def forward(self, obs):
        return self.noise(self.net(obs)).tanh()


def batch_of(model):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    space = model.observation_space
    if space.dtype == np.uint8:
        obs = torch.randint(0, 255, (B, *space.shape), generator=generator, dtype=torch.uint8)
    else:
        obs = draw(B, *space.shape)
    actions = torch.stack([torch.as_tensor(model.action_space.sample()) for _ in range(B)])
    actions = actions.double() if actions.is_floating_point() else actions
    return RolloutBatch(obs, actions, draw(B), draw(B), draw(B))
