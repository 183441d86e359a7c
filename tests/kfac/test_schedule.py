"""When inverses are made: together, staggered, and in the background at fixed steps."""

import copy
import io
import time

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, schedule
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.comm import Comm
from acktr.kfac.options import REFRESHES, Periods
from acktr.kfac.schedule import InverseSchedule
from tests.helpers.options import in_groups


def build(**options: object) -> KFAC:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2))
    return KFAC(net, lr=0.1, damping=0.1, target_kl=0.1, **in_groups(**options))


def train(kfac: KFAC, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator)
        with kfac.capture():
            out = kfac.module(x)
        torch.manual_seed(int(torch.randint(1000, (), generator=generator)))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        (out - x[:, :2]).square().mean().backward()
        kfac.step()


def ages(kfac: KFAC) -> list[int]:
    return [b.inverse.age for b in kfac._all_blocks() if isinstance(b, KroneckerBlock)]


def parameters(kfac: KFAC) -> Tensor:
    return torch.cat([p.detach().flatten() for p in kfac.module.parameters()])


def test_together_refreshes_all_at_every_period():
    kfac = build(inverse_period=3)
    seen = []
    for _ in range(7):
        train(kfac, 1)
        seen.append(ages(kfac))
    assert seen == [[1] * 3, [2] * 3, [3] * 3, [1] * 3, [2] * 3, [3] * 3, [1] * 3]


@pytest.mark.parametrize("kind", REFRESHES)
def test_nothing_is_made_anew_without_new_statistics_or_damping(kind):
    kfac = build(inverse_refresh=kind)
    train(kfac, 3)
    before = ages(kfac)
    kfac.step()
    kfac.step()
    if kind != "background":  # where the last job is put into use in between
        assert ages(kfac) == [age + 2 for age in before]
    kfac.param_groups[0]["damping"] = 0.2
    kfac.step()
    kfac.step()
    assert ages(kfac) == [1 if kind == "background" else 2] * 3


def test_staggered_refreshes_each_once_a_period_and_not_all_at_once():
    kfac = build(inverse_period=3, inverse_refresh="staggered")
    train(kfac, 1)
    assert ages(kfac) == [1, 1, 1]  # the first time all at once: nothing can move without one
    refreshed = [0, 0, 0]
    for _ in range(9):
        before = ages(kfac)
        train(kfac, 1)
        new = [now <= old for now, old in zip(ages(kfac), before, strict=True)]
        assert sum(new) == 1  # three blocks, three steps
        refreshed = [n + r for n, r in zip(refreshed, new, strict=True)]
    assert refreshed == [3, 3, 3]


def test_turns_are_balanced_by_cost():
    kfac = build(inverse_period=2, inverse_refresh="staggered")
    train(kfac, 1)
    first, second = kfac._schedules[0]._turns(kfac._blocks[0])
    # The blocks cost 5^3 + 9^3, 10^3 + 5^3 and 6^3 + 2^3.
    assert sorted(b.name for b in first) == ["2"]
    assert sorted(b.name for b in second) == ["0", "4"]


def test_background_puts_inverses_into_use_a_period_after_their_start():
    kfac = build(inverse_period=2, inverse_refresh="background")
    train(kfac, 1)  # the first one at once
    first = [b.inverse.tensors[0].clone() for b in kfac._all_blocks()]
    train(kfac, 2, seed=1)  # at the second of these a job starts
    snapshot = kfac._schedules[0]._job
    assert snapshot is not None
    for block, old in zip(kfac._all_blocks(), first, strict=True):
        assert torch.equal(block.inverse.tensors[0], old)
    expected = [tensors for tensors, _ in snapshot.result.result()]
    train(kfac, 2, seed=2)  # at the second of these its result is published
    for block, (A_inverse, S_inverse) in zip(kfac._all_blocks(), expected, strict=True):
        assert torch.equal(block.inverse.tensors[0], A_inverse)
        assert torch.equal(block.inverse.tensors[1], S_inverse)


@pytest.mark.parametrize("defer", [False, True])
def test_background_is_the_same_twice_and_the_same_without_a_thread(monkeypatch, defer):
    kfac, again = (build(inverse_period=2, inverse_refresh="background") for _ in range(2))
    again.defer_checks = defer  # as on an accelerator: the same delay, no thread
    train(kfac, 9)
    train(again, 9)
    torch.testing.assert_close(parameters(kfac), parameters(again))


