"""K-FAC for PyTorch: the natural gradient of any module, inside a KL trust region."""

from acktr.kfac.graphs import Graphs
from acktr.kfac.optimizer import KFAC
from acktr.kfac.trust_region import StepInfo

__all__ = [
    "KFAC",
    "Graphs",
    "StepInfo",
]
