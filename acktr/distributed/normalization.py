"""Running means and variances of normalised observations and rewards, which all processes feed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from acktr.distributed.launch import group, message_device, rank, size
from acktr.kfac.comm import Comm, comm_of


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
        table = torch.zeros(size(), len(flat), dtype=torch.float64, device=message_device())
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
    """Return the moments that were added to ``before`` to make ``total``."""
    count = total[0] - before[0]
    if count[0] <= 0:
        return np.zeros(1), np.zeros_like(total[1]), np.zeros_like(total[2])
    mean_ = (total[1] * total[0] - before[1] * before[0]) / count
    delta = mean_ - before[1]
    squares = total[2] * total[0] - before[2] * before[0] - delta**2 * before[0] * count / total[0]
    return count, mean_, np.maximum(squares, 0.0) / count