def test_how_long_the_thread_takes_changes_nothing(monkeypatch):
    slow, quick = (build(inverse_period=3, inverse_refresh="background") for _ in range(2))
    invert = schedule._invert

    def slowly(*args):
        time.sleep(0.2)
        return invert(*args)

    monkeypatch.setattr(schedule, "_invert", slowly)
    train(slow, 7)
    monkeypatch.undo()
    quick.defer_checks = True  # done when it is begun
    train(quick, 7)
    torch.testing.assert_close(parameters(slow), parameters(quick))


@pytest.mark.parametrize("kind", REFRESHES)
@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
@pytest.mark.parametrize("inverse", ["cholesky", "ekfac"])
def test_a_resumed_optimiser_goes_on_exactly(inverse, kind, steps, how):
    kfac = build(inverse_period=3, inverse_refresh=kind, inverse=inverse)
    train(kfac, steps)
    if how == "deepcopy":
        other = copy.deepcopy(kfac)
    else:
        other = build(inverse_period=3, inverse_refresh=kind, inverse=inverse)
        file = io.BytesIO()
        torch.save((kfac.module.state_dict(), kfac.state_dict()), file)
        file.seek(0)
        model, state = torch.load(file, weights_only=True)
        other.module.load_state_dict(model)
        other.load_state_dict(state)
    train(kfac, 7, seed=5)
    train(other, 7, seed=5)
    assert torch.equal(parameters(kfac), parameters(other))


def test_a_state_from_before_there_were_schedules_is_read():
    kfac, other = build(), build()
    train(kfac, 3)
    state = kfac.state_dict()
    del state["waiting_inverses"]
    for block in state["curvature"].values():
        del block["inverse"]["source"]
    other.module.load_state_dict(kfac.module.state_dict())
    other.load_state_dict(state)
    train(kfac, 2, seed=4)
    train(other, 2, seed=4)
    assert torch.equal(parameters(kfac), parameters(other))


def test_a_failure_in_the_background_is_mended_when_it_is_published():
    kfac = build(inverse_period=1, inverse_refresh="background")
    train(kfac, 2)
    job = kfac._schedules[0]._job
    broken = torch.zeros((), dtype=torch.bool)
    found = [(tensors, broken) for tensors, _ in job.result.result()]
    job.result._result = found
    train(kfac, 1)
    assert kfac.counters["float64_retries"] == 3
    assert kfac.counters["damping_escalations"] == 0
    assert kfac.counters["kept_inverses"] == 0


def test_an_unknown_refresh_is_refused():
    with pytest.raises(
        ValueError, match="inverse_refresh must be one of together, staggered, background"
    ):
        build(inverse_refresh="sometimes")


def test_all_of_them_learn_alike():
    losses = {}
    for kind in REFRESHES:
        kfac = build(inverse_period=4, inverse_refresh=kind)
        train(kfac, 60)
        x = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))
        losses[kind] = (kfac.module(x) - x[:, :2]).square().mean().item()
    assert max(losses.values()) < 0.5
    assert max(losses.values()) < 3 * min(losses.values())


def test_a_schedule_without_blocks_does_nothing():
    InverseSchedule(Periods(1, 2, 0, "background")).refresh([], 0, 0, 0.1, {}, False, Comm())


def test_statistics_and_inverses_are_made_at_each_step_and_then_now_and_then():
    periods = Periods(factor=2, inverse=3, burn_in=4)
    assert [c for c in range(12) if periods.takes(c)] == [0, 1, 2, 3, 4, 6, 8, 10]
    assert [s for s in range(12) if periods.phase(s) == 0] == [0, 1, 2, 3, 4, 7, 10]
    for calls in range(12):
        assert periods.taken(calls) == sum(periods.takes(c) for c in range(calls))


@pytest.mark.parametrize("refresh", REFRESHES)
def test_inverses_of_the_burn_in_are_never_old(refresh):
    kfac = build(inverse_period=3, burn_in=4, inverse_refresh=refresh)
    seen = []
    for _ in range(14):
        train(kfac, 1)
        seen.append(max(ages(kfac)))
    assert seen[:4] == [1, 1, 1, 1]
    assert 1 < max(seen[4:]) <= (6 if refresh == "background" else 3)
