"""K-FAC for PyTorch: the natural gradient of any module, inside a KL trust region."""

from acktr.kfac.graphs import Graphs
from acktr.kfac.losses import CrossEntropy, SquaredError
from acktr.kfac.optimizer import KFAC
from acktr.kfac.trust_region import StepInfo

__all__ = [
    "KFAC",
    "CrossEntropy",
    "Graphs",
    "SquaredError",
    "StepInfo",
]
