"""Small models, and how two of them are compared."""

import torch

from acktr import ACKTR
from acktr.checkpoint import bundle
from tests.small_envs import VECTOR, small_env

NET = {"net_arch": [4]}


def build(action="Discrete", observation=VECTOR, policy="MlpPolicy", n_envs=2, **arguments):
    arguments.setdefault("policy_kwargs", NET)
    env = small_env(action, observation, n_envs=n_envs)
    return ACKTR(policy, env, n_steps=8, seed=0, device="cpu", **arguments)


def states(model):
    structure, tensors, _ = bundle.encode(model.get_parameters())
    return structure, tensors


def assert_same_state(a, b):
    (one, first), (other, second) = states(a), states(b)
    assert one == other
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
