"""Numbers as people write and read them."""

import decimal
import re

from acktr.errors import ConfigurationError

_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}
_GREATEST = 10**18


def whole_number(option: str, text: str) -> int:
    """Read a whole number as people write it: ``100000``, ``100_000``, ``1e5``, ``100k``, ``1M``.

    :param option: what it was given to, for the message
    :param text: what was given
    :raises ConfigurationError: it is none
    """
    match = re.fullmatch(r"([^kKmM]*)([kKmM]?)", text.strip())
    try:
        value = (
            decimal.Decimal(match[1]) * _FACTORS[match[2].lower()] if match else decimal.Decimal("nan")
        )
    except decimal.DecimalException:
        value = decimal.Decimal("nan")
    if not value.is_finite() or abs(value) > _GREATEST or value != value.to_integral_value():
        raise ConfigurationError(
            f"{option} must be a whole number such as 100000, 1e5 or 100k, not {text!r}."
        )
    return int(value)


def duration(seconds: float) -> str:
    """Say a time to two figures: ``2.4 s``, ``34 s``, ``3 min 12 s``, ``2 h 5 min``.

    :param seconds: 0 or more
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
