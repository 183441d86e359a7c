"""What users choose of curvature: the words that there are, and what is said of layers by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

WEIGHT_SHARING = ("expand", "reduce")
RECURRENT = ("independent", "lgm-1", "lgm-2")
APPROXIMATIONS = ("kfac", "ekfac")
BY_NAME = ("diagonal", None)  # None leaves the parameters alone


class BlockOptions(NamedTuple):
    """The settings and helpers that all Kronecker blocks of an optimiser share.

    :param decay: rho of the running averages
    :param inverse: key of :data:`acktr.kfac.inverses.INVERSES`
    :param approximation: one of :data:`APPROXIMATIONS`
    :param weight_sharing: one of :data:`WEIGHT_SHARING`
    :param max_factor_size: wider factors are split into diagonal blocks; ``None`` for no bound,
        ``"auto"`` as :func:`acktr.kfac.factors.split_shape` has it
    :param statistics_dtype: of the products that make the factors; ``None`` for the weight's
    :param recurrent: one of :data:`RECURRENT`
    :param layers: by dotted name of a module or a parameter: one of :data:`BY_NAME`
    """

    decay: float
    inverse: str = "cholesky"
    approximation: str = "kfac"
    weight_sharing: str = "expand"
    max_factor_size: int | str | None = "auto"
    statistics_dtype: torch.dtype | None = None
    recurrent: str = "independent"
    layers: Mapping[str, str | None] = MappingProxyType({})

    def is_diagonal(self, name: str) -> bool:
        """Whether a parameter has a diagonal block because its name says so."""
        return said_of(name, self.layers, "") == "diagonal"

    def leaves_out(self, name: str) -> bool:
        """Whether a parameter is left alone because its name says so."""
        return said_of(name, self.layers, "") is None


def said_of(name: str, layers: Mapping[str, Any], default: Any) -> Any:
    """Return what is said of a parameter: by its own name, else by the nearest module around it."""
    while name not in layers:
        if not name:
            return default
        name = name.rpartition(".")[0]
    return layers[name]
