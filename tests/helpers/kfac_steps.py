"""Steps of K-FAC on a small classifier, whose KL is measured."""

import torch.nn.functional as F
from torch import nn

from acktr.kfac import CrossEntropy


def mlp(inputs: int = 4, out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, out))


def learn(kfac, net, x, y):
    """Curvature and gradients of a batch; returns the parameters and outputs."""
    with kfac.capture():
        logits = net(x)
    kfac.update_curvature(CrossEntropy(logits))
    kfac.zero_grad()
    F.cross_entropy(logits, y).backward()
    return [p.detach().clone() for p in kfac.module.parameters()], logits.detach()


def step_of(kfac, net, x, y):
    """One step on a classifier's loss; returns the parameters and outputs before it."""
    before = learn(kfac, net, x, y)
    kfac.step(forward=lambda: CrossEntropy(net(x)))
    return before
