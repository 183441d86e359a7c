"""A tensor that is computed when it is looked at: whatever is asked of it is asked of the tensor."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch

from acktr.rollout.later import Later, now


def value():
    return torch.tensor([[1.5], [-2.0], [3.0]])


QUESTIONS = [
    *(lambda x, name=name: getattr(x, name) for name in ("shape", "dtype", "device", "ndim", "T")),
    *(
        lambda x, name=name: getattr(x, name)()
        for name in ("mean", "numpy", "clone", "flatten", "tolist")
    ),
    *(lambda x, name=name: getattr(x, name)() for name in ("cpu", "detach", "numel", "size", "max")),
    *(lambda x, op=op: op(x, 2.0) for op in (operator.add, operator.sub, operator.mul, operator.pow)),
    *(lambda x, op=op: op(2.0, x) for op in (operator.add, operator.sub, operator.truediv)),
    *(lambda x, op=op: op(x, 1.5) for op in (operator.eq, operator.ne, operator.lt, operator.ge)),
    *(lambda x, op=op: op(x) for op in (operator.neg, abs, len, repr, list)),
    lambda x: x[0],
    lambda x: x[x > 0],
    lambda x: np.asarray(x),
    lambda x: np.concatenate([x, x]),
    lambda x: np.max(np.asarray(x)),
    lambda x: torch.as_tensor(x),
    lambda x: torch.stack([x, x]),
    lambda x: torch.cat((x, x)),
    lambda x: torch.mean(x),
    lambda x: torch.where(x > 0, x, 0.0),
    lambda x: torch.nn.functional.mse_loss(x, torch.zeros(3, 1)),
    lambda x: torch.zeros(3, 1).copy_(x),
    lambda x: torch.zeros(3, 1) + x,
    lambda x: x.T @ x,
    lambda x: float(x[0]),
    lambda x: f"{x.sum():.2f}",
    lambda x: bool(x.sum()),
    lambda x: 3.0 in x,
    lambda x: copy.deepcopy(x),
    lambda x: pickle.loads(pickle.dumps(x)),
    lambda x: sum(x),
]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_the_answer_is_the_tensors(ask):
    found, expected = ask(Later(value)), ask(value())
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


def test_it_is_computed_once_or_never():
    calls = []

    def compute():
        calls.append(1)
        return value()

    Later(compute)
    assert not calls
    asked = Later(compute)
    asked[0] = 9.0
    assert (asked.sum(), asked[0].item(), len(calls)) == (10.0, 9.0, 1)
    assert now("something else") == "something else"
