"""One convolution under a Gaussian at each location: A kron S is the exact Fisher."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature

from . import oracle

CONV2D = {
    "plain": {},
    "no-bias": {"bias": False},
    "1x1": {"kernel_size": 1},
    "oblong": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1)},
    "stride": {"stride": 2},
    "stride-beyond-kernel": {"kernel_size": 1, "stride": 2},
    "dilation": {"dilation": (1, 2)},
    "same": {"padding": "same", "dilation": 2},
    "same-even-kernel": {"padding": "same", "kernel_size": (2, 3)},
    "valid": {"padding": "valid"},
    "zeros": {"padding": 1, "stride": 2},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": (2, 1), "padding_mode": "circular", "dilation": 2},
    "same-reflect": {"padding": "same", "padding_mode": "reflect", "kernel_size": (2, 3)},
    "groups": {"groups": 2},
    "groups-no-bias": {"groups": 2, "bias": False, "padding": 1, "stride": 2},
    "depthwise": {"in_channels": 4, "out_channels": 8, "groups": 4, "kernel_size": 2},
    "all-at-once": {
        "groups": 2,
        "stride": 2,
        "dilation": 2,
        "padding": 2,
        "padding_mode": "circular",
        "bias": False,
    },
}
CONV1D = {
    "plain": {},
    "no-bias": {"bias": False, "stride": 2},
    "dilation": {"dilation": 2, "padding": 1},
    "same": {"padding": "same", "kernel_size": 4},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": 2, "padding_mode": "circular", "stride": 2},
    "groups": {"groups": 2, "padding": 1},
}
CASES = [(nn.Conv2d, (5, 6), options) for options in CONV2D.values()]
CASES += [(nn.Conv1d, (9,), options) for options in CONV1D.values()]
IDS = [f"conv2d-{name}" for name in CONV2D] + [f"conv1d-{name}" for name in CONV1D]


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize(("kind", "shape", "options"), CASES, ids=IDS)
def test_convolution_is_exact(kind, shape, options, observe):
    options = {"in_channels": 2, "out_channels": 4, "kernel_size": 3, **options}
    conv = nn.Sequential(kind(**options))
    x = torch.randn(3, options["in_channels"], *shape)
    kfac = KFAC(conv, curvature=Curvature(stat_decay=1.0))

    observe(kfac, lambda: [Normal(conv(x), 0.5)], columns="channels")

    groups = conv[0].groups
    a, s = kfac.factors()["0"]
    fisher = oracle.dense_fisher(conv, x, oracle.gaussian(0.5))
    exact = oracle.layer_block(fisher, conv, "0", groups)
    if groups == 1:
        torch.testing.assert_close(torch.kron(s, a), exact, rtol=1e-12, atol=1e-12)
    else:
        assert len(a) == len(s) == groups
        for block, a_group, s_group in zip(exact, a, s, strict=True):
            expected = torch.kron(s_group, a_group)
            torch.testing.assert_close(expected, block, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_does_not_matter(memory_format, observe):
    conv, x = nn.Sequential(nn.Conv2d(2, 3, 2)), torch.randn(4, 2, 3, 3)

    def factors(x):
        kfac = KFAC(conv, curvature=Curvature(stat_decay=1.0))
        observe(kfac, lambda: [Normal(conv(x), 1.0)], columns="channels")
        return kfac.factors()["0"]

    for got, expected in zip(factors(x.to(memory_format=memory_format)), factors(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
