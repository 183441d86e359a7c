"""The exact Fisher of the present batch, and conjugate gradients with K-FAC as the preconditioner.

The product ``F v`` needs no matrix: F is the Hessian of ``KL(old || new)`` at ``new = old``, so a second
backward pass through the gradient of that KL gives it (Pearlmutter 1994; Martens 2010; Schulman et al.
2015, TRPO, app. C). It sees what K-FAC leaves out: what layers do together, and what all samples have
in common. A handful of frames of one game are so alike that a single direction holds nine tenths of a
convolution's Fisher, and K-FAC, whose blocks have full rank, overshoots there by orders of magnitude.

:func:`solve` finds the natural gradient ``x`` of ``(F + K) x = g``, where K is K-FAC's damped matrix.
K does two things at once. It stands for the batches before, where TRPO adds a multiple of the identity;
and its inverse, as K-FAC has it at hand, is the preconditioner: ``K^-1 (F + K)`` is near a multiple of
the identity but for the few directions in which K-FAC is wrong, and each iteration mends about one of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.blocks import Block
from acktr.kfac.likelihood import likelihoods_of, mean_kl

Product = Callable[[Tensor], Tensor]


class FisherProduct:
    """``v -> F v`` with the exact Fisher of one batch, averaged over its samples.

    :param distributions: the model's outputs with their graph, which must live as long as this does;
        likelihoods, or what :func:`acktr.kfac.likelihood.likelihood_of` knows
    :param params: the parameters that F is about
    :param mean: see :func:`exact_natural_gradient`
    :raises TypeError: a distribution whose KL is not known
    :raises RuntimeError: the distributions do not depend on any of the parameters
    """

    def __init__(
        self,
        distributions: Sequence[Any],
        params: Sequence[Tensor],
        mean: Product = lambda v: v,
    ) -> None:
        new = likelihoods_of(distributions)
        old = [x.detached() for x in new]
        with torch.enable_grad():
            kl = mean_kl(old, new)
            try:
                gradients = torch.autograd.grad(kl, params, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise RuntimeError(
                    f"The exact Fisher needs the graph of its distributions ({_first_line(error)}): "
                    "call loss.backward(retain_graph=True) before a step with cg_iterations > 0 or "
                    "exact_scaling."
                ) from error
        self.params = list(params)
        self.mean = mean
        self.used = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.gradients = [g for g in gradients if g is not None and g.requires_grad]
        if not self.used:
            raise RuntimeError("The distributions do not depend on any parameter that is to be stepped.")

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply a vector ``(P,)`` of all parameters, flattened one after the other."""
        parts = split_like(vector, self.params)
        with torch.enable_grad():
            products = torch.autograd.grad(
                self.gradients,
                self.params,
                [parts[i].to(self.params[i]) for i in self.used],
                retain_graph=True,
                materialize_grads=True,
            )
        return self.mean(flatten(products).to(vector))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(" (")[0].rstrip(".")


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Put tensors one after the other into a vector ``(P,)``."""
    return torch.cat([x.reshape(-1) for x in tensors])


def split_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Undo :func:`flatten`."""
    parts = vector.split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]


def split_by_block(vector: Tensor, blocks: Sequence[Block]) -> list[list[Tensor]]:
    """Undo :func:`flatten` of the parameters of all blocks."""
    parts = iter(split_like(vector, [p for b in blocks for p in b.params.values()]))
    return [[next(parts) for _ in b.params] for b in blocks]


class Solution(NamedTuple):
    """The result of :func:`solve`.

    :param x: the natural gradient, ``(P,)``
    :param fisher_x: ``F x``, ``(P,)``, which comes for free
    :param residual: how much of the gradient is left unsolved, ``|r| / |g|`` in the norm of K^-1;
        ``None`` where nothing was to be solved
    """

    x: Tensor
    fisher_x: Tensor
    residual: Tensor | None


def solve(fisher: Product, precondition: Product, gradient: Tensor, iterations: int) -> Solution:
    """Solve ``(F + K) x = g`` by preconditioned conjugate gradients (Hestenes & Stiefel 1952).

    Because the preconditioner is ``K^-1``, nothing need multiply by K: each direction is a sum of
    ``z = K^-1 r``, and the same sum of the residuals r is its product with K.

    The number of iterations is fixed, so nothing waits for the device; what is solved exactly before
    that stays as it is.

    :param fisher: ``v -> F v``
    :param precondition: ``v -> K^-1 v``, symmetric and positive definite
    :param gradient: g, ``(P,)``
    :param iterations: at least 1
    """
    x = torch.zeros_like(gradient)
    fisher_x = torch.zeros_like(gradient)
    residual = damped_direction = gradient
    z = direction = precondition(residual)
    start = size = residual @ z
    for _ in range(iterations):
        fisher_direction = fisher(direction)
        image = fisher_direction + damped_direction
        # 0 / 0 once the residual has vanished: a step of length 0.
        length = torch.where(size > 0, size / (direction @ image), 0.0)
        x = x + length * direction
        fisher_x = fisher_x + length * fisher_direction
        residual = residual - length * image
        z = precondition(residual)
        new_size = residual @ z
        share = torch.where(size > 0, new_size / size, 0.0)
        direction = z + share * direction
        damped_direction = residual + share * damped_direction
        size = new_size
    return Solution(x, fisher_x, (size.clamp_min(0.0) / start).sqrt())


class NaturalGradient(NamedTuple):
    """Natural gradients by block and, where the exact Fisher had a part in them, what is known of it.

    :param directions: in the order of each block's parameters
    :param fisher: multiplies by the exact Fisher
    :param solution: the directions as one vector, and its product
    """

    directions: list[list[Tensor]]
    fisher: FisherProduct | None = None
    solution: Solution | None = None


def exact_natural_gradient(
    distributions: Sequence[Any],
    blocks: Sequence[Block],
    gradients: Sequence[Sequence[Tensor]],
    damping: float,
    iterations: int,
    mean: Product = lambda v: v,
) -> NaturalGradient:
    """Run :func:`solve` on the exact Fisher of all blocks together.

    :param distributions: the model's outputs with their graph
    :param blocks: K-FAC's blocks, with inverses
    :param gradients: of the loss, by block, in the order of the block's parameters
    :param damping: lambda of K
    :param iterations: of conjugate gradients
    :param mean: over the processes that have parts of the batch, ``(P,)``
    :raises RuntimeError: the graph of the distributions is gone, or holds none of the parameters
    """
    fisher = FisherProduct(distributions, [p for b in blocks for p in b.params.values()], mean)

    def precondition(vector: Tensor) -> Tensor:
        parts = zip(blocks, split_by_block(vector, blocks), strict=True)
        return flatten([x for block, part in parts for x in block.precondition(part, damping)])

    gradient = flatten([g for part in gradients for g in part])
    solution = solve(fisher, precondition, gradient, iterations)
    return NaturalGradient(split_by_block(solution.x, blocks), fisher, solution)
