"""Statistics over few seeds, after Agarwal et al. 2021 (arXiv 2108.13264), in scipy.

Intervals are percentiles of a stratified bootstrap: the seeds of each task are drawn anew by themselves.
``tests/benchmarks/test_statistics.py`` holds them against the authors' own package.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, trim_mean

N_RESAMPLES = 2000
CONFIDENCE = 0.95
_TRIM = 0.25


class Estimate(NamedTuple):
    """A figure and its interval, whose ends are ``None`` where there is one seed."""

    value: float
    low: float | None
    high: float | None


def iqm(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: the mean of the middle half of the scores of all tasks together.

    :param tasks: the scores of each task, seeds along ``axis``
    """
    return trim_mean(np.concatenate(tasks, axis=axis), _TRIM, axis=axis)


def improvement(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of X scores more than one of Y, the mean over tasks; ties count half.

    :param tasks: the scores of X on each task, then those of Y, seeds along the last axis
    """
    assert axis == -1
    half = len(tasks) // 2
    total = 0.0
    for x, y in zip(tasks[:half], tasks[half:], strict=True):
        x, y = x[..., :, None], y[..., None, :]
        total = total + ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))
    return np.asarray(total / half)


def profile(thresholds: np.ndarray) -> Callable[..., np.ndarray]:
    """Return the statistic "share of runs above each threshold".

    :param thresholds: ``(n,)``; the statistic gives ``(n, ...)``
    """

    def statistic(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
        scores = np.concatenate(tasks, axis=axis)
        return np.stack([(scores > threshold).mean(axis=axis) for threshold in thresholds])

    return statistic


def interval(
    statistic: Callable[..., np.ndarray], tasks: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ends of the bootstrap interval, the same at each call; ``None`` with a single seed.

    :param statistic: of the scores of each task, with seeds along ``axis``
    :param tasks: scores of each task, seeds along the last axis
    """
    if min(task.shape[-1] for task in tasks) < 2:
        return None
    result = bootstrap(
        tuple(tasks), statistic, axis=-1, vectorized=True, method="percentile",
        n_resamples=N_RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(0),
    )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


def estimate(statistic: Callable[..., np.ndarray], tasks: Sequence[np.ndarray]) -> Estimate:
    """Return a figure with its interval.

    :param statistic: such as :func:`iqm`
    :param tasks: scores of each task, ``(n_seeds,)``
    """
    ends = interval(statistic, tasks)
    low, high = (None, None) if ends is None else (float(ends[0]), float(ends[1]))
    return Estimate(float(statistic(*tasks)), low, high)


def iqm_with_interval(returns: np.ndarray) -> np.ndarray:
    """Return IQM and interval of each row, for learning curves; with one seed its score three times.

    :param returns: ``(n_points, n_seeds)``
    :return: ``(n_points, 3)``
    """
    centre = iqm(returns)
    ends = interval(iqm, [returns])
    low, high = (centre, centre) if ends is None else ends
    return np.stack([centre, low, high], axis=-1)
