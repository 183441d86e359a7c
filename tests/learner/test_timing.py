"""Rates do not depend on what the wall clock is set to (fault 33)."""

import time

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from acktr import ACKTR
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


def test_it_is_no_part_of_a_model(tmp_path):
    model = build().learn(16)
    model.save(tmp_path / "m")
    assert "_clock_ahead" not in vars(ACKTR.load(tmp_path / "m"))
