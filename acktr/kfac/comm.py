"""One process or many: means over processes, and inverses that each makes a part of.

Every process of a group holds the same model, takes gradients and statistics of its own samples, and
counts alike, as with torch's ``DistributedDataParallel``. What is averaged is what enters the step:
gradients, Kronecker factors, products with the exact Fisher. From there on all processes compute the
same from the same numbers, so that step, damping and trust region cannot drift apart (the scheme of Ba,
Grosse & Martens 2017 without its parameter server; Osawa et al. 2019, arXiv 1811.12019).
"""

from __future__ import annotations

import functools
import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

AWAKE_SECONDS = 0.02  # how long a process waits for a message before it falls asleep
BUCKET_BYTES = 25 * 2**20  # as DistributedDataParallel's
PACKED_FROM = 256  # taking narrower triangles out and putting them back costs more than it saves
# What is smaller costs the time that a message takes, and not that of its bytes: it waits for company.
ALONE_FROM = 2**20
# On CPUs each process adds up what all have, as long as all of it is smaller than this: one hop in the
# place of a reduction's two, for which all_reduce takes 1.7 times as long between two processes.
GATHERED_UP_TO = 2**20
# Narrower factors every process inverts for itself: the cubic work of an inverse costs more than the
# quadratic traffic of sharing it from about this width on.
SHARED_FROM = 1024


