"""A node of one's own knows whose backward pass goes on."""

from typing import ClassVar

import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC
from acktr.kfac.passes import of_statistics


class Watched(torch.autograd.Function):
    """Notes whether each of its backward passes is one of the statistics."""

    seen: ClassVar = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Watched.seen.append(of_statistics())
        return grad


def test_the_statistics_pass_is_told_from_that_of_the_loss():
    layer = nn.Linear(3, 2)
    kfac = KFAC(layer)
    Watched.seen = []
    with kfac.capture():
        mean = Watched.apply(layer(torch.ones(4, 3)))
    kfac.update_curvature(Normal(mean, torch.ones_like(mean)))
    mean.square().mean().backward()
    assert Watched.seen == [True, False]
    assert not of_statistics()
