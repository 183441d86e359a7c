"""Capturing: what ``with kfac.capture()`` changes it changes back, and nothing is held afterwards."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from acktr.kfac import KFAC
from tests.helpers.options import in_groups


class Probe(nn.Module):
    """Remembers, weakly, the memory of every activation that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[StorageWeakRef] = []

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()  # its backward pass keeps the result
        self.seen += [StorageWeakRef(t.untyped_storage()) for t in (x, y)]
        return y

    def alive(self) -> int:
        gc.collect()
        return sum(not ref.expired() for ref in self.seen)


def probed() -> tuple[nn.Sequential, Probe]:
    probe = Probe()
    return nn.Sequential(nn.Linear(3, 4), probe, nn.Tanh(), nn.Linear(4, 2)), probe


def test_a_forward_pass_outside_capture_holds_nothing():
    net, probe = probed()
    kfac = KFAC(net)
    out = net(torch.randn(5, 3))
    assert probe.alive() > 0
    del out
    assert probe.alive() == 0
    assert kfac.factors() == {} or all(not f for f in kfac.factors().values())


def test_nothing_is_held_after_an_update():
    net, probe = probed()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(5, 3))
    kfac.update_curvature(Normal(out, 1.0))
    out.sum().backward()
    kfac.step()
    del out
    assert probe.alive() == 0


def test_a_new_capture_drops_an_unused_one():
    """A rollout that captures and never updates must not pile up memory or statistics."""
    net, probe = probed()
    kfac = KFAC(net)
    for _ in range(3):
        with kfac.capture():
            out = net(torch.randn(5, 3))
    torch.manual_seed(1)
    kfac.update_curvature(Normal(out, 1.0))
    del out
    assert probe.alive() == 0
    assert kfac.factors()["3"][0].shape == (5, 5)
    torch.testing.assert_close(kfac.factors()["3"][0][-1, -1], torch.tensor(1.0))


def test_forward_passes_outside_leave_the_factors_alone():
    net, _ = probed()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(5, 3))
    net(100 * torch.randn(5, 3)).sum().backward()
    kfac.update_curvature(Normal(out, 1.0))
    a, _ = kfac.factors()["0"]
    assert a.max() < 20


def test_capture_changes_neither_outputs_nor_gradients():
    net, _ = probed()
    kfac, x = KFAC(net), torch.randn(5, 3)
    plain = net(x)
    expected = torch.autograd.grad(plain.square().sum(), list(net.parameters()))
    with kfac.capture():
        out = net(x)
    assert torch.equal(out, plain)
    kfac.update_curvature(Normal(out, 1.0))
    got = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


def test_update_curvature_leaves_gradients_alone():
    net, _ = probed()
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(5, 3, requires_grad=True))
    kfac.update_curvature(Categorical(logits=out))
    assert all(p.grad is None for p in net.parameters())


class NoHostSync(TorchDispatchMode):
    """Raises where an accelerator would stall: at a value, a branch or a shape from a tensor."""

    FORBIDDEN = frozenset(
        {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.item.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
            # These read their error code on the host.
            torch.ops.aten._linalg_check_errors.default,
            torch.ops.aten._linalg_eigh.default,
            torch.ops.aten.cholesky_inverse.default,
        }
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in self.FORBIDDEN, f"{func} waits for the device"
        if func is torch.ops.aten.index.Tensor:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask's size waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"target_kl": None}],
    ids=["defaults", "momentum", "unbounded"],
)
def test_no_host_sync(settings):
    """The Cholesky form only: an eigendecomposition in torch always looks at its own success."""
    net = nn.ModuleDict(
        {
            "body": nn.Sequential(
                nn.Conv2d(2, 2, 2, groups=2), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(),
                nn.Linear(8, 4),
            ),
            "embed": nn.Embedding(4, 8, padding_idx=0),
        }
    )  # fmt: skip
    kfac = KFAC(net, **in_groups(**settings))
    kfac.defer_checks = True
    image, token = torch.randn(6, 2, 3, 3), torch.randint(4, (6,))
    for _ in range(3):
        with NoHostSync():
            with kfac.capture():
                out = net["body"](image) + net["embed"](token)[:, :4]
            # Checking a distribution's arguments is the caller's choice, and it does look at them.
            dists = [
                Categorical(logits=out[:, :2], validate_args=False),
                Normal(out[:, 2:], 1.0, validate_args=False),
            ]
            kfac.update_curvature(*dists)
            kfac.zero_grad()
            out.square().mean().backward()
            kfac.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_guard_against_host_syncs_works():
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.ones(()).item()
