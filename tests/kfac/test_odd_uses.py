"""Unusual uses of parameters against the dense Fisher, in float64: as Kronecker blocks, and diagonal."""

import pytest
import torch
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.diagonal import DiagonalBlock

from . import oracle
from .models import inputs
from .odd_models import ODD
from .test_ekfac import eigenbasis

SIGMA = 0.7


@pytest.mark.parametrize("approximation", ["ekfac", "diagonal"])
@pytest.mark.parametrize("model", ODD.values(), ids=ODD)
def test_diagonals_and_moments_are_those_of_the_exact_fisher(model, approximation, observe):
    net, x = model.build(), inputs(model)
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian(SIGMA))
    kfac = KFAC(net, lr=0.0, curvature=Curvature(approximation=approximation, stat_decay=1.0))
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=2)
    net(x).square().mean().backward()
    kfac.step()  # makes the basis, and moves nothing
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=2)

    blocks = kfac._all_blocks()
    held = [name for block in blocks for _, name in block.spec.params]
    assert sorted(held) == sorted(dict(net.named_parameters()))
    if approximation == "ekfac":
        assert {b.name for b in blocks if isinstance(b, DiagonalBlock)} == set(model.diagonal)
    for block in blocks:
        exact = oracle.block_of(fisher, net, block)
        if isinstance(block, KroneckerBlock):
            basis = eigenbasis(block)
            expected, found = (basis.T @ exact @ basis).diagonal(), block.moments.flatten()
        else:
            expected, found = exact.diagonal(), torch.cat(block.average.values)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
