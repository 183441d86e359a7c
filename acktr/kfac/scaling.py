"""Exact Fisher rescaling of step and momentum (Martens & Grosse 2015, sec. 6.4 and 7).

K-FAC's blocks give a good direction and a poor length. Along the direction x, and along the step before,
the exact Fisher F of the batch costs two products, and the quadratic model of the loss

    m(D) = -g' D + D' (F + lambda I) D / 2

for a step ``-D`` has its minimum over ``D = alpha x + mu v`` where

    [x'Bx  x'Bv] [alpha]   [g'x]
    [x'Bv  v'Bv] [ mu  ] = [g'v],    B = F + lambda I.

No coefficient of momentum is left to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Candidate(NamedTuple):
    """A direction that a step may go along, and its product with the exact Fisher, ``(P,)`` each."""

    direction: Tensor
    fisher: Tensor

    def plus(self, other: Candidate, weight: Tensor) -> Candidate:
        """Add another one, weighted, with its product."""
        return Candidate(*(x + weight * y for x, y in zip(self, other, strict=True)))


def best_mix(candidates: Sequence[Candidate], gradient: Tensor, damping: float | Tensor) -> Candidate:
    """Minimise the quadratic model over what directions span.

    The directions are made conjugate one after the other (Gram-Schmidt in the metric of B), after which
    each has its own best length: the solution of the system above, without a matrix.

    :param candidates: the first of them is taken with its own length where it meets no curvature; any
        other is left out where those before it already span it
    :param gradient: g, ``(P,)``
    :param damping: lambda
    """
    conjugate: list[tuple[Candidate, Tensor, Tensor]] = []  # with B times it, and its size u' B u
    rest = torch.finfo(gradient.dtype).eps ** 0.5  # what is smaller than this is rounding
    for candidate in candidates:
        size = _size(candidate, damping)
        for other, image, other_size in conjugate:
            share = torch.where(other_size > 0, candidate.direction @ image / other_size, 0.0)
            candidate = candidate.plus(other, -share)
        image = candidate.fisher + damping * candidate.direction
        left = candidate.direction @ image
        conjugate.append((candidate, image, torch.where(left > rest * size, left, 0.0)))
    (first, _, size), *others = conjugate
    mix = first.plus(first, torch.where(size > 0, gradient @ first.direction / size, 1.0) - 1.0)
    for other, _, size in others:
        mix = mix.plus(other, torch.where(size > 0, gradient @ other.direction / size, 0.0))
    return mix


def _size(candidate: Candidate, damping: float | Tensor) -> Tensor:
    return candidate.direction @ (candidate.fisher + damping * candidate.direction)
