"""What is noted of a training."""

import numpy as np
import pytest

from acktr.compare import curve as module
from acktr.compare.curve import LearningCurve


def play(n_timesteps, returns, length=10):
    """Feed episodes of one environment, all of one length, to a curve."""
    curve = LearningCurve(n_timesteps)
    curve._on_training_start()
    for step in range(1, n_timesteps + 1):
        curve.num_timesteps = step
        over = step % length == 0 and step // length <= len(returns)
        info = {"episode": {"r": returns[step // length - 1]}} if over else {}
        curve.locals = {"dones": np.array([over]), "infos": [info]}
        assert curve._on_step()
    curve._on_training_end()
    return curve


def test_scores(monkeypatch):
    monkeypatch.setattr(module, "MILESTONES", {"return_300k": 1500, "return_500k": 5000})
    returns = [float(i) for i in range(300)]
    curve = play(3000, returns)
    scores = curve.scores()
    assert scores["episodes"] == 300
    # Mean of 200 ... 299, and of 50 ... 149 at step 1500, where 150 episodes have ended.
    assert scores["last_100_return"] == 249.5
    assert scores["return_300k"] == 99.5
    assert scores["return_500k"] is None
    assert scores["best_100_return"] == pytest.approx(249.5)
    assert [point.steps for point in curve.points] == [30 * i for i in range(1, 101)]
    assert curve.points[0].mean_return == 1.0  # of 0, 1, 2
    assert curve.points[-1].mean_return == 249.5
    seconds = [point.seconds for point in curve.points]
    assert seconds == sorted(seconds)
    assert curve.seconds >= seconds[-1]


def test_the_best_of_a_run_that_fell_is_not_its_end():
    returns = [1.0] * 100 + [7.0] * 100 + [2.0] * 100
    scores = play(3000, returns).scores()
    assert (scores["best_100_return"], scores["last_100_return"]) == (pytest.approx(7.0), 2.0)


def test_before_the_first_episode_there_is_no_score():
    curve = play(100, [], length=1000)
    assert curve.points[0].mean_return is None
    assert curve.scores()["last_100_return"] is None
    assert curve.scores()["best_100_return"] is None


def test_a_lost_life_is_no_episode():
    curve = LearningCurve(100)
    curve._on_training_start()
    curve.locals = {"dones": np.array([True]), "infos": [{}]}
    curve._on_step()
    assert curve.scores()["episodes"] == 0
