"""Checks of the sizes that a policy's networks are to have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from acktr.errors import ConfigurationError


def check_widths(policy_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse layers without units, which torch builds and nothing can learn.

    :param policy_kwargs: for the policy; ``net_arch`` is a list of widths, or one for each of ``pi``
        and ``vf``
    :raises ConfigurationError: it is neither
    """
    given = (policy_kwargs or {}).get("net_arch")
    if given is None or _are_widths(given):
        return
    # SB3 still takes the mapping in a list.
    parts = given[0] if isinstance(given, list) and len(given) == 1 else given
    known = isinstance(parts, Mapping) and parts.keys() <= {"pi", "vf"}
    if not (known and all(map(_are_widths, parts.values()))):
        raise ConfigurationError(
            "net_arch in policy_kwargs must be a list of positive whole numbers, or {'pi': ..., 'vf': "
            f"...}} of such lists, not {given!r:.200}."
        )


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(x, int | np.integer) and not isinstance(x, bool) and x > 0 for x in value
    )
