"""What a model's outputs mean: all that the Fisher has to know of an output distribution.

The Fisher of a model ``p(y | x) = p(y | z)``, ``z = f(x; theta)`` is ``F = E[J' H J]`` with ``J`` the
Jacobian of the outputs ``z`` and ``H`` the Fisher of the distribution in its own parameters. Both
estimators draw cotangents ``v`` with ``E[v v'] = H``; one backward pass of ``v`` then gives
``g = J' v`` with ``E[g g'] = J' H J``:

* ``"monte-carlo"``: ``v = d log p(y) / dz`` for ``y`` drawn from the model (Wu et al. 2017, sec. 3.1;
  Martens & Grosse 2015, sec. 2.2).
* ``"curvature-propagation"``: ``v = H^{1/2} r`` with random signs ``r`` (Martens, Sutskever & Swersky
  2012). The same mean, far less variance: for a Gaussian mean or a Bernoulli the diagonal of ``v v'``
  is exact in every draw.

A :class:`Likelihood` draws them, and knows its KL, whose Hessian is the same Fisher. Each distribution
of torch has one here; :mod:`acktr.kfac.losses` has those of a classifier's and a regressor's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    kl_divergence,
)

ESTIMATORS = ("curvature-propagation", "monte-carlo")
ALL = slice(None)


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

    def scaled(self, factor: float | Tensor) -> OutputCotangent:
        """Multiply ``v`` and the root, and so H by the square."""
        root = None if self.root is None else self.root * factor
        return OutputCotangent(self.output, self.cotangent * factor, root)


def random_signs(like: Tensor) -> Tensor:
    """Draw +1 or -1 with probability one half each, in the shape of ``like``."""
    return torch.empty_like(like).bernoulli_(0.5).mul_(2.0).sub_(1.0)


class Likelihood:
    """A model's outputs for a batch as a distribution.

    Subclass it and give :meth:`KFAC.update_curvature` an instance, or register the subclass for a class
    of distributions with ``@likelihood_of.register(...)``.
    """

    partial = False  # whether some outputs count for nothing, so that what leads to them does not either

    @property
    def samples(self) -> int:
        """N, the length of the first axis of the outputs."""
        raise NotImplementedError

    @property
    def units(self) -> float | Tensor:
        """How many terms the mean of the loss, and so the Fisher and the KL, is over: N."""
        return self.samples

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw one cotangent for each differentiable output, of the *summed* log-likelihood.

        :param estimator: one of :data:`ESTIMATORS`
        """
        raise NotImplementedError

    def detached(self, samples: Tensor | slice = ALL) -> Likelihood:
        """Return the same without its graph.

        :param samples: which of its N samples; all by default
        :raises TypeError: it does not know how
        """
        raise TypeError(
            f"The exact Fisher of {type(self).__name__} is not known: define its `detached` and `kl`."
        )

    def kl(self, new: Any) -> Tensor:
        """``KL(self || new)``, nats, as the mean over ``units``, 0-dim tensor.

        :param new: the same of other outputs
        """
        raise NotImplementedError


@singledispatch
def likelihood_of(distribution: object) -> Likelihood:
    """Return what the Fisher has to know of a distribution.

    :param distribution: the model's output distribution, N samples in its first batch dimension
    :raises TypeError: a distribution that is not registered
    """
    raise TypeError(
        f"No Fisher is known for {type(distribution).__name__}: use CrossEntropy or SquaredError of "
        "acktr.kfac; Categorical, OneHotCategorical, Normal, Bernoulli, Independent of them or a list "
        "of them; or register it with acktr.kfac.likelihood.likelihood_of.register."
    )


@likelihood_of.register
def _(likelihood: Likelihood) -> Likelihood:
    return likelihood


def likelihoods_of(distributions: Iterable[object]) -> list[Likelihood]:
    """Unpack lists and tuples (MultiDiscrete actions are lists of Categoricals).

    :raises TypeError: a distribution that is not registered
    """
    flat: list[Likelihood] = []
    for distribution in distributions:
        if isinstance(distribution, (list, tuple)):
            flat.extend(likelihoods_of(distribution))
        else:
            flat.append(likelihood_of(distribution))
    return flat


def sample_count(likelihoods: Sequence[Likelihood]) -> int:
    """Return N, which all likelihoods must share.

    :raises ValueError: none, or some over different numbers of samples
    """
    if not likelihoods:
        raise ValueError("update_curvature needs at least one output distribution.")
    sizes = {x.samples for x in likelihoods}
    if len(sizes) > 1:
        raise ValueError(
            "All distributions of one update_curvature call must have the same number of samples "
            f"(first batch dimension); got {sorted(sizes)}."
        )
    return sizes.pop()


class Accumulated(Likelihood):
    """Several batches whose gradients are added up for one step, in the order in which they came.

    :param batches: the likelihoods of each
    """

    def __init__(self, batches: Sequence[Sequence[Likelihood]]) -> None:
        self._batches = batches

    @property
    def samples(self) -> int:
        """N of all batches together."""
        return sum(sample_count(batch) for batch in self._batches)

    def detached(self, samples: Tensor | slice = ALL) -> Accumulated:
        """Return the same without its graph, of all samples."""
        return Accumulated([[x.detached() for x in batch] for batch in self._batches])

    def kl(self, new: Accumulated) -> Tensor:
        """``KL(self || new)``, averaged over the samples of all batches."""
        pairs = zip(self._batches, new._batches, strict=True)
        return torch.stack([mean_kl(p, q) * (sample_count(p) / self.samples) for p, q in pairs]).sum()


def accumulated(before: list[Likelihood], batch: list[Likelihood]) -> list[Likelihood]:
    """Return what an exact Fisher is taken of: a batch, with those that came before it.

    :param before: the same of the batches since the last step; empty for none
    :param batch: of the present one
    """
    return [Accumulated([before, batch])] if before else batch


