"""Arguments of KFAC by the names of their fields alone, as tables of cases have them."""

from typing import Any

from acktr.kfac.options import grouped


def in_groups(**options: Any) -> dict[str, Any]:
    """Return arguments of KFAC in their groups; ``approximation`` and ``inverse`` may be one word."""
    return grouped(options)[0]
