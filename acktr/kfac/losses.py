"""The likelihoods of two losses, for models whose outputs are no :mod:`torch.distributions`.

``F.cross_entropy`` is the negative log-likelihood of a categorical distribution, ``F.mse_loss`` that of
a Gaussian of variance 1/2. Both are means over what counts, and so are these: the Fisher and the KL are
in the units of the loss, one position of a sequence (or one entry of an output) each. What is left out
of the loss is left out of the curvature: its rows are in neither factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from acktr.kfac.likelihood import ALL, Likelihood, OutputCotangent, detached, likelihood_of

REDUCTIONS = ("mean", "batchmean")


class _Masked(Likelihood):
    """Of a distribution with some outputs left out.

    :param distribution: of the outputs, with batch dimensions ``(N, ...)``
    :param counted: which of them count, ``(N, ...)`` bool; ``None`` for all
    :param reduction: what the loss averages over: ``"mean"`` all that counts, ``"batchmean"`` the N
        samples, each the sum of what counts of it
    """

    def __init__(self, distribution: Distribution, counted: Tensor | None, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
        self._distribution = distribution
        self._counted = counted
        self._reduction = reduction
        self.partial = counted is not None

    @property
    def samples(self) -> int:
        """N."""
        return int(self._distribution.batch_shape[0])

    @property
    def units(self) -> float | Tensor:
        """How many outputs count, or N with ``"batchmean"``."""
        if self._reduction == "batchmean":
            return self.samples
        if self._counted is None:
            return math.prod(self._distribution.batch_shape)
        return self._counted.sum()

    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        """Draw the distribution's; those of what is left out are 0."""
        pairs = likelihood_of(self._distribution).cotangents(estimator)
        if self._counted is None:
            return pairs
        # Where nothing counts there is no curvature to average in: what is not finite is refused.
        none = torch.where(self._counted.any(), 0.0, math.nan)
        found = []
        for output, cotangent, root in pairs:
            counted = self._counted
            if output.ndim > counted.ndim:  # the classes
                counted = counted.unsqueeze(-1)
            found.append(OutputCotangent(output, torch.where(counted, cotangent, none.to(output)), root))
        return found

    def detached(self, samples: Tensor | slice = ALL) -> _Masked:
        """Return the same without its graph."""
        counted = None if self._counted is None else self._counted[samples]
        return _Masked(detached(self._distribution, samples), counted, self._reduction)

    def kl(self, new: _Masked) -> Tensor:
        """``KL(self || new)`` of what counts, over ``units``."""
        divergence = kl_divergence(self._distribution, new._distribution)
        if self._counted is not None:
            divergence = torch.where(self._counted, divergence, 0.0)
        return divergence.sum() / self.units


class CrossEntropy(_Masked):
    """Outputs of a classifier whose loss is ``F.cross_entropy(logits, targets)``.

    ::

        kfac.update_curvature(CrossEntropy(logits))  # (N, C)
        kfac.update_curvature(CrossEntropy(logits, targets, ignore_index=0))  # (N, T, C) or (N, C, T)

    :param logits: ``(N, C)``, or at each position ``(N, T, C)`` or ``(N, C, T)``, with more axes of
        positions if there are any
    :param targets: class indices, ``(N,)`` or ``(N, T)``; needed only to know what is ignored
    :param ignore_index: targets that the loss leaves out
    :param mask: bool, of the shape of the targets: what counts
    :param reduction: what the loss averages over: ``"mean"`` all positions that count, as
        ``F.cross_entropy`` does; ``"batchmean"`` the samples, as for a log-likelihood of whole sequences
    :param class_dim: axis of the classes; found by the shape of targets or mask
    :raises ValueError: shapes that do not fit, or leave the axis of the classes open
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Tensor | None = None,
        *,
        ignore_index: int = -100,
        mask: Tensor | None = None,
        reduction: str = "mean",
        class_dim: int | None = None,
    ) -> None:
        like = targets if targets is not None else mask
        axis = _class_axis(logits, like, class_dim)
        logits = logits.movedim(axis, -1)
        for name, given in (("targets", targets), ("mask", mask)):
            if given is not None and given.shape != logits.shape[:-1]:
                raise ValueError(
                    f"{name} must have the shape {tuple(logits.shape[:-1])} of the logits without their "
                    f"classes, got {tuple(given.shape)}."
                )
        counted = None if mask is None else _bool(mask)
        if targets is not None:
            seen = targets != ignore_index
            counted = seen if counted is None else counted & seen
        super().__init__(Categorical(logits=logits, validate_args=False), counted, reduction)


def _bool(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where an output counts, got {mask.dtype}.")
    return mask


def _class_axis(logits: Tensor, like: Tensor | None, class_dim: int | None) -> int:
    """Return which axis of the logits is that of the classes."""
    shape = tuple(logits.shape)
    if class_dim is not None:
        if class_dim not in range(-len(shape) + 1, len(shape)) or class_dim == 0:
            raise ValueError(
                f"class_dim must be an axis of the logits, {shape}, other than that of the samples, got "
                f"{class_dim!r}."
            )
        return class_dim % len(shape)
    if logits.ndim == 2:
        return 1
    fits = []
    if like is not None:
        fits = [i for i in (1, len(shape) - 1) if shape[:i] + shape[i + 1 :] == tuple(like.shape)]
    if len(fits) != 1:
        raise ValueError(
            f"Logits of shape {shape} do not say which axis is that of the classes: pass class_dim=-1 "
            "for (N, T, C), or class_dim=1 for (N, C, T)."
        )
    return fits[0]


class SquaredError(_Masked):
    """Outputs of a regressor whose loss is ``F.mse_loss(outputs, targets)``.

    Its Fisher in an output is 2, over the number of entries: the Hessian of that loss. The KL of two of
    them is the mean of their squared difference.

    :param outputs: ``(N, ...)``
    :param mask: bool, ``(N, ...)`` with as many axes as there are, or fewer: what counts
    :param reduction: what the loss averages over: ``"mean"`` all entries that count, as ``F.mse_loss``
        does; ``"batchmean"`` the samples, each the sum over its entries
    :raises ValueError: a mask that does not fit, or is not bool
    """

    def __init__(self, outputs: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> None:
        counted = None
        if mask is not None:
            if mask.shape != outputs.shape[: mask.ndim]:
                raise ValueError(
                    f"mask must have the first axes of the outputs, {tuple(outputs.shape)}, got "
                    f"{tuple(mask.shape)}."
                )
            rest = [1] * (outputs.ndim - mask.ndim)
            counted = _bool(mask).view(*mask.shape, *rest).expand_as(outputs)
        std = torch.full_like(outputs, 0.5**0.5)
        super().__init__(Normal(outputs, std, validate_args=False), counted, reduction)
