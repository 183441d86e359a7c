"""Training in several processes: which one this is, and what they tell each other.

Started by ``torchrun``, each process (rank) steps environments of its own and all update the same model.
What they share beside K-FAC's part (:mod:`acktr.kfac.comm`): losses and the measured KL, which decide
about steps; the mean and spread of advantages; normalisation statistics; and whether to stop. Without
a launcher every function here is that of the one process there is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from acktr.errors import ConfigurationError, DivergenceError
from acktr.kfac import KFAC
from acktr.kfac.comm import Comm, comm_of, wait
from acktr.kfac.reducer import Reducer

TIMEOUT_VARIABLE = "ACKTR_TIMEOUT"
TIMEOUT_SECONDS = 120.0  # an evaluation of the first rank, for which the others wait, must fit in

# What a rank tells the others after a rollout; the greatest rules.
GO_ON, STOP, FAILED = range(3)
Flags = tuple[bool, ...]


def start(device: str = "auto") -> bool:
    """Join the processes that a launcher has started; once is enough.

    :param device: where the model will be: NCCL where that is CUDA, else gloo
    :return: whether there is more than one
    :raises ConfigurationError: an environment variable of the launcher, or the timeout, is wrong
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    if dist.is_initialized():
        return size() > 1
    try:
        own, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        timeout = timedelta(seconds=float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS)))
        host, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"The launcher's variables cannot be used ({error}): RANK, WORLD_SIZE and MASTER_PORT must "
            f"be whole numbers, and {TIMEOUT_VARIABLE} seconds; start with torchrun."
        ) from error
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    server = own == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # Its functions hold the default group for good (as a default argument) if they come after it, which
    # they do when the first optimiser is built; see `joined`.
    importlib.import_module("torch.distributed.nn")
    store = dist.TCPStore(host, port, world, is_master=server, timeout=timeout)
    # Each restart speaks under a name of its own: what a killed rank has left in the store would
    # otherwise be taken for an answer.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    run = os.environ.get("TORCHELASTIC_RUN_ID", "acktr")
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"{run}/{attempt}", store),
        rank=own,
        world_size=world,
        timeout=timeout,
    )
    return world > 1


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """:func:`start`, and leave the group at the end, after an error too; one that was there stays.

    The threads of a group that is still there when the interpreter shuts down can abort the process,
    which then has another exit code (PyTorch's issue 190489).
    """
    was_started = _is_started()
    start(device)
    try:
        yield
    finally:
        if _is_started() and not was_started:
            dist.destroy_process_group()


def restarted() -> bool:
    """Whether a launcher has started this process in the place of one that ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def group() -> Any:
    """Return the process group for :class:`acktr.kfac.KFAC`; ``None`` for one process."""
    return dist.group.WORLD if _is_started() else None


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _is_started() else 0


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _is_started() else 1


def ranks_on_this_machine() -> int:
    """Return how many processes the launcher has started here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _is_started() -> bool:
    return dist.is_available() and dist.is_initialized()


def mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, detached."""
    return comm_of(group()).mean(value.detach())


def mean_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Average the gradients of an optimiser and the loss over all ranks, in one message.

    :return: the mean of the loss, detached
    """
    if isinstance(optimizer, KFAC):
        return optimizer.synchronize(loss)[0]
    params = [p for g in optimizer.param_groups for p in g["params"]]
    return Reducer(comm_of(group())).mean(params, [loss.detach()])[0]


