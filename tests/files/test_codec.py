"""Trees of values through JSON and tensors and back, bit for bit, and never anything that runs."""

import json
import math
from collections import deque

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn

from acktr.files.codec import Absent, Unstorable, decode, encode


def through(tree, **options):
    structure, tensors, _ = encode(tree, **options)
    return decode(json.loads(json.dumps(structure, allow_nan=False)), tensors)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
dtypes = st.sampled_from(["bool", "uint8", "int64", "uint64", "uint16", "float16", "float32", "float64"])
arrays = st.builds(lambda shape, dtype: np.ones(shape, dtype), st.lists(st.integers(0, 3)), dtypes)
trees = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(deque)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_tree_comes_back(tree):
    assert same(through(tree), tree)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 3, 4)])
def test_tensors(shape, dtype):
    assert same(through({"x": torch.ones(shape).to(dtype)}), {"x": torch.ones(shape).to(dtype)})


def test_the_order_in_memory_is_kept():
    # Products of matrices may be rounded by it.
    x = torch.arange(24.0).view(2, 3, 4)
    for tensor in (
        x.mT,
        x.permute(2, 0, 1),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ):
        assert same(through(tensor), tensor)
    part = torch.rand(3, 4)[:, :2]  # no order of axes lies like this: its values are kept
    assert torch.equal(through(part), part)


def test_tensors_that_share_memory_are_stored_each():
    batch = torch.rand(2, 3, 3)
    first, second = through(list(batch))
    assert torch.equal(first, batch[0])
    assert torch.equal(second, batch[1])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 2, (3,), np.float64),
        spaces.Box(0, 255, (1, 4, 4), np.uint8),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.MultiBinary([2, 2]),
        spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-np.inf, np.inf, (2,))}),
    ],
    ids=str,
)
def test_spaces(space):
    assert through(space) == space


def test_classes_types_and_schedules():
    assert through({"fn": nn.ELU, "dtype": torch.bfloat16}) == {"fn": nn.ELU, "dtype": torch.bfloat16}
    schedule = through(FloatSchedule(LinearSchedule(0.5, 0.0, 1.0)))
    assert schedule(0.5) == 0.25


class Stranger(nn.Module):
    pass


@pytest.mark.parametrize("value", [lambda x: x, Stranger, object(), print])
def test_what_cannot_be_stored_is_refused_or_named(value):
    with pytest.raises(Unstorable, match=r"a\.b is of "):
        encode({"a": {"b": value}})
    structure, tensors, missing = encode({"a": {"b": value}, "c": 1}, name_missing=True)
    assert list(missing) == ["a.b"]
    with pytest.raises(Absent, match=r"a\.b"):
        decode(structure, tensors)
    assert decode(structure, tensors, {"a.b": 7}) == {"a": {"b": 7}, "c": 1}


@pytest.mark.parametrize(
    "structure",
    [
        {"$": "class", "name": "os.system"},
        {"$": "class", "name": "subprocess.Popen"},
        {"$": "class", "name": "stable_baselines3.common.monitor.ResultsWriter"},
        {"$": "class", "name": "torch.nn.modules.module.Module.__init__.__globals__"},
        {"$": "dtype", "name": "load"},
        {"$": "space", "space": {"type": "Tuple"}},
        {"$": "schedule", "name": "eval", "state": {}},
        {"$": "object"},
        {"$": ["list"]},
        {"$": "tensor", "name": "absent"},
        {"$": "array", "name": "x", "dtype": "object"},
    ],
    ids=lambda structure: str(structure)[:60],
)
def test_nothing_else_is_decoded(structure):
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode(structure, {"x": torch.zeros(8, dtype=torch.uint8)})


def test_special_numbers():
    values = through([math.nan, math.inf, -math.inf, 1e-310, 2**200, -0.0])
    assert math.isnan(values[0])
    assert values[1:5] == [math.inf, -math.inf, 1e-310, 2**200]
    assert math.copysign(1, values[5]) == -1
