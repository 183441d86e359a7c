"""K-FAC for PyTorch: the natural gradient of any module, inside a KL trust region."""

from acktr.kfac.graphs import Graphs
from acktr.kfac.layers import (
    ConvolutionLayer,
    DiagonalLayer,
    KroneckerLayer,
    NormalizationLayer,
    register_layer,
)
from acktr.kfac.optimizer import KFAC
from acktr.kfac.trust_region import StepInfo

__all__ = [
    "KFAC",
    "ConvolutionLayer",
    "DiagonalLayer",
    "Graphs",
    "KroneckerLayer",
    "NormalizationLayer",
    "StepInfo",
    "register_layer",
]