def moments(values: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Begin to compute the mean and the standard deviation of values over all ranks.

    :param values: ``(B,)``; the same B on all ranks
    :return: waits, and returns both, 0-dim tensors
    """
    if size() == 1:
        return lambda: (values.mean(), values.std())
    own = torch.zeros(size(), 2, dtype=values.dtype, device=values.device)
    own[rank(), 0] = values.mean()
    own[rank(), 1] = (values - values.mean()).square().sum()
    finish = comm_of(group()).sum_together([own])

    def combine() -> tuple[Tensor, Tensor]:
        # Chan, Golub & LeVeque 1979, for parts of one size.
        means, squares = finish()[0].unbind(1)
        between = len(values) * (means - means.mean()).square().sum()
        return means.mean(), ((squares.sum() + between) / (len(values) * size() - 1)).sqrt()

    return combine


def share_parameters(module: torch.nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first."""
    with torch.no_grad():
        comm_of(group()).broadcast([*module.parameters(), *module.buffers()], 0)


def vote(state: int, flags: Flags, moments: SharedMoments | None = None) -> tuple[int, Flags]:
    """Tell the others whether to go on, and hear what all together say.

    :param state: ``GO_ON``, ``STOP`` or ``FAILED``
    :param flags: what this rank has seen, in the same message
    :param moments: to merge in the same message, if all go on
    :return: the greatest state, and for each flag whether it is true on any rank
    :raises DivergenceError: another rank has failed while this one has not
    """
    if size() == 1:
        return state, flags
    talk = comm_of(group())
    table = torch.zeros(size(), 1 + len(flags), dtype=torch.float64, device=_device())
    table[rank()] = torch.tensor([state, *flags])
    finish = talk.sum_together([table])
    merge = moments.begin_to_merge(talk) if moments is not None else None
    rows = finish()[0].tolist()
    found = [int(row[0]) for row in rows]
    if max(found) == FAILED and state != FAILED:
        failed = [i for i, s in enumerate(found) if s == FAILED]
        raise DivergenceError(
            f"Rank {', '.join(map(str, failed))} of {size()} failed, so this one stopped before the "
            "update: its own message says why."
        )
    if merge is not None and max(found) == GO_ON:
        merge()
    return max(found), tuple(any(row[i] for row in rows) for i in range(1, 1 + len(flags)))


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is true on any rank."""
    if size() == 1:
        return flags
    both = torch.tensor(flags, dtype=torch.int64, device=_device())
    wait(dist.all_reduce(both, dist.ReduceOp.MAX, async_op=True), both)
    return tuple(bool(x) for x in both.tolist())


def gather(own: bytes) -> list[bytes]:
    """Return the bytes of all ranks, in their order."""
    if size() == 1:
        return [own]
    lengths = torch.zeros(size(), dtype=torch.int64, device=_device())
    lengths[rank()] = len(own)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = torch.frombuffer(bytearray(own.ljust(longest + 1, b"\0")), dtype=torch.uint8).to(_device())
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    pairs = zip(parts, lengths.tolist(), strict=True)
    return [part[:length].cpu().numpy().tobytes() for part, length in pairs]


class SharedMoments:
    """Running means and variances that all ranks feed: merged after each rollout.

    Between two merges each rank goes on from the same moments with what it sees itself. A merge takes
    what each has added since (the inverse of the update of Chan, Golub & LeVeque 1979) and adds all of
    it up in the order of ranks, so that all hold the same bits. All begin with those of the first.

    :param env: its moments are shared; nothing happens without any
    """

    def __init__(self, env: VecNormalize | None) -> None:
        self.env = env
        self._moments = list(_moments(env)) if size() > 1 else []
        self._agreed = [_values(m) for m in self._moments]
        if self._moments:
            tables = self._gather(self._agreed, comm_of(group()))()
            self._agree([table[0] for table in tables])

    def begin_to_merge(self, talk: Comm) -> Callable[[], None]:
        """Begin to give all ranks the moments of everything that all have seen.

        :param talk: what goes with it in one message is queued there
        :return: waits, and does it
        """
        if not self._moments:
            return lambda: None
        now = [_values(m) for m in self._moments]
        added = [_difference(n, b) for n, b in zip(now, self._agreed, strict=True)]
        finish = self._gather(added, talk)

        def merge() -> None:
            gathered = zip(self._agreed, finish(), strict=True)
            self._agree([functools.reduce(_sum, parts, before) for before, parts in gathered])

        return merge

    def _gather(self, own: list[Moments], talk: Comm) -> Callable[[], list[list[Moments]]]:
        """Begin to fetch the moments of all ranks, by what they are of."""
        flat = torch.from_numpy(np.concatenate([part for moments in own for part in moments]))
        table = torch.zeros(size(), len(flat), dtype=torch.float64, device=_device())
        table[rank()] = flat
        finish = talk.sum_together([table])
        ends = np.cumsum([len(part) for moments in own for part in moments])[:-1]

        def read() -> list[list[Moments]]:
            rows = [np.split(row, ends) for row in finish()[0].cpu().numpy()]
            return [[(r[i], r[i + 1], r[i + 2]) for r in rows] for i in range(0, 3 * len(own), 3)]

        return read

    def _agree(self, values: list[Moments]) -> None:
        self._agreed = values
        for moments, (count, mean_, variance) in zip(self._moments, values, strict=True):
            shape = np.shape(moments.mean)
            moments.count = float(count[0])
            moments.mean = mean_.reshape(shape)
            moments.var = variance.reshape(shape)


# Count (1,), mean (D,) and variance (D,), as the environment holds them: a run that is resumed begins
# with the very bits that all had agreed on.
Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


def _moments(env: VecNormalize | None) -> Iterator[RunningMeanStd]:
    if env is not None:
        yield env.ret_rms
        if env.norm_obs:
            found: Any = env.obs_rms
            yield from found.values() if isinstance(found, dict) else [found]


def _values(moments: RunningMeanStd) -> Moments:
    mean_, variance = (np.asarray(x, np.float64).reshape(-1) for x in (moments.mean, moments.var))
    return np.array([float(moments.count)]), mean_, variance


def _sum(a: Moments, b: Moments) -> Moments:
    if b[0][0] <= 0:
        return a
    count = a[0] + b[0]
    delta = b[1] - a[1]
    squares = a[2] * a[0] + b[2] * b[0] + delta**2 * a[0] * b[0] / count
    return count, a[1] + delta * b[0] / count, squares / count


def _difference(total: Moments, before: Moments) -> Moments:
    """What was added to ``before`` to make ``total``."""
    count = total[0] - before[0]
    if count[0] <= 0:
        return np.zeros(1), np.zeros_like(total[1]), np.zeros_like(total[2])
    mean_ = (total[1] * total[0] - before[1] * before[0]) / count
    delta = mean_ - before[1]
    squares = total[2] * total[0] - before[2] * before[0] - delta**2 * before[0] * count / total[0]
    return count, mean_, np.maximum(squares, 0.0) / count


def check_same(params: Iterable[Tensor]) -> None:
    """Compare the parameters of all ranks bit by bit.

    :param params: of the model
    :raises DivergenceError: they are not the same; names no parameter, only that it happened
    """
    if size() == 1:
        return
    digest = hashlib.sha256()
    for p in params:
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64).clone().to(_device())
    low, high = own.clone(), own.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise DivergenceError(
            "The ranks hold different parameters: they must run the same code, with the same versions, "
            "on machines that round alike; go on from the last checkpoint."
        )


def own_seed(seed: int, n_envs: int) -> int:
    """Return the seed of this rank, whose environments then start unlike those of the others.

    :param seed: of the run
    :param n_envs: environments of each rank
    """
    return seed + rank() * n_envs


def _device() -> torch.device:
    """Where tensors must be to travel."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
