"""Messages between the processes of one training, besides those of K-FAC (:mod:`acktr.kfac.comm`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from acktr.distributed.launch import group, message_device, rank, size
from acktr.distributed.normalization import SharedMoments
from acktr.errors import DivergenceError
from acktr.kfac import KFAC
from acktr.kfac.comm import comm_of, wait
from acktr.kfac.reducer import Reducer

# What a rank tells the others after a rollout; the greatest rules.
GO_ON, STOP, FAILED = range(3)
Flags = tuple[bool, ...]


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
    """Vote with the other ranks on whether to go on.

    :param state: ``GO_ON``, ``STOP`` or ``FAILED``
    :param flags: what this rank has seen, in the same message
    :param moments: to merge in the same message, if all go on
    :return: the greatest state, and for each flag whether it is true on any rank
    :raises DivergenceError: another rank has failed while this one has not
    """
    if size() == 1:
        return state, flags
    talk = comm_of(group())
    table = torch.zeros(size(), 1 + len(flags), dtype=torch.float64, device=message_device())
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
    both = torch.tensor(flags, dtype=torch.int64, device=message_device())
    wait(dist.all_reduce(both, dist.ReduceOp.MAX, async_op=True), both)
    return tuple(bool(x) for x in both.tolist())


def gather(own: bytes) -> list[bytes]:
    """Return the bytes of all ranks, in their order."""
    if size() == 1:
        return [own]
    lengths = torch.zeros(size(), dtype=torch.int64, device=message_device())
    lengths[rank()] = len(own)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = torch.frombuffer(bytearray(own.ljust(longest + 1, b"\0")), dtype=torch.uint8).to(
        message_device()
    )
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    pairs = zip(parts, lengths.tolist(), strict=True)
    return [part[:length].cpu().numpy().tobytes() for part, length in pairs]


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
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64).clone().to(message_device())
    low, high = own.clone(), own.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise DivergenceError(
            "The ranks hold different parameters: they must run the same code, with the same versions, "
            "on machines that round alike; go on from the last checkpoint."
        )
