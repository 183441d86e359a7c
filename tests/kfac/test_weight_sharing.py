"""What the positions of a layer do together: "expand" and "reduce" where each of them is exact."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.graph import Sites, trace
from acktr.kfac.uses import Use, read

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
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0, weight_sharing=sharing))
        observe(kfac, lambda: [Normal(net(x), 0.7)])
        blocks[sharing] = kfac.fisher_blocks()["0"]
    block = oracle.layer_block(exact, net, "0", groups=options.get("groups", 1))
    block = torch.block_diag(*block) if block.ndim == 3 else block
    torch.testing.assert_close(blocks["reduce"], block, rtol=0, atol=1e-11)
    assert (blocks["expand"] - block).abs().max() > 0.1 * block.abs().max()


def test_a_sequence_of_tokens_is_reduced_too(observe):
    linear, x = nn.Linear(3, 2), torch.randn(4, 7, 3)
    kfac = KFAC(linear, curvature=Curvature(stat_decay=1.0, weight_sharing="reduce"))
    observe(kfac, lambda: [Normal(linear(x).sum(1), 1.0)])
    A, S = kfac.factors()[""]
    mean = torch.cat([x.mean(1), torch.ones(4, 1)], 1)
    torch.testing.assert_close(A, mean.T @ mean / 4)
    torch.testing.assert_close(S, 49 * torch.eye(2))


def test_without_positions_both_are_the_same(observe):
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    factors = []
    for sharing in ("expand", "reduce"):
        kfac = KFAC(linear, curvature=Curvature(stat_decay=1.0, weight_sharing=sharing))
        observe(kfac, lambda: [Normal(linear(x), 1.0)])
        factors.append(kfac.factors()[""])
    torch.testing.assert_close(*factors, rtol=0, atol=0)


CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(2, 3, 4, stride=3), (2, 14)),
    "stride": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3)), (2, 9, 8)),
    "padding": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2)), (2, 5, 4)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 5, 4)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=(2, 3), stride=2), (2, 7, 9)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1)), (2, 4, 7, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=1), (2, 4, 3)),
    "transposed-groups": (lambda: nn.ConvTranspose1d(4, 6, 3, dilation=2, groups=2), (4, 5)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("build", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_reduced_rows_are_the_means_of_the_patches(build, shape, channels_last):
    module, x = build(), torch.randn(5, *shape)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    graph = trace([out := module(x)])
    sites = list(Sites(graph, lambda _: True, 5))
    (site,) = [s for s in sites if s.parameter is module.weight]
    use, grads = read(graph.nodes[site.node], site), torch.randn_like(out)
    fast, plain = use.reduced(grads), Use.reduced(use, grads)
    for mine, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
