"""States of generators that are none: refused, where numpy would read memory that is not its own."""

import copy
import random

import numpy as np
import pytest
from gymnasium import spaces

from acktr.envs.attributes import NotCapturable, get_attributes, set_attributes
from acktr.envs.generators import set_legacy_state, set_python_state, set_state
from acktr.run.state import random_state, set_random_state

KINDS = [np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64, np.random.MT19937]
ODD = [None, "x", -1, 1.5, True, [], {}, 2**200, 10**8, float("nan"), np.zeros(3)]


def leaves(tree, path=()):
    yield path
    if isinstance(tree, dict):
        for key in tree:
            yield from leaves(tree[key], (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    target = tree
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return tree


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_put_back(kind):
    first, second = kind(0), kind(1)
    np.random.Generator(first).integers(5, size=7, dtype=np.uint32)
    set_state(second, first.state)
    a, b = (np.random.Generator(g).standard_normal(9) for g in (first, second))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_none_changes_nothing(kind):
    generator = kind(0)
    before = generator.random_raw(3)
    for path in leaves(generator.state):
        for value in ODD:
            if value is ODD[8] and path[-1:] in (("uinteger",), ("state",)):
                continue  # a fine number there, and no position
            other = kind(0)
            with pytest.raises(ValueError, match="of a generator"):
                set_state(other, changed(other.state, path, value))
            np.testing.assert_array_equal(other.random_raw(3), before)
    with pytest.raises(ValueError, match="of a generator"):
        set_state(generator, {**generator.state, "more": 1})


@pytest.mark.parametrize("position", [100_000_000, 625, -1, 2**63])
def test_the_position_of_a_mersenne_twister(position):
    for generator, put in (
        (np.random.RandomState(0), set_legacy_state),
        (np.random.MT19937(0), set_state),
    ):
        own = generator.get_state(legacy=False) if put is set_legacy_state else generator.state
        with pytest.raises(ValueError, match="the pos of a generator"):
            put(generator, changed(own, ("state", "pos"), position))
        with pytest.raises(ValueError, match="the key of a generator"):
            put(generator, changed(own, ("state", "key"), np.zeros(624, np.uint32)))


def test_generators_of_python():
    generator = random.Random(0)
    version, words, _ = generator.getstate()
    set_python_state(generator, version, list(words), 0.5)
    assert generator.gauss(0, 1) == 0.5
    wrong = [
        (2, words, None),
        (3, words[:-1], None),
        (3, None, None),
        (3, [0] * 625, None),
        (3, [*words[:-1], 625], None),
        (3, [*words[:-1], 10**8], None),
        (3, [-1, *words[1:]], None),
        (3, ["x", *words[1:]], None),
        (3, words, "x"),
        (3, words, float("nan")),
    ]
    for case in wrong:
        with pytest.raises(ValueError, match="of Python's is none"):
            set_python_state(generator, *case)


def test_all_states_of_a_learner_are_checked():
    space = spaces.Discrete(3, seed=0)
    state = random_state(space)
    set_random_state(state, space)
    places = [("numpy", "state", "pos"), ("actions", "state", "inc"), ("python",), ("torch",)]
    for path in places:
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            set_random_state(changed(state, path, 10**8), space)
    set_random_state(state, space)


class Holder:
    def __init__(self):
        self.generator = np.random.Generator(np.random.MT19937(0))
        self.legacy = np.random.RandomState(0)
        self.python = random.Random(0)
        self.space = spaces.Dict({"a": spaces.Discrete(2, seed=0)}, seed=0)


def test_all_states_of_an_environment_are_checked():
    state = get_attributes(Holder(), set(), {})
    set_attributes(Holder(), state)
    places = [
        ("generator", "generator", "state", "pos"),
        ("legacy", "random_state", "state", "pos"),
        ("space", "space"),
        ("python", "random"),
    ]
    for path in places:
        with pytest.raises((TypeError, ValueError, NotCapturable)):
            set_attributes(Holder(), changed(state, path, 10**8))
    for name in state:
        with pytest.raises(NotCapturable, match="and no other value"):
            set_attributes(Holder(), {name: 5})
    built = {"generator": {**state["generator"]["generator"], "bit_generator": "MT19937"}}
    built["generator"]["state"] = {**built["generator"]["state"], "pos": 10**8}
    with pytest.raises(ValueError, match="the pos"):
        set_attributes(type("Empty", (), {})(), {"later": built})


@pytest.mark.parametrize("dtype", ["U99999999", "S99999999", "O", "f8"])
def test_strings_of_a_file_fill_no_memory(dtype):
    with pytest.raises(NotCapturable, match="is none of strings"):
        set_attributes(Holder(), {"names": {"strings": ["a"] * 9, "dtype": dtype}})
