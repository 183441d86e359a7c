"""K-FAC for PyTorch: the natural gradient of any module, inside a KL trust region."""

from acktr.kfac.cuda_graphs import Graphs
from acktr.kfac.losses import CrossEntropy, SquaredError
from acktr.kfac.optimizer import KFAC
from acktr.kfac.options import Curvature, Periods, StepRule
from acktr.kfac.trust_region import StepInfo

__all__ = [
    "KFAC",
    "CrossEntropy",
    "Curvature",
    "Graphs",
    "Periods",
    "SquaredError",
    "StepInfo",
    "StepRule",
]
