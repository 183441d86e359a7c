"""From output distributions to cotangents: where the ``g`` of the Fisher comes from.

The Fisher of a model ``p(y | x) = p(y | z)``, ``z = f(x; theta)`` is ``F = E[J' H J]`` with ``J`` the
Jacobian of the outputs ``z`` and ``H`` the Fisher of the distribution in its own parameters. Both
estimators below draw cotangents ``v`` with ``E[v v'] = H``; one backward pass of ``v`` then gives
``g = J' v`` with ``E[g g'] = J' H J``:

* ``"monte-carlo"``: ``v = d log p(y) / dz`` for ``y`` drawn from the model (Wu et al. 2017, sec. 3.1;
  Martens & Grosse 2015, sec. 2.2).
* ``"curvature-propagation"``: ``v = H^{1/2} r`` with random signs ``r`` (Martens, Sutskever & Swersky
  2012). The same mean, far less variance: for a Gaussian mean or a Bernoulli the diagonal of ``v v'``
  is exact in every draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
)

ESTIMATORS = ("curvature-propagation", "monte-carlo")


class OutputCotangent(NamedTuple):
    """One differentiable parameter of a distribution and a random cotangent for it.

    :param output: the parameter ``z``, shape ``(N, ...)``
    :param cotangent: a draw of ``v`` with ``E[v v'] = H``, same shape
    :param root: ``H^{1/2}`` of a standard deviation, same shape: the one parameter that is often the
        same for all samples; ``None`` for all others
    """

    output: Tensor
    cotangent: Tensor
    root: Tensor | None


def random_signs(like: Tensor) -> Tensor:
    """Draw +1 or -1 with probability one half each, in the shape of ``like``."""
    return torch.empty_like(like).bernoulli_(0.5).mul_(2.0).sub_(1.0)


def flatten_distributions(distributions: Iterable[object]) -> list[Distribution]:
    """Unpack lists and tuples of distributions (MultiDiscrete actions are lists of Categoricals)."""
    flat: list[Distribution] = []
    for distribution in distributions:
        if isinstance(distribution, (list, tuple)):
            flat.extend(flatten_distributions(distribution))
        elif isinstance(distribution, Distribution):
            flat.append(distribution)
        else:
            raise TypeError(
                "update_curvature takes torch distributions and lists of them, "
                f"not {type(distribution).__name__}."
            )
    return flat


def batch_size(distributions: list[Distribution]) -> int:
    """Return N, the length of the first batch dimension, which all distributions must share.

    :raises ValueError: no distribution, or distributions over different numbers of samples
    """
    if not distributions:
        raise ValueError("update_curvature needs at least one output distribution.")
    sizes = {d.batch_shape[0] if d.batch_shape else 1 for d in distributions}
    if len(sizes) > 1:
        raise ValueError(
            "All distributions of one update_curvature call must have the same number of samples "
            f"(first batch dimension); got {sorted(sizes)}."
        )
    return int(sizes.pop())


@singledispatch
def output_cotangents(distribution: Distribution, estimator: str) -> list[OutputCotangent]:
    """Draw one cotangent for each differentiable parameter of ``distribution``.

    Add a distribution with ``@output_cotangents.register``.

    :param distribution: the model's output distribution, N samples in its first batch dimension
    :param estimator: one of :data:`ESTIMATORS`
    :raises TypeError: a distribution that is not registered
    """
    raise TypeError(
        f"No Fisher is known for {type(distribution).__name__}: use Categorical, OneHotCategorical, "
        "Normal, Bernoulli, Independent of them or a list of them, or register it with "
        "acktr.kfac.fisher.output_cotangents.register."
    )


@output_cotangents.register(Independent)
def _independent(distribution: Independent[Any], estimator: str) -> list[OutputCotangent]:
    # Independent only says which dimensions belong to one event; the log-likelihood is the sum.
    return output_cotangents(distribution.base_dist, estimator)


@output_cotangents.register
def _categorical(distribution: Categorical, estimator: str) -> list[OutputCotangent]:
    """Logits: ``H = diag(p) - p p'``, one root of which is ``v = sqrt(p) r - p (sqrt(p)' r)``."""
    logits = distribution.logits
    probs = logits.detach().softmax(-1)
    if estimator == "monte-carlo":
        samples = distribution.sample().unsqueeze(-1)
        cotangent = torch.zeros_like(probs).scatter_(-1, samples, 1.0).sub_(probs)
    else:
        signed_root = probs.sqrt() * random_signs(probs)
        cotangent = signed_root - probs * signed_root.sum(-1, keepdim=True)
    return [OutputCotangent(logits, cotangent, None)]


@output_cotangents.register
def _one_hot_categorical(distribution: OneHotCategorical, estimator: str) -> list[OutputCotangent]:
    return _categorical(Categorical(logits=distribution.logits), estimator)


@output_cotangents.register
def _bernoulli(distribution: Bernoulli, estimator: str) -> list[OutputCotangent]:
    """Logits: ``H = diag(p (1 - p))``."""
    logits = distribution.logits
    probs = logits.detach().sigmoid()
    root = (probs * (1.0 - probs)).sqrt()
    if estimator == "monte-carlo":
        cotangent = distribution.sample() - probs
    else:
        cotangent = root * random_signs(root)
    return [OutputCotangent(logits, cotangent, None)]


@output_cotangents.register
def _normal(distribution: Normal, estimator: str) -> list[OutputCotangent]:
    """Mean and standard deviation: ``H = diag(1 / sigma^2)`` and ``diag(2 / sigma^2)``.

    In the logarithm of sigma the second is exactly 2 per dimension.
    """
    mean, std = distribution.loc, distribution.scale
    mean_root = std.detach().reciprocal()
    monte_carlo = estimator == "monte-carlo"
    # One draw of y serves both; the signs of curvature propagation are drawn for each.
    draw = torch.randn_like(mean_root) if monte_carlo else random_signs(mean_root)
    pairs = [OutputCotangent(mean, draw * mean_root, None)] if mean.requires_grad else []
    if std.requires_grad:
        std_root = mean_root * 2.0**0.5
        if monte_carlo:
            std_cotangent = (draw.square() - 1.0) * mean_root
        else:
            std_cotangent = random_signs(std_root) * std_root
        pairs.append(OutputCotangent(std, std_cotangent, std_root))
    return pairs
