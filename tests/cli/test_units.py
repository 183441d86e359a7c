"""Numbers as people write and read them."""

import pytest

from acktr.errors import ConfigurationError
from acktr.run.units import duration, whole_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("1e5", 100_000), ("1E5", 100_000), ("1_000_000", 1_000_000), ("1M", 1_000_000),
        ("250k", 250_000), ("1.5e3", 1500), ("0.5M", 500_000), ("2.0", 2), (" 3 ", 3), ("-1", -1),
    ],
)  # fmt: skip
def test_whole_numbers(text, value):
    number = whole_number("--steps", text)
    assert number == value
    assert isinstance(number, int)


@pytest.mark.parametrize(
    "text",
    ["", "many", "2.5", "1e-3", "nan", "inf", "-inf", "1e99", "1,000", "1kk", "k", "0x10", "1 000"],
)
def test_what_is_no_whole_number(text):
    with pytest.raises(ConfigurationError, match=r"--steps must be a whole number such as .*, not "):
        whole_number("--steps", text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (2.36471, "2.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"),
        (59.6, "1 min 0 s"), (192.2, "3 min 12 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min"),
        (90_000, "25 h 0 min"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
