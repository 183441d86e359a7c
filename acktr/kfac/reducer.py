"""Gradients of all processes are averaged, and the first are on their way while the last are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from acktr.kfac import comm
from acktr.kfac.comm import Comm


class Sent(NamedTuple):
    """A bucket that has left: what waits for its sums, and the gradients and versions that went."""

    finish: Callable[[], list[Tensor]]
    grads: list[Tensor | None]
    versions: list[int]


class Reducer:
    """Averages the gradients of some parameters over all processes.

    Buckets are filled in the reverse order of the parameters, about that of the backward pass, and leave
    in that order on every process. What is left when no bucket gets full travels with other small
    messages. As in torch's ``DistributedDataParallel`` (Li et al. 2020, arXiv 2006.15704).

    :param talk: the processes
    """

    def __init__(self, talk: Comm) -> None:
        self._comm = talk
        self.done = False  # whether the gradients that are there are means
        self._params: list[Tensor] = []
        self._buckets: list[list[Tensor]] = []
        self._rest: list[Tensor] = []
        self._hooks: list[RemovableHandle] = []
        self._ready: set[int] = set()
        self._sent: list[Sent] = []
        self._watches = False

    def watch(self, params: Sequence[Tensor]) -> None:
        """Send each bucket as soon as the backward pass that comes now has made it.

        :param params: in the same order on all processes
        """
        self.done = False  # a step may have been given up after the last means
        if not self._comm.alone:
            self._fill(params)
            self._sent, self._ready, self._watches = [], set(), True

    def mean(self, params: Sequence[Tensor], tensors: Sequence[Tensor] = ()) -> list[Tensor]:
        """Write the means of the gradients over all processes.

        A parameter without a gradient on some processes counts as zero there; one without on all of
        them keeps none. What has changed anywhere since it left (clipped, or another backward pass) is
        sent again.

        :param params: as of :meth:`watch`
        :param tensors: to average in the same message
        :return: their means
        """
        self.done = True
        if self._comm.alone:
            return list(tensors)
        self._fill(params)
        self._watches = False
        while len(self._sent) < len(self._buckets):
            self._send()
        here = [float(p.grad is not None) for p in self._params]
        changed = [float(_changed(b, sent)) for b, sent in zip(self._buckets, self._sent, strict=True)]
        flags = torch.tensor([*here, *changed], device=self._params[0].device)
        finish = self._comm.sum_together([flags, *tensors, *map(_gradient, self._rest)])
        flags, *arrived = finish()
        own, others = arrived[: len(tensors)], arrived[len(tensors) :]
        # Whoever has all gradients knows that each is somewhere, and need not wait for the device.
        anywhere = here if all(here) else flags[: len(here)].tolist()
        sums = []
        for i in range(len(changed)):
            before = self._sent[i].finish()
            again = flags[len(here) + i] > 0
            sums += self._pack(self._buckets[i]).finish() if again else before
        known = {id(p): n for p, n in zip(self._params, anywhere, strict=True)}
        order = [p for bucket in [*self._buckets, self._rest] for p in bucket]
        means = [*own, *sums, *others]
        torch._foreach_div_(means, self._comm.size)
        for p, mean in zip(order, means[len(own) :], strict=True):
            p.grad = mean if known[id(p)] else None
        self._sent, self._ready = [], set()
        return own

    def _fill(self, params: Sequence[Tensor]) -> None:
        """Deal the parameters out to buckets, if they are not those of the last time."""
        if list(map(id, params)) == list(map(id, self._params)):
            return
        for hook in self._hooks:
            hook.remove()
        self._params, self._buckets, self._rest = list(params), [], []
        for p in reversed(self._params):
            self._rest.append(p)
            if sum(q.numel() * q.element_size() for q in self._rest) >= comm.ALONE_FROM:
                self._buckets.append(self._rest)
                self._rest = []
        large = [p for bucket in self._buckets for p in bucket if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in large]

    def _arrived(self, p: Tensor) -> None:
        if self._watches:
            self._ready.add(id(p))
            while len(self._sent) < len(self._buckets) and all(
                id(q) in self._ready for q in self._buckets[len(self._sent)]
            ):
                self._send()

    def _send(self) -> None:
        self._sent.append(self._pack(self._buckets[len(self._sent)]))

    def _pack(self, bucket: Sequence[Tensor]) -> Sent:
        finish = self._comm.sum(list(map(_gradient, bucket)))
        return Sent(finish, [p.grad for p in bucket], _versions(bucket))

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what hangs on these parameters."""
        return Reducer(self._comm).__dict__


def _changed(bucket: Sequence[Tensor], sent: Sent) -> bool:
    others = any(p.grad is not g for p, g in zip(bucket, sent.grads, strict=True))
    return others or _versions(bucket) != sent.versions


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _versions(params: Sequence[Tensor]) -> list[int]:
    """Return how often each gradient has been written to."""
    return [-1 if p.grad is None else p.grad._version for p in params]
