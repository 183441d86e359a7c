"""States of random number generators, checked before they are put back.

numpy believes what it is given: a Mersenne Twister whose position lies beyond its numbers reads memory
that is not its own, and one of zeros alone draws for ever.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_WORDS = 624  # of a Mersenne Twister


def _below(limit: int) -> Callable[[Any], Any]:
    return lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool) and 0 <= x < limit


def _is_gauss(value: Any) -> bool:
    return isinstance(value, float | int | np.floating) and math.isfinite(value)


# By the names that numpy gives them.
_HOLDS: dict[str, Callable[[Any], Any]] = {
    "pos": _below(_WORDS + 1),
    "buffer_pos": _below(5),
    "has_uint32": _below(2),
    "uinteger": _below(2**32),
    "has_gauss": _below(2),
    "gauss": _is_gauss,
    "inc": lambda x: _below(2**128)(x) and x % 2 == 1,
    "state": _below(2**128),
}


def set_state(generator: Any, state: Any) -> None:
    """Put a generator of numpy's into a state.

    :param generator: a bit generator
    :param state: what its attribute ``state`` was
    :raises ValueError: it is no state of this kind of generator
    """
    _check(state, generator.state, "state")
    generator.state = state


def set_legacy_state(generator: Any, state: Any) -> None:
    """Put a ``RandomState``, or the module ``numpy.random``, into a state.

    :param generator: it has ``get_state`` and ``set_state``
    :param state: what ``get_state(legacy=False)`` returned
    :raises ValueError: it is no such state
    """
    _check(state, generator.get_state(legacy=False), "state")
    generator.set_state(state)


def set_python_state(generator: Any, version: Any, words: Any, gauss: Any) -> None:
    """Put a ``random.Random``, or the module ``random``, into a state.

    :param generator: it has ``setstate``
    :param version: of the state
    :param words: 624 numbers and the position among them
    :param gauss: the normal number that waits to be drawn, or ``None``
    :raises ValueError: it is no such state
    """
    holds = version == random.Random.VERSION and isinstance(words, tuple | list)
    if not (holds and len(words) == _WORDS + 1 and all(map(_below(2**32), words)) and any(words[:-1])):
        raise ValueError("the state of a generator of Python's is none")
    if not (words[-1] <= _WORDS and (gauss is None or _is_gauss(gauss))):
        raise ValueError("the state of a generator of Python's is none")
    generator.setstate((version, tuple(words), gauss))


def _check(state: Any, own: Any, name: str) -> None:
    """Compare a state with that of the generator that it is to go into."""
    if isinstance(own, Mapping):
        holds = isinstance(state, Mapping) and state.keys() == own.keys()
        for key in own if holds else ():
            _check(state[key], own[key], key)
    elif isinstance(own, np.ndarray):
        holds = isinstance(state, np.ndarray) and (state.shape, state.dtype) == (own.shape, own.dtype)
        holds = holds and (len(own) != _WORDS or bool(state.any()))
    elif isinstance(own, str):
        holds = type(state) is str and state == own
    else:
        holds = _HOLDS[name](state)
    if not holds:
        raise ValueError(f"the {name} of a generator of numpy's is none of a {type(own).__name__}")
