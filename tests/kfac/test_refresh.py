"""A factorisation that fails: mended in float64 or by more damping, else the last good inverse stays."""

import pytest
import torch

from acktr.kfac.comm import Comm
from acktr.kfac.factors import Dense
from acktr.kfac.inverses import INVERSES, Kinds, Pair
from acktr.kfac.refresh import MAX_ESCALATIONS, SafeInverse, refresh

GOOD = Pair(2.0 * torch.eye(3), torch.eye(2), Kinds(Dense(3), Dense(2)))
# Its second pivot is 1 - 1 in float32, with so little damping.
NARROW = Pair(torch.ones(2, 2), torch.eye(2), Kinds(Dense(2), Dense(2)))
NEGATIVE = GOOD._replace(A=-1e6 * torch.eye(3))
NAN = GOOD._replace(A=torch.full((3, 3), torch.nan))


def run(inverse, pair, damping=0.1, defer=False):
    counters = {
        name: torch.zeros(()) for name in ("float64_retries", "damping_escalations", "kept_inverses")
    }
    pair = pair._replace(A=pair.A.float(), S=pair.S.float())
    refresh([inverse], [pair], damping, counters, defer, Comm())
    return {name: int(value) for name, value in counters.items()}


@pytest.mark.parametrize("defer", [False, True], ids=["host-checks", "deferred"])
@pytest.mark.parametrize(
    ("kind", "bad"),
    [("cholesky", NEGATIVE), ("cholesky", NAN), ("eigen", NAN)],
    ids=["cholesky-negative", "cholesky-nan", "eigen-nan"],
)
def test_the_last_good_inverse_is_kept(kind, bad, defer):
    inverse = SafeInverse(INVERSES[kind], GOOD.kinds)
    assert sum(run(inverse, GOOD, defer=defer).values()) == 0
    before = [x.clone() for x in inverse.tensors]
    assert run(inverse, bad, defer=defer)["kept_inverses"] == 1
    assert all(map(torch.equal, inverse.tensors, before))


def test_what_float32_cannot_invert_float64_does():
    inverse = SafeInverse(INVERSES["cholesky"], NARROW.kinds)
    counted = run(inverse, NARROW, damping=1e-18)
    assert counted == {"float64_retries": 1, "damping_escalations": 0, "kept_inverses": 0}
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in inverse.tensors)


@pytest.mark.parametrize("kind", ["cholesky", "eigen"])
def test_a_singular_factor_is_damped_until_it_can_be_inverted(kind):
    inverse = SafeInverse(INVERSES[kind], NARROW.kinds)
    counted = run(inverse, NARROW, damping=0.0)
    assert counted["damping_escalations"] >= 1
    assert counted["kept_inverses"] == 0
    assert all(x.isfinite().all() for x in inverse.tensors)


def test_without_a_look_the_next_damping_is_tenfold():
    inverse = SafeInverse(INVERSES["cholesky"], GOOD.kinds)
    for failures in range(1, MAX_ESCALATIONS + 2):
        run(inverse, NEGATIVE, defer=True)
        assert inverse.boost == 10.0 ** min(failures, MAX_ESCALATIONS)
    run(inverse, GOOD, defer=True)
    assert inverse.boost == 10.0 ** (MAX_ESCALATIONS - 1)
