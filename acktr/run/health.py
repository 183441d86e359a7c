"""Advice on a training, from its log: only where something is plainly wrong, with a setting to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acktr.run.tables import read_columns

# What is said of each symptom, causes before effects; its figures are what `_symptoms` finds.
ADVICE = {
    "critic": (
        "The critic does not follow the returns, in the last third its explained variance has a median "
        "of {median:.2f}; try --set critic.n_updates=16, on a shared trunk critic.vf_coef=1."
    ),
    "kl above": (
        "The policy moves further than it should, the measured KL is {ratio:.1f} times its target; try "
        "larger batches, --set n_steps=…, and leave natural.kl_feedback on."
    ),
    "unmoved": (
        "The return has not risen beyond chance, from {first:.4g} at first to {best:.4g} in the "
        "best tenth of episodes; try more noise to begin with, --set policy_kwargs.log_std_init=0."
    ),
    "unmoved by counted actions": (
        "The return has not risen beyond chance, from {first:.4g} at first to {best:.4g} in the "
        "best tenth of episodes; try an entropy bonus, --set ent_coef=0.01."
    ),
    "noise": (
        "The noise is gone, from {first_std:.2g} to {last_std:.2g}, and the return stands still at "
        "{last:.4g}, below its best of {best:.4g}; try --set policy_kwargs.log_std_init=0 or "
        "ent_coef=0.01."
    ),
    "entropy": (
        "The entropy is gone, from {first_entropy:.2g} to {last_entropy:.2g}, and the return stands "
        "still at {last:.4g}, below its best of {best:.4g}; try --set ent_coef=0.01."
    ),
    "learning rate": (
        "The longest step binds, the measured KL is {ratio:.2g} of its target; try --set "
        "learning_rate={more:.3g}."
    ),
    "corrected learning rate": (
        "The longest corrected step binds, the measured KL is {ratio:.2g} of its target; try --set "
        "natural.corrected_learning_rate=null."
    ),
    "kl below": (
        "The policy moves less than it may, the measured KL is {ratio:.2g} of its target; try a larger "
        "learning_rate, and leave natural.kl_feedback on."
    ),
}
MOST = 3  # sentences

# Of fewer nothing can be told: the first fifth of a run is all transients, and what remains has to be
# enough for a median and a mean of a tenth.
MIN_UPDATES = 50
MIN_EPISODES = 60
# The first episodes stand for the return to begin with: later ones may have learned already.
_FIRST_EPISODES = 20
_WINDOWS = 10  # of episodes, alike in number: six of them at least
# Standard errors of a difference between means of windows. The largest of ten windows is 1.5 above the
# mean by chance alone.
_ERRORS = 3.0
# Of what was gained from the beginning to the best window: what a return that has fallen has lost.
_FALL = 0.2
# Returns whose middle half varies by less of their own size are those of a task that is solved: the
# critic then has nothing to explain, and there is nothing to step towards.
_VARY = 0.05
_LOW_VARIANCE = 0.2  # explained: the critic knows hardly more than the mean return
# Measured KL against its target: the feedback holds it within 1.5 of single updates.
_FAR = 3.0
_UNUSED = 0.05  # of the target: even a return that rises would rise faster
_BOUND = 0.75  # the share of updates whose step is as long as it may be, where that is the reason
_LESS_NOISE = 0.2  # of that to begin with: schedules of the presets leave a half, and learning another
_LESS_ENTROPY = 0.05  # likewise, of counted actions

_STD, _ENTROPY, _VARIANCE = "train/std", "train/entropy_loss", "train/explained_variance"
_KL, _TARGET = "train/kl", "train/target_kl"
_STEP, _RATE, _CORRECTED = "train/step_scale", "train/learning_rate", "train/max_step_scale"
PROGRESS = (_STD, _ENTROPY, _VARIANCE, _KL, _TARGET, _STEP, _RATE, _CORRECTED)


def advise_run(path: Path) -> list[str]:
    """Advise on the training that a run directory holds; nothing is said of tables that cannot be read.

    :param path: the directory
    """
    progress = _read(path / "progress.csv", PROGRESS)
    return advise(progress, _read(path / "episodes.csv", ("return",))["return"])


def advise(progress: Mapping[str, np.ndarray], returns: np.ndarray) -> list[str]:
    """Name what is plainly wrong with a training, and the setting to try.

    :param progress: columns of ``progress.csv``, a value an update each, ``(n_updates,)``; of
        :data:`PROGRESS` those that there are; NaN where a row says nothing
    :param returns: of the training episodes in their order, ``(n_episodes,)``
    :return: sentences, causes before effects, :data:`MOST` at most; none for a healthy run, and for one
        that is too short to tell
    """
    found = dict(_symptoms(progress, returns[np.isfinite(returns)]))
    return [text.format(**found[name]) for name, text in ADVICE.items() if name in found][:MOST]


class _Course(NamedTuple):
    """How the return went.

    :param first: mean of the first episodes
    :param best: mean of the best window
    :param last: mean of the last window
    :param rose: the best window is above the first episodes
    :param stands_below: the return has fallen from its best window and does not move now
    :param rises: it does so still, in the last third of the episodes
    :param varies: the last third of the episodes differ from each other
    """

    first: float
    best: float
    last: float
    rose: bool
    stands_below: bool
    rises: bool
    varies: bool


def _symptoms(
    progress: Mapping[str, np.ndarray], returns: np.ndarray
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield the names of what is wrong, in no order, and the figures that show it."""
    if len(returns) < MIN_EPISODES or len(_finite(progress, _KL)) < MIN_UPDATES:
        return
    course = _follow(returns)
    figures = {"first": course.first, "best": course.best, "last": course.last}
    stds, entropies = _finite(progress, _STD), -_finite(progress, _ENTROPY)
    if not course.rose:
        yield "unmoved" if len(stds) else "unmoved by counted actions", figures
    elif course.stands_below:
        for name, values, least in (("std", stds, _LESS_NOISE), ("entropy", entropies, _LESS_ENTROPY)):
            begun, ended = _ends(values)
            if ended < least * begun and (name == "std" or not len(stds)):
                shown = {f"first_{name}": begun, f"last_{name}": ended}
                yield "noise" if name == "std" else name, {**figures, **shown}
    if course.varies and not course.rises:
        yield from _of_critic(progress)
    # Of what is solved, steps may be as short as they are.
    least = 0.0 if not course.varies else _UNUSED if course.rises else 1 / _FAR
    yield from _of_step(progress, least)


