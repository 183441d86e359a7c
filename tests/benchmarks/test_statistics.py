"""The statistics, by hand and against the package of the authors of the paper."""

import warnings

import numpy as np
import pytest

from benchmarks.statistics import (
    Estimate,
    estimate,
    improvement,
    interval,
    iqm,
    iqm_with_interval,
    profile,
)


def scores(seed, n_tasks=4, n_seeds=6):
    return np.random.default_rng(seed).normal(seed, 1.0, (n_seeds, n_tasks))


def test_by_hand():
    a, b = np.array([1.0, 2.0, 3.0, 100.0]), np.array([2.0, 2.0])
    assert iqm(a) == 2.5  # of 2 and 3
    # Of the pairs 1 and 2 lose against both or tie: (0 + 0.5 + 1 + 1) / 4.
    assert improvement(a, b) == (0.0 + 0.5 + 1.0 + 1.0) / 4
    assert profile(np.array([0.0, 2.0, 3.0]))(a).tolist() == [1.0, 0.5, 0.25]
    assert estimate(iqm, [np.array([3.0])]) == Estimate(3.0, None, None)
    assert estimate(iqm, [a]) == estimate(iqm, [a])


def test_curves_with_one_seed_have_no_width():
    assert iqm_with_interval(np.array([[1.0], [2.0]])).tolist() == [[1.0] * 3, [2.0] * 3]
    points = iqm_with_interval(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert points[0, 1] < points[0, 0] == 2.0 < points[0, 2]
    assert points[1].tolist() == [5.0] * 3


def test_rliable_agrees():
    # Its dependencies warn when they are imported.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("rliable")
        from rliable import library, metrics
    x, y = scores(0), scores(1)
    tasks_x, tasks_y = list(x.T), list(y.T)
    assert iqm(*tasks_x) == pytest.approx(metrics.aggregate_iqm(x))
    assert improvement(*tasks_x, *tasks_y) == pytest.approx(metrics.probability_of_improvement(x, y))
    thresholds = np.linspace(-1, 2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares, share_ends = library.create_performance_profile({"x": x}, thresholds, reps=1000)
        _, iqm_ends = library.get_interval_estimates(
            {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=1000
        )
        _, better_ends = library.get_interval_estimates(
            {"x,y": (x, y)}, lambda s, t: np.array([metrics.probability_of_improvement(s, t)]), reps=300
        )
    np.testing.assert_allclose(profile(thresholds)(*tasks_x), shares["x"])
    # Both resample at random.
    low, high = interval(profile(thresholds), tasks_x)
    np.testing.assert_allclose([low, high], share_ends["x"], atol=0.05)
    np.testing.assert_allclose(interval(iqm, tasks_x), iqm_ends["x"][:, 0], atol=0.1)
    ends = interval(improvement, [*tasks_x, *tasks_y])
    np.testing.assert_allclose(ends, better_ends["x,y"][:, 0], atol=0.06)
