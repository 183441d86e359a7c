"""Schedules: what they are at a share of training that is left, and how YAML writes them."""

import math

import numpy as np
import pytest

from acktr.errors import ConfigurationError
from acktr.schedules import (
    Horizon,
    Late,
    Linear,
    TraceDecay,
    as_discount,
    as_schedule,
    as_trace_decay,
    parse,
    written,
)


def test_schedules():
    assert as_schedule(0.3)(0.1) == 0.3
    linear = as_schedule(Linear(0.2))
    np.testing.assert_allclose([linear(1.0), linear(0.5), linear(0.0)], [0.2, 0.1, 0.0])
    assert as_schedule(lambda left: left**2)(0.5) == 0.25
    assert as_schedule(0)(1.0) == 0.0
    raised = as_schedule(Linear(0.1, 0.5))
    assert (raised(1.0), raised(0.5), raised(0.0)) == pytest.approx((0.1, 0.3, 0.5))
    late = [as_schedule(Late(0.4, 0.2))(left) for left in (1.0, 0.7, 0.5, 0.25, 0.0)]
    assert late == pytest.approx([0.4, 0.4, 0.4, 0.3, 0.2])
    assert as_schedule(Late(0.02))(0.0) == 0.0


def test_a_discount_is_a_number_a_callable_or_a_rising_horizon():
    assert as_discount(1)(0.3) == 1.0
    assert as_discount(lambda left: 0.9 + 0.05 * left)(0.5) == pytest.approx(0.925)
    rising = as_discount(Horizon(0.99, 0.998, lasting="rise"))
    horizons = [1 / (1 - rising(left)) for left in (1.0, 0.75, 0.5, 0.25, 0.0)]
    np.testing.assert_allclose(horizons, 100 * 5 ** np.array([0, 0.25, 0.5, 0.75, 1]))
    assert as_discount(Horizon(0, 0.5))(1.0) == 0.0
    assert as_discount(Horizon(0.99, 0.998))(0.4) == rising(0.4)
    assert as_trace_decay(0.9) == TraceDecay(0.9, 0.9)


@pytest.mark.parametrize(
    ("name", "text", "schedule"),
    [
        ("target_kl", "lin_0.02", Linear(0.02)),
        ("target_kl", "lin_2e-3", Linear(2e-3)),
        ("learning_rate", "lin_0.1_0.5", Linear(0.1, 0.5)),
        ("std_scale", "late_1_0.5", Late(1, 0.5)),
        ("target_kl", "late_0.02", Late(0.02)),
        ("gamma", "rise_0.99_0.998", Horizon(0.99, 0.998, lasting="rise")),
        ("gamma", "auto_0_0.5", Horizon(0, 0.5)),
        ("gamma", "early_0.99_0.998", Horizon(0.99, 0.998, "start")),
        ("gamma", "early_0.99_0.998_300000", Horizon(0.99, 0.998, "start", 300_000)),
        ("gae_lambda", "auto_0.95_0.9", TraceDecay(0.95, 0.9)),
    ],
)
def test_what_a_string_says_is_said_again(name, text, schedule):
    assert parse(name, text) == schedule
    assert parse(name, written(schedule)) == schedule
    assert written(0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gamma", "high", "rise_A_B"),
        ("gamma", "rise_0.99", "rise_A_B"),
        ("gamma", "lin_0.9_0.99", "rise_A_B"),
        ("gamma", "rise_0.99_0.9", "A <= B < 1"),
        ("gamma", "rise_0.9_1", "A <= B < 1"),
        ("gamma", "rise_-1_0.9", "0 <= A"),
        ("gamma", "auto_0.99", "auto_A_B"),
        ("gamma", "auto_0.9_0.99_1_2", "auto_A_B"),
        ("gamma", "auto_0.9_0.99_0", "_N"),
        ("gamma", "auto_0.9_0.99_1e5", "_N"),
        ("gae_lambda", "auto_0.9_0.8_100", "auto_A_B"),
        ("gamma", "auto", "auto_A_B"),
        ("gamma", "rise_nan_0.9", "0 <= A"),
        ("gae_lambda", "high", "auto_A_B"),
        ("gae_lambda", "auto_0.9", "auto_A_B"),
        ("gae_lambda", "auto_0.9_1.5", "two of them"),
        ("gae_lambda", "lin_0.9_0.8", "auto_A_B"),
        ("target_kl", "lin_", "lin_A_B"),
        ("target_kl", "lin_0.1_", "lin_A_B"),
        ("target_kl", "lin_0.1_-0.1", "lin_A_B"),
        ("target_kl", "lin_0.3_0.2_0.1", "lin_A_B"),
        ("target_kl", "cosine_0.1", "lin_A_B"),
        ("target_kl", "late_", "late_A_B"),
        ("learning_rate", "lin_fast", "lin_A_B"),
        ("learning_rate", "lin_-0.1", "lin_A_B"),
        ("learning_rate", "0.1", "lin_A_B"),
        ("learning_rate", "lin_inf", "lin_A_B"),
        ("std_scale", "half", "lin_A_B"),
    ],
)
def test_a_string_that_is_no_schedule_is_refused(name, text, says):
    with pytest.raises(ConfigurationError, match=rf"^{name} must be .*{says}.*, not {text!r}") as caught:
        parse(name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        *[
            (kind, ends)
            for kind in (Linear, Late)
            for ends in [(-0.1, 0), (0.1, math.nan), (math.inf, 0)]
        ],
        *[(kind, ("a", 0)) for kind in (Linear, Late, Horizon, TraceDecay)],
        *[(Horizon, ends) for ends in [(0.99, 0.9), (0.9, 1), (-1, 0.9), (math.nan, 0.9), (True, 0.9)]],
        *[(TraceDecay, ends) for ends in [(0.9, 1.5), (-0.1, 0.9), (math.nan, 0.9), (None, 0.9)]],
    ],
)
def test_ends_that_are_none_are_refused(schedule, ends):
    with pytest.raises(ConfigurationError, match=rf"^{schedule.__name__}\(A, B\) needs ") as caught:
        schedule(*ends)
    assert "\n" not in str(caught.value)