def mean_kl(old: Sequence[Any], new: Sequence[Any]) -> Tensor:
    """``KL(old || new)`` of a joint distribution, nats, averaged over samples (0-dim tensor).

    :param old: distributions of independent parts, each over the same N samples
    :param new: the same parts, each of the same kind
    """
    pairs = zip(likelihoods_of(old), likelihoods_of(new), strict=True)
    return torch.stack([p.kl(q) for p, q in pairs]).sum()


def detached(distribution: Distribution, samples: Tensor | slice = ALL) -> Distribution:
    """Return the same distribution without its graph.

    :param samples: which of its N samples; all by default
    :raises TypeError: a distribution that is not registered
    """
    found = likelihood_of(distribution).detached(samples)
    assert isinstance(found, DistributionLikelihood)
    kept: Distribution = found.distribution
    return kept


# ---------------------------------------------------------------------- distributions of torch

Of = TypeVar("Of", bound=Distribution)


class DistributionLikelihood(Likelihood, Generic[Of]):
    """Of one of torch's distributions: a sample is an index into its first batch dimension.

    :param distribution: of the outputs
    """

    def __init__(self, distribution: Of) -> None:
        self.distribution = distribution

    @property
    def samples(self) -> int:
        """N, 1 for a distribution without a batch."""
        shape = self.distribution.batch_shape
        return int(shape[0]) if shape else 1

    def detached(self, samples: Tensor | slice = ALL) -> DistributionLikelihood[Of]:
        """Return the same without its graph."""
        return type(self)(self.without_graph(samples))

    def without_graph(self, samples: Tensor | slice) -> Of:
        """Return the distribution without its graph, of some of its samples.

        :raises TypeError: a subclass that does not define it
        """
        raise TypeError(
            f"The exact Fisher of {type(self.distribution).__name__} is not known: define without_graph "
            f"of {type(self).__name__}."
        )

    def kl(self, new: DistributionLikelihood[Of]) -> Tensor:
        """``KL(self || new)``, nats, summed over all but the samples."""
        divergence = kl_divergence(self.distribution, new.distribution)
        return divergence.reshape(len(divergence), -1).sum(1).mean()


@likelihood_of.register(Independent)
class IndependentLikelihood(DistributionLikelihood[Any]):
    """``Independent`` only says which dimensions belong to one event; the log-likelihood is the sum."""

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw those of the base."""
        return likelihood_of(self.distribution.base_dist).cotangents(estimator)

    def without_graph(self, samples: Tensor | slice) -> Independent[Any]:
        """Return the same of a base without its graph."""
        base = detached(self.distribution.base_dist, samples)
        return Independent(base, self.distribution.reinterpreted_batch_ndims, validate_args=False)


@likelihood_of.register(Categorical)
class CategoricalLikelihood(DistributionLikelihood[Categorical]):
    """Logits: ``H = diag(p) - p p'``, one root of which is ``v = sqrt(p) r - p (sqrt(p)' r)``."""

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw ``e_y - p``, or the root."""
        logits = self.distribution.logits
        probs = logits.detach().softmax(-1)
        if estimator == "monte-carlo":
            samples = self.distribution.sample().unsqueeze(-1)
            cotangent = torch.zeros_like(probs).scatter_(-1, samples, 1.0).sub_(probs)
        else:
            signed_root = probs.sqrt() * random_signs(probs)
            cotangent = signed_root - probs * signed_root.sum(-1, keepdim=True)
        return [OutputCotangent(logits, cotangent, None)]

    def without_graph(self, samples: Tensor | slice) -> Categorical:
        """Return the same of logits without their graph."""
        return Categorical(logits=self.distribution.logits.detach()[samples], validate_args=False)


@likelihood_of.register(OneHotCategorical)
class OneHotLikelihood(DistributionLikelihood[OneHotCategorical]):
    """A ``Categorical`` that says its outcomes in another way."""

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw those of the ``Categorical``."""
        return likelihood_of(Categorical(logits=self.distribution.logits)).cotangents(estimator)

    def without_graph(self, samples: Tensor | slice) -> OneHotCategorical:
        """Return the same of logits without their graph."""
        return OneHotCategorical(logits=self.distribution.logits.detach()[samples], validate_args=False)


@likelihood_of.register(Bernoulli)
class BernoulliLikelihood(DistributionLikelihood[Bernoulli]):
    """Logits: ``H = diag(p (1 - p))``."""

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw ``y - p``, or the root."""
        logits = self.distribution.logits
        probs = logits.detach().sigmoid()
        root = (probs * (1.0 - probs)).sqrt()
        if estimator == "monte-carlo":
            cotangent = self.distribution.sample() - probs
        else:
            cotangent = root * random_signs(root)
        return [OutputCotangent(logits, cotangent, None)]

    def without_graph(self, samples: Tensor | slice) -> Bernoulli:
        """Return the same of logits without their graph."""
        return Bernoulli(logits=self.distribution.logits.detach()[samples], validate_args=False)


@likelihood_of.register(Normal)
class NormalLikelihood(DistributionLikelihood[Normal]):
    """Mean and standard deviation: ``H = diag(1 / sigma^2)`` and ``diag(2 / sigma^2)``.

    In the logarithm of sigma the second is exactly 2 per dimension.
    """

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw them for those of the two that have a graph."""
        mean, std = self.distribution.loc, self.distribution.scale
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

    def without_graph(self, samples: Tensor | slice) -> Normal:
        """Return the same of a mean and a deviation without their graph."""
        mean, std = self.distribution.loc.detach(), self.distribution.scale.detach()
        return Normal(mean[samples], std[samples], validate_args=False)
