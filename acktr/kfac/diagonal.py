"""The block of parameters that have no Kronecker block, or are told to have none: its diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acktr.kfac.blocks import Block
from acktr.kfac.graph import Site
from acktr.kfac.samples import (
    Batch,
    sample_gradients,
    second_moments,
    squares_of_products,
    use_by_sample,
)
from acktr.kfac.uses import ElementwiseUse, Used


class DiagonalBlock(Block):
    """The diagonal of the Fisher, one running average for each parameter of the block."""

    def statistics(self, uses: Sequence[tuple[str, Used, Site]], batch: Batch) -> tuple[Tensor, ...]:
        """Return the mean square of the gradients sample by sample, summed over all uses.

        :param uses: of each parameter by its name in the block
        """
        squares = []
        for name, p in self.params.items():
            own = [(used, site) for key, used, site in uses if key == name]
            if own and all(isinstance(used.use, ElementwiseUse) for used, _ in own):
                square = sample_gradients(own, p, batch.samples).to(self.like).square().sum(0)
            elif own:
                square = self._of_products(own, p.detach().to(self.like), batch.samples)
            else:
                square = torch.zeros_like(p)
            squares.append(square / batch.units)
        return self.flat(squares)

    @staticmethod
    def _of_products(own: Sequence[tuple[Used, Site]], p: Tensor, samples: int) -> Tensor:
        (form, *others) = {used.form for used, _ in own}
        if others or form is None or not form.fits(p.numel()):
            return squares_of_products(own, p, samples)
        rows = [use_by_sample(used, samples, form.shape[-2], None) for used, _ in own]
        same = [(a.to(p) if a.is_floating_point() else a, g.to(p), whole) for a, g, whole in rows]
        return form.from_matrix(second_moments(same, 1.0, form.shape[-1], p.dtype), p.shape)

    @staticmethod
    def flat(squares: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return mean squares, in the order of ``params``, as they are averaged."""
        return tuple(square.reshape(-1) for square in squares)

    def precondition(self, grads: Sequence[Tensor], damping: float) -> list[Tensor]:
        """``g / (F + lambda)``."""
        return [g / (f.view_as(g) + damping) for g, f in zip(grads, self.average.values, strict=True)]

    def quadratic(self, steps: Sequence[Tensor]) -> Tensor:
        """``sum F D^2``."""
        pairs = zip(steps, self.average.values, strict=True)
        return torch.stack([(f * d.reshape(-1).square()).sum() for d, f in pairs]).sum()

    def shapes(self, params: dict[str, nn.Parameter]) -> list[tuple[int, ...]]:
        """Return the lengths of the diagonals."""
        return [(p.numel(),) for p in params.values()]

    def dense(self) -> Tensor:
        """Return a diagonal matrix over the block's parameters, flattened in order."""
        return torch.diag(torch.cat(self.average.values))
