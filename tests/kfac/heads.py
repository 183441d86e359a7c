"""Output distributions next to the Hessian of their log-likelihood in the network's outputs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical
from torch.nn.functional import softplus

from . import oracle


class Head(NamedTuple):
    """``distribution(outputs)`` for outputs of shape (N, size), and its exact Hessian."""

    size: int
    distribution: Callable
    hessian: oracle.Hessian


def softplus_scale(outputs: Tensor) -> Tensor:
    _mean, rho = outputs.chunk(2)
    scale = softplus(rho)
    return torch.cat([scale**-2, 2 * (rho.sigmoid() / scale) ** 2]).diag()


CATEGORICAL = Head(3, lambda out: Categorical(logits=out), oracle.categorical)
GAUSSIAN = Head(3, lambda out: Normal(out, 0.5), oracle.gaussian(0.5))
GAUSSIAN_LOG_STD = Head(4, lambda out: Normal(out[:, :2], out[:, 2:].exp()), oracle.gaussian_log_std)

HEADS = {
    "categorical": CATEGORICAL,
    "categorical-probs": Head(3, lambda out: Categorical(probs=out.softmax(-1)), oracle.categorical),
    "one-hot": Head(3, lambda out: OneHotCategorical(logits=out), oracle.categorical),
    "multi-discrete": Head(
        5,
        lambda out: [Categorical(logits=out[:, :2]), Categorical(logits=out[:, 2:])],
        oracle.joint((2, oracle.categorical), (3, oracle.categorical)),
    ),
    "two-categoricals-a-sample": Head(
        4,
        lambda out: Categorical(logits=out.unflatten(-1, (2, 2))),
        oracle.joint((2, oracle.categorical), (2, oracle.categorical)),
    ),
    "bernoulli": Head(3, lambda out: Bernoulli(logits=out), oracle.bernoulli),
    "bernoulli-probs": Head(3, lambda out: Bernoulli(probs=out.sigmoid()), oracle.bernoulli),
    "gaussian": GAUSSIAN,
    "gaussian-vector": Head(
        3,
        lambda out: Normal(out, torch.tensor([0.5, 1.0, 2.0])),
        lambda _: torch.diag(torch.tensor([4.0, 1.0, 0.25])),
    ),
    "gaussian-log-std": GAUSSIAN_LOG_STD,
    "gaussian-softplus": Head(4, lambda out: Normal(out[:, :2], softplus(out[:, 2:])), softplus_scale),
    "independent-gaussian": Head(
        4,
        lambda out: Independent(Normal(out[:, :2], out[:, 2:].exp()), 1),
        oracle.gaussian_log_std,
    ),
    "independent-bernoulli": Head(
        3, lambda out: Independent(Bernoulli(logits=out), 1), oracle.bernoulli
    ),
    "nested-lists": Head(
        5,
        lambda out: [Categorical(logits=out[:, :3]), (Normal(out[:, 3:], 1.0),)],
        oracle.joint((3, oracle.categorical), (2, oracle.gaussian())),
    ),
}


def distributions(head: Head, outputs: Tensor) -> list:
    """The arguments of ``update_curvature`` for one head."""
    return [head.distribution(outputs)]
