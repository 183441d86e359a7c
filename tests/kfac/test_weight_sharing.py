"""What the positions of a layer do together: "expand" and "reduce" where each of them is exact."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC

from . import oracle


class SumOverPositions(nn.Module):
    def forward(self, x):
        return x.flatten(2).sum(-1)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"bias": False}, {"stride": 2, "padding": 1}])
def test_reduce_is_exact_where_the_positions_are_summed(options, observe):
    """Eschenhagen et al. 2023, sec. 3.2: all positions have the same output gradient."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, **options), SumOverPositions())
    x = torch.randn(3, 2, 5, 6)
    exact = oracle.dense_fisher(net, x, oracle.gaussian(0.7))
    blocks = {}
    for sharing in ("expand", "reduce"):
        kfac = KFAC(net, stat_decay=1.0, weight_sharing=sharing)
        observe(kfac, lambda: [Normal(net(x), 0.7)])
        blocks[sharing] = kfac.fisher_blocks()["0"]
    block = oracle.layer_block(exact, net, "0", groups=options.get("groups", 1))
    block = torch.block_diag(*block) if block.ndim == 3 else block
    torch.testing.assert_close(blocks["reduce"], block, rtol=0, atol=1e-11)
    assert (blocks["expand"] - block).abs().max() > 0.1 * block.abs().max()


def test_a_sequence_of_tokens_is_reduced_too(observe):
    linear, x = nn.Linear(3, 2), torch.randn(4, 7, 3)
    kfac = KFAC(linear, stat_decay=1.0, weight_sharing="reduce")
    observe(kfac, lambda: [Normal(linear(x).sum(1), 1.0)])
    A, S = kfac.factors()[""]
    mean = torch.cat([x.mean(1), torch.ones(4, 1)], 1)
    torch.testing.assert_close(A, mean.T @ mean / 4)
    torch.testing.assert_close(S, 49 * torch.eye(2))


def test_without_positions_both_are_the_same(observe):
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    factors = []
    for sharing in ("expand", "reduce"):
        kfac = KFAC(linear, stat_decay=1.0, weight_sharing=sharing)
        observe(kfac, lambda: [Normal(linear(x), 1.0)])
        factors.append(kfac.factors()[""])
    torch.testing.assert_close(*factors, rtol=0, atol=0)