def _follow(returns: np.ndarray) -> _Course:
    windows = np.array_split(returns, _WINDOWS)
    best, last = max(windows, key=np.mean), windows[-1]
    first = returns[:_FIRST_EPISODES]
    gained, lost = np.mean(best) - np.mean(first), np.mean(best) - np.mean(last)
    third = returns[-len(returns) // 3 :]
    low, middle, high = np.percentile(third, (25, 50, 75))
    return _Course(
        first=float(np.mean(first)),
        best=float(np.mean(best)),
        last=float(np.mean(last)),
        rose=bool(gained > _ERRORS * _error(best, first)),
        stands_below=bool(
            lost > max(_FALL * gained, _ERRORS * _error(best, last))
            and abs(np.mean(last) - np.mean(windows[-2])) <= _ERRORS * _error(last, windows[-2])
        ),
        rises=bool(np.mean(last) - np.mean(windows[-4]) > _ERRORS * _error(last, windows[-4])),
        varies=bool(high - low > _VARY * np.abs(middle)),
    )


def _error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the standard error of the difference between the means of two windows."""
    return float(np.sqrt(np.var(one) / len(one) + np.var(other) / len(other)))


def _of_critic(progress: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Mapping[str, float]]]:
    variances = _finite(progress, _VARIANCE)
    if len(variances) >= MIN_UPDATES:
        median = float(np.median(variances[-len(variances) // 3 :]))
        if median < _LOW_VARIANCE:
            yield "critic", {"median": median}


def _of_step(
    progress: Mapping[str, np.ndarray], least: float
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Compare the measured KL with its target, and the steps with their limits.

    :param least: the share of the target that the KL should have
    """
    kl, target, step, rate, corrected = (
        _column(progress, name) for name in (_KL, _TARGET, _STEP, _RATE, _CORRECTED)
    )
    known = np.flatnonzero(np.isfinite(kl) & np.isfinite(target) & (target > 0))
    known = known[len(known) // 10 :]  # the feedback finds its level in the first updates
    if len(known) < MIN_UPDATES // 2:
        return
    ratio = float(np.mean(kl[known]) / np.mean(target[known]))
    if ratio > _FAR:
        yield "kl above", {"ratio": ratio}
    if ratio >= least:
        return
    limit = np.fmin(rate, corrected)[known]  # NaN where neither is known
    bound = np.mean(step[known] >= 0.99 * limit) >= _BOUND
    by_correction = bool(np.nanmedian(limit) < 0.99 * np.nanmedian(rate[known])) if bound else False
    if bound and by_correction:
        yield "corrected learning rate", {"ratio": ratio}
    elif bound:
        yield "learning rate", {"ratio": ratio, "more": 4 * float(np.nanmax(rate[known]))}
    else:
        yield "kl below", {"ratio": ratio}


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the means of the first and of the last tenth; 0 and infinity where there is none."""
    if not len(values):
        return 0.0, float("inf")
    tenth = max(len(values) // 10, 1)
    return float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))


def _column(progress: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    length = max(map(len, progress.values()), default=0)
    return np.asarray(progress.get(name, np.full(length, np.nan)), dtype=float)


def _finite(progress: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values = _column(progress, name)
    return values[np.isfinite(values)]


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    rows = np.array(list(read_columns(path, names)), dtype=float).reshape(-1, len(names))
    return dict(zip(names, rows.T, strict=True))