class Comm:
    """The group of processes that train one model.

    :param group: a process group of :mod:`torch.distributed`, held weakly: whoever made it ends it, and
        one that is still there when the interpreter shuts down can abort the process (PyTorch's issue
        190489); ``None`` for this process alone
    """

    def __init__(self, group: Any = None) -> None:
        self._group = None if group is None else weakref.ref(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self._waiting: list[_Parcel] = []

    @property
    def group(self) -> Any:
        """The process group.

        :raises RuntimeError: it was destroyed
        """
        if self._group is None:
            return None
        group = self._group()
        if group is None:
            raise RuntimeError(
                "The process group that this optimiser was built with was destroyed: build model and "
                "optimiser after init_process_group, and use them before destroy_process_group."
            )
        return group

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def sum(self, tensors: Sequence[Tensor], symmetric: bool = False) -> Callable[[], list[Tensor]]:
        """Begin to add up tensors over all processes, in flat buckets.

        :param tensors: of the same shapes and dtypes on all processes, left as they are
        :param symmetric: whether square matrices among them are; of wide ones only a triangle travels
        :return: waits, and returns the sums in the order and shapes of ``tensors``
        """
        if self.alone:
            return lambda: list(tensors)
        parcel = _Parcel(tensors, symmetric)
        parcel.leave(self._reduce(parcel.packed))
        return parcel.sums

    def sum_together(
        self, tensors: Sequence[Tensor], symmetric: bool = False
    ) -> Callable[[], list[Tensor]]:
        """Add up tensors as :meth:`sum` does, small ones in one message with others that wait.

        All that waits leaves when the first result is asked for; what is large leaves at once, and
        travels while this process computes.

        :param tensors: as of :meth:`sum`, and given in the same order on all processes
        :param symmetric: as of :meth:`sum`
        :return: as of :meth:`sum`
        """
        if self.alone:
            return lambda: list(tensors)
        parcel = _Parcel(tensors, symmetric)
        if sum(map(_bytes, parcel.packed)) >= ALONE_FROM:
            parcel.leave(self._reduce(parcel.packed))
            return parcel.sums
        self._waiting.append(parcel)

        def finish() -> list[Tensor]:
            if parcel.waits:
                self._send_waiting()
            return parcel.sums()

        return finish

    def _send_waiting(self) -> None:
        parcels, self._waiting = self._waiting, []
        finish = self._reduce([x for parcel in parcels for x in parcel.packed])
        start = 0
        for parcel in parcels:
            parcel.leave(finish, start)
            start += len(parcel.packed)

    def _reduce(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        buckets = []
        for members in _buckets(tensors):
            flat = torch.cat([tensors[i].reshape(-1) for i in members])
            buckets.append((members, self._reduce_bucket(flat)))

        @functools.cache
        def finish() -> list[Tensor]:
            sums = list(tensors)
            for members, finish_bucket in buckets:
                parts = finish_bucket().split([tensors[i].numel() for i in members])
                for i, part in zip(members, parts, strict=True):
                    sums[i] = part.view_as(tensors[i])
            return sums

        return finish

    def _reduce_bucket(self, flat: Tensor) -> Callable[[], Tensor]:
        gathers = flat.device.type == "cpu" and _bytes(flat) * self.size <= GATHERED_UP_TO
        table = flat.new_empty(self.size if gathers else 0, len(flat))
        if gathers:
            work = dist.all_gather(list(table), flat, group=self.group, async_op=True)
        else:
            work = dist.all_reduce(flat, group=self.group, async_op=True)

        def finish() -> Tensor:
            wait(work, flat)
            return table.sum(0) if gathers else flat  # in the order of ranks: the same bits on all

        return finish

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.alone:
            return tensor
        (total,) = self.sum([tensor])()
        return total / self.size

    def gather(self, thing: Any) -> list[Any]:
        """Return what each process gave, in the order of ranks; all call it together.

        :param thing: that can be pickled
        """
        if self.alone:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing, group=self.group)
        return things

    def owners(self, costs: Sequence[int]) -> list[int]:
        """Deal work out: the dearest first, each to the process with the least so far.

        :param costs: of the pieces
        :return: the rank of each
        """
        loads = [0] * self.size
        ranks = [0] * len(costs)
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            ranks[i] = loads.index(min(loads))
            loads[ranks[i]] += costs[i]
        return ranks

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Overwrite tensors by those of one process.

        :param source: its rank in the group
        """
        if self.alone or not tensors:
            return
        for members in _buckets(tensors):
            flat = torch.cat([tensors[i].reshape(-1) for i in members])
            dist.broadcast(flat, group=self.group, group_src=source)
            parts = flat.split([tensors[i].numel() for i in members])
            for i, part in zip(members, parts, strict=True):
                tensors[i].copy_(part.view_as(tensors[i]))

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the group, which belongs to this process."""
        return {"_group": None, "size": 1, "rank": 0, "_waiting": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> Comm:
        """Return the same: a copy of an optimiser talks to the same processes."""
        return self


_ALONE = Comm()
_comms: weakref.WeakKeyDictionary[Any, Comm] = weakref.WeakKeyDictionary()


def group_of(module: nn.Module, group: Any) -> Any:
    """Return the group of the processes that train a model.

    :param module: the model
    :param group: as a user says it; ``None`` leaves it to the model: a ``DistributedDataParallel`` knows
    :raises ValueError: there are several processes, and nothing says whether they train one model
    """
    if group is not None or not (dist.is_available() and dist.is_initialized()):
        return group
    if isinstance(module, DistributedDataParallel):
        return module.process_group
    if dist.get_world_size() > 1:
        raise ValueError(
            f"There are {dist.get_world_size()} processes and KFAC knows of no group of them: pass the "
            "DistributedDataParallel wrapper as the module, or process_group="
            "torch.distributed.group.WORLD; where each process trains a model of its own, a group of "
            "that process alone."
        )
    return None


def comm_of(group: Any = None) -> Comm:
    """Return the one :class:`Comm` of a group, so that what anybody sends can travel together.

    :param group: as of :class:`Comm`
    """
    if group is None:
        return _ALONE
    if group not in _comms:
        _comms[group] = Comm(group)
    return _comms[group]


class _Parcel:
    """Tensors on their way: of wide symmetric matrices, only a triangle."""

    def __init__(self, tensors: Sequence[Tensor], symmetric: bool) -> None:
        self._tensors = list(tensors)
        self._squares = [symmetric and _is_square(x) for x in tensors]
        pairs = zip(tensors, self._squares, strict=True)
        self.packed = [_upper(x) if square else x for x, square in pairs]
        self._finish: Callable[[], list[Tensor]] | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not left yet."""
        return self._finish is None

    def leave(self, finish: Callable[[], list[Tensor]], start: int = 0) -> None:
        """Remember how to wait for the message, and where in it this begins."""
        self._finish, self._start = finish, start

    def sums(self) -> list[Tensor]:
        """Wait, and return the sums in the shapes of what was given."""
        assert self._finish is not None
        arrived = self._finish()[self._start : self._start + len(self.packed)]
        triples = zip(arrived, self._tensors, self._squares, strict=True)
        return [_mirrored(x, like) if square else x for x, like, square in triples]


def wait(work: Any, tensor: Tensor) -> None:
    """Wait for a message on the CPU without falling asleep at once.

    A core that sleeps takes a millisecond to wake up on some (virtual) machines, five times as long as
    the message of an MLP does. The core is offered to others meanwhile.

    :param work: what an asynchronous reduction returned
    :param tensor: what is reduced
    """
    if tensor.device.type == "cpu":
        end = time.perf_counter() + AWAKE_SECONDS
        while not work.is_completed() and time.perf_counter() < end:
            _yield_core()
    work.wait()


def _yield_core() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of tensors of one dtype, in order, whose bytes together fit a bucket."""
    by_dtype = sorted(range(len(tensors)), key=lambda i: str(tensors[i].dtype))
    for _, members in itertools.groupby(by_dtype, key=lambda i: tensors[i].dtype):
        bucket: list[int] = []
        size = 0
        for i in members:
            bytes_ = _bytes(tensors[i])
            if bucket and size + bytes_ > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(i)
            size += bytes_
        yield bucket


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _is_square(x: Tensor) -> bool:
    return x.ndim >= 2 and x.shape[-1] == x.shape[-2] >= PACKED_FROM


@functools.lru_cache(maxsize=64)
def _triangle(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(n, n, device=device)
    return rows * n + columns, columns * n + rows


def _upper(x: Tensor) -> Tensor:
    upper, _ = _triangle(x.shape[-1], x.device)
    return x.flatten(-2)[..., upper]


def _mirrored(triangle: Tensor, like: Tensor) -> Tensor:
    upper, lower = _triangle(like.shape[-1], like.device)
    whole = torch.empty_like(like).flatten(-2)
    whole[..., upper] = triangle
    whole[..., lower] = triangle
    return whole.view_as(like)
