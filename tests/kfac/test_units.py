"""Running averages in other units: the Fisher of the layers asked for, and of no other."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.units import scale_fisher


@pytest.mark.parametrize("max_factor_size", [None, 3])
def test_the_fisher_of_the_layers_asked_for_is_so_many_times_as_large(max_factor_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    kfac = KFAC(model, curvature=Curvature(max_factor_size=max_factor_size))
    x = torch.randn(7, 4, dtype=torch.float64)
    with kfac.capture():
        mean = model(x)
    kfac.update_curvature(Normal(mean, 1.0))
    before = {name: block.clone() for name, block in kfac.fisher_blocks().items()}
    inputs = {name: values[0].clone() for name, values in kfac.factors().items()}
    scale_fisher(kfac, [model[0].weight, *model[1].parameters()], 0.25)
    for name, block in kfac.fisher_blocks().items():
        factor = 1.0 if name == "2" else 0.25
        torch.testing.assert_close(block, factor * before[name], atol=1e-14, rtol=1e-14)
    # The moments of the inputs have no unit of the likelihood.
    assert all(torch.equal(kfac.factors()[name][0], inputs[name]) for name in ("0", "2"))


def test_layers_without_statistics_are_left_alone():
    model = nn.Linear(2, 1)
    kfac = KFAC(model)
    scale_fisher(kfac, model.parameters(), 2.0)
    assert kfac.factors() == {}
