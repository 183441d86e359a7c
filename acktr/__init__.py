"""ACKTR for PyTorch: natural-gradient reinforcement learning with Kronecker-factored curvature."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acktr.kfac import KFAC
    from acktr.learner.algorithm import ACKTR
    from acktr.learner.settings import AdamCritic, Natural, NaturalCritic
    from acktr.run.build import make

__version__ = version("acktr")
__all__ = ["ACKTR", "KFAC", "AdamCritic", "Natural", "NaturalCritic", "__version__", "make"]

_SETTINGS = "acktr.learner.settings"
_HOME = {
    "ACKTR": "acktr.learner.algorithm",
    "KFAC": "acktr.kfac",
    "make": "acktr.run.build",
    **dict.fromkeys(("Natural", "NaturalCritic", "AdamCritic"), _SETTINGS),
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `acktr --help` need not wait for torch, and acktr.kfac not for SB3.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'acktr' has no attribute {name!r}")
