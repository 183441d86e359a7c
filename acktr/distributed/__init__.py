"""Training in several processes: which one this is, and what they tell each other.

Started by ``torchrun``, each process (rank) steps environments of its own and all update the same model.
What they share beside K-FAC's part (:mod:`acktr.kfac.comm`): losses and the measured KL, which decide
about steps; the mean and spread of advantages; normalisation statistics; and whether to stop. Without
a launcher every function here is that of the one process there is.
"""

from acktr.distributed.launch import (
    TIMEOUT_SECONDS,
    TIMEOUT_VARIABLE,
    group,
    joined,
    own_seed,
    rank,
    ranks_on_this_machine,
    restarted,
    size,
    start,
)
from acktr.distributed.messages import (
    FAILED,
    GO_ON,
    STOP,
    Flags,
    any_of,
    check_same,
    gather,
    mean,
    mean_gradients,
    moments,
    share_parameters,
    vote,
)
from acktr.distributed.normalization import SharedMoments

__all__ = [
    "FAILED",
    "GO_ON",
    "STOP",
    "TIMEOUT_SECONDS",
    "TIMEOUT_VARIABLE",
    "Flags",
    "SharedMoments",
    "any_of",
    "check_same",
    "gather",
    "group",
    "joined",
    "mean",
    "mean_gradients",
    "moments",
    "own_seed",
    "rank",
    "ranks_on_this_machine",
    "restarted",
    "share_parameters",
    "size",
    "start",
    "vote",
]
