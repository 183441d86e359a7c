"""Rates do not depend on what the wall clock is set to (fault 33); what was done has its seconds."""

import contextlib
import time

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from acktr import ACKTR
from acktr.learner.timing import ACTIVITIES, Stopwatch
from tests.helpers.saved_models import build

HOUR = 3600 * 10**9


class Rows(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def close(self):
        pass


class SetClock(BaseCallback):
    """Sets the wall clock in the middle of training, and waits a moment."""

    def __init__(self, monkeypatch, by):
        super().__init__()
        self.monkeypatch, self.by = monkeypatch, by

    def _on_step(self):
        time.sleep(0.001)
        if self.n_calls == 12:
            real = time.time_ns
            self.monkeypatch.setattr("time.time_ns", lambda: real() + self.by)
        return True


@pytest.mark.parametrize("by", [-HOUR, HOUR, -(10**6) * HOUR])
def test_a_clock_that_is_set_changes_no_rate(monkeypatch, by):
    model, rows = build(), Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(80, callback=SetClock(monkeypatch, by), log_interval=1)
    rates = [row["time/fps"] for row in rows.rows]
    assert len(rates) == 5
    assert all(0 < rate < 10**5 for rate in rates)
    assert all(row["time/time_elapsed"] < 600 for row in rows.rows)


def test_seconds_are_those_of_the_innermost_activity(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    watch = Stopwatch()

    def passes(seconds):
        clock[0] += seconds

    passes(1.0)
    with watch.doing("collecting"):
        passes(2.0)
        with watch.doing("rest"):
            passes(4.0)
        passes(8.0)
        with contextlib.suppress(KeyError), watch.doing("actor"):
            passes(16.0)
            raise KeyError
    assert watch.lap() == {"collecting": 10.0, "critic": 0.0, "actor": 16.0, "rest": 5.0}
    with watch.doing("critic"):
        passes(1.0)
        assert watch.lap()["critic"] == 1.0
        passes(2.0)
    assert watch.lap() == {"collecting": 0.0, "critic": 2.0, "actor": 0.0, "rest": 0.0}


class Slow(BaseCallback):
    def _on_step(self):
        time.sleep(0.002)
        return True


def test_a_row_says_where_its_seconds_went():
    model, rows = build(), Rows()
    model.set_logger(Logger(None, [rows]))
    began = time.perf_counter()
    model.learn(80, callback=Slow(), log_interval=2)
    passed = time.perf_counter() - began
    assert len(rows.rows) == 2
    split = [{name: row[f"time/{name}"] for name in ACTIVITIES} for row in rows.rows]
    assert all(part["collecting"] > 0 for part in split)
    assert all(part["critic"] > 0 and part["actor"] > 0 for part in split)
    assert sum(part["rest"] for part in split) > 4 * 4 * 0.002  # callbacks are not collecting
    assert sum(sum(part.values()) for part in split) < passed


def test_it_is_no_part_of_a_model(tmp_path):
    model = build().learn(16)
    model.save(tmp_path / "m")
    loaded = ACKTR.load(tmp_path / "m")
    assert "_clock_ahead" not in vars(loaded)
    assert loaded._stopwatch is not model._stopwatch
