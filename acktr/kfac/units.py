"""Averages of the Fisher, brought to other units."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from acktr.kfac.optimizer import KFAC


@torch.no_grad()
def scale_fisher(kfac: KFAC, params: Iterable[Tensor], factor: float) -> None:
    """Multiply the running averages of some layers, so that their Fisher is ``factor`` times as large.

    For a likelihood or a parametrisation whose units change while training goes on: what was averaged
    before is then of the new units too. Inverses follow when they are next made.

    :param kfac: the optimiser
    :param params: of the layers; one of a layer is enough
    :param factor: above 0
    """
    wanted = {id(p) for p in params}
    kfac.factors()  # waits for the statistics of other processes
    for block in kfac._all_blocks():
        if block.ready and any(id(p) in wanted for p in block.all_params.values()):
            block.scale(factor)
