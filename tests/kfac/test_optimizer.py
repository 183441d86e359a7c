"""KFAC as a torch optimiser: interface, parameter groups, periods, copies and saved state."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.optim.lr_scheduler import LambdaLR

from acktr.kfac import KFAC, Curvature, Periods
from tests.helpers.options import in_groups


class Net(nn.Module):
    """Every kind of block: convolution, linear layers, norm, embedding, bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 9)
        self.conv = nn.Conv2d(1, 2, 2, groups=1)
        self.norm = nn.LayerNorm(8)
        self.policy = nn.Linear(8, 3)
        self.mean = nn.Linear(8, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        latent = self.conv(self.embed(x).view(-1, 1, 3, 3)).flatten(1).tanh()
        latent = self.norm(latent)
        dist = Normal(self.mean(latent), self.log_std.exp())
        return [Categorical(logits=self.policy(latent)), dist]


def batch(step: int) -> torch.Tensor:
    return torch.randint(5, (6,), generator=torch.Generator().manual_seed(step))


def train(kfac: KFAC, net: Net, steps: range) -> None:
    """Each step has its own seed, so that a continuation draws what the whole run would draw."""
    for k in steps:
        torch.manual_seed(k)
        with kfac.capture():
            dists = net(batch(k))
        kfac.update_curvature(dists)
        kfac.zero_grad()
        dists[0].probs[:, 0].mean().add((dists[1].mean - 1).square().mean()).backward()
        net.log_std.grad = net.log_std.detach() - 1
        kfac.step()


SETTINGS = {
    "defaults": {},
    "eigen": {"inverse": "eigen"},
    "ekfac": {"inverse": "ekfac", "inverse_period": 2},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "monte-carlo": {"fisher": "monte-carlo"},
    "periods": {"factor_period": 2, "inverse_period": 3},
    "burn-in": {"burn_in": 4, "factor_period": 2, "inverse_period": 3},
}
KINDS = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def build(settings: dict, seed: int = 0) -> tuple[Net, KFAC]:
    torch.manual_seed(seed)
    net = Net()
    return net, KFAC(net, lr=0.5, target_kl=1e-2, **in_groups(**settings))


def assert_same_parameters(a: Net, b: Net) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


@KINDS
def test_it_descends_and_moves_every_parameter(settings):
    net, kfac = build(settings)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    train(kfac, net, range(6))
    for name, p in net.named_parameters():
        assert p.isfinite().all()
        assert not torch.equal(p, before[name]), name


def test_it_is_a_torch_optimizer():
    net, kfac = build({})
    assert isinstance(kfac, torch.optim.Optimizer)
    names = {id(p) for group in kfac.param_groups for p in group["params"]}
    assert names == {id(p) for p in net.parameters()}
    group = kfac.param_groups[0]
    assert {"lr", "damping", "target_kl", "momentum", "weight_decay"} <= set(group)
    LambdaLR(kfac, lambda _: 0.5)
    assert group["lr"] == 0.25
    train(kfac, net, range(1))
    kfac.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_step_evaluates_a_closure_with_gradients():
    layer = nn.Linear(2, 1)
    kfac = KFAC(layer)

    def closure():
        kfac.zero_grad()
        with kfac.capture():
            out = layer(torch.ones(3, 2))
        kfac.update_curvature(Normal(out, 1.0))
        loss = out.square().mean()
        loss.backward()
        return loss

    losses = [kfac.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert kfac.step() is None


def test_parameters_without_gradient_are_skipped():
    net, kfac = build({"momentum": 0.9, "weight_decay": 0.1})
    train(kfac, net, range(2))
    for p in net.conv.parameters():
        p.grad = None
    net.policy.bias.grad = None
    frozen = {n: p.clone() for n, p in net.named_parameters() if p.grad is None}
    kfac.step()
    for name, p in net.named_parameters():
        assert torch.equal(p, frozen[name]) if name in frozen else p.isfinite().all()


def test_a_gradient_without_curvature_is_refused_before_anything_moves():
    net = nn.ModuleDict({"policy": nn.Linear(2, 3), "value": nn.Linear(2, 1)})
    kfac = KFAC(net, param_groups=[{"params": list(m.parameters())} for m in net.values()])
    with kfac.capture():
        logits, value = net["policy"](torch.ones(4, 2)), net["value"](torch.ones(4, 2))
    kfac.update_curvature(Categorical(logits=logits))
    (logits.exp().mean() + value.square().mean()).backward()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"value.*curvature"):
        kfac.step()
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


def test_hooks_on_the_optimizer_run():
    net, kfac = build({})
    calls = []
    kfac.register_step_post_hook(lambda *_: calls.append(1))
    train(kfac, net, range(2))
    assert len(calls) == 2


# ---------------------------------------------------------------- periods


def test_factor_period_uses_every_kth_batch():
    layer = nn.Linear(1, 1, bias=False)
    kfac = KFAC(layer, curvature=Curvature(stat_decay=1.0), periods=Periods(factor=3))
    for value in [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]:
        with kfac.capture():
            out = layer(torch.full((2, 1), value))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.mean().backward()
        kfac.step()
    torch.testing.assert_close(kfac.factors()[""][0], torch.tensor([[(1.0 + 25.0) / 2]]))


def test_inverse_period_keeps_an_inverse_for_k_steps():
    """With the first batch's factors the step is g / (a s + damping); a and s are 1, then 100."""
    layer = nn.Linear(1, 1, bias=False)
    kfac = KFAC(
        layer,
        lr=1.0,
        target_kl=None,
        damping=0.0,
        curvature=Curvature(stat_decay=1e-9, inverse="eigen"),
        periods=Periods(inverse=3),
    )
    steps = []
    for value in [1.0, 10.0, 10.0, 10.0]:
        with kfac.capture():
            out = layer(torch.full((2, 1), value))
        kfac.update_curvature(Normal(out, 1.0))
        layer.weight.grad = torch.ones(1, 1)
        before = layer.weight.item()
        kfac.step()
        steps.append(before - layer.weight.item())
    assert steps == pytest.approx([1, 1, 1, 0.01], rel=1e-6)


# ---------------------------------------------------------------- copies and saved state


def assert_same_state(got, expected) -> None:
    """Bitwise, through all containers."""
    assert type(got) is type(expected)
    if isinstance(got, torch.Tensor):
        assert torch.equal(got, expected)
    elif isinstance(got, dict):
        assert got.keys() == expected.keys()
        for key in got:
            assert_same_state(got[key], expected[key])
    elif isinstance(got, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_state(one, other)
    else:
        assert got == expected


def saved(kfac: KFAC) -> dict:
    """Through a file and the loader that unpickles nothing but tensors and plain containers."""
    file = io.BytesIO()
    torch.save(kfac.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@KINDS
@pytest.mark.parametrize("split", [0, 1, 3, 4])
def test_a_loaded_state_continues_bitwise(settings, split):
    whole, kfac = build(settings)
    train(kfac, whole, range(7))

    first, kfac_first = build(settings)
    train(kfac_first, first, range(split))
    state, weights = saved(kfac_first), copy.deepcopy(first.state_dict())
    second, fresh = build(settings, seed=99)
    second.load_state_dict(weights)
    fresh.load_state_dict(state)
    train(fresh, second, range(split, 7))

    assert_same_parameters(second, whole)
    torch.testing.assert_close(fresh.factors(), kfac.factors(), rtol=0, atol=0)


@pytest.mark.parametrize("inverse", ["cholesky", "ekfac"])
def test_a_state_that_says_nothing_of_its_structure_is_what_its_factors_say(inverse):
    """As states of versions that went by the types of modules."""

    def make():
        torch.manual_seed(3)
        net = Net()
        net.conv = nn.Conv2d(1, 2, 2)
        net.grouped = nn.Conv1d(2, 4, 1, groups=2)
        net.mean.weight.requires_grad_(False)
        return net, KFAC(net, **in_groups(inverse=inverse, max_factor_size=4))

    def step(net, kfac):
        torch.manual_seed(4)
        with kfac.capture():
            latent = net.conv(net.embed(batch(0)).view(-1, 1, 3, 3)).flatten(2)
            latent = net.norm(net.grouped(latent)[:, :2].flatten(1))
            deviation = net.log_std.exp()
            dists = [Normal(net.mean(latent), deviation), Categorical(logits=net.policy(latent))]
        kfac.update_curvature(dists)
        kfac.zero_grad()
        dists[0].mean.square().mean().add(dists[1].probs[:, 0].mean() + net.log_std.sum()).backward()
        kfac.step()

    net, kfac = make()
    for _ in range(2):
        step(net, kfac)
    state, weights = saved(kfac), copy.deepcopy(net.state_dict())
    del state["structure"]
    other, fresh = make()
    other.load_state_dict(weights)
    fresh.load_state_dict(state)
    for mine, theirs in zip(fresh._all_blocks(), kfac._all_blocks(), strict=True):
        # Of a frozen weight the shape tells more than the graph did.
        assert mine.spec.params == theirs.spec.params
        assert mine.spec.form == theirs.spec.form or mine.name == "mean"
    for one in ((net, kfac), (other, fresh)):
        step(*one)
    assert_same_parameters(net, other)
    torch.testing.assert_close(fresh.factors(), kfac.factors(), rtol=0, atol=0)


def test_a_loaded_state_restores_schedules_and_counters():
    net, kfac = build({})
    kfac.param_groups[0].update(lr=0.123, damping=0.7, target_kl=None)
    train(kfac, net, range(2))
    net, fresh = build({}, seed=99)
    fresh.load_state_dict(saved(kfac))
    group = fresh.param_groups[0]
    assert (group["lr"], group["damping"], group["target_kl"]) == (0.123, 0.7, None)
    assert fresh.counters == kfac.counters
    for name, block in kfac.fisher_blocks().items():
        assert torch.equal(block, fresh.fisher_blocks()[name])


def test_a_saved_state_is_a_snapshot():
    """Training on, after loading or after saving, must not change what was saved."""
    net, kfac = build({"momentum": 0.9})
    train(kfac, net, range(2))
    state = saved(kfac)
    other, fresh = build({"momentum": 0.9}, seed=99)
    fresh.load_state_dict(state)
    reference = copy.deepcopy(state)
    train(fresh, other, range(2, 4))
    assert_same_state(state, reference)


def trained_mlp(width: int, **settings) -> KFAC:
    net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    kfac = KFAC(net, **in_groups(**settings))
    with kfac.capture():
        out = net(torch.randn(9, 3))
    kfac.update_curvature(Normal(out, 1.0))
    out.sum().backward()
    kfac.step()
    return kfac


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: build({})[1], "another model|group"),
        (lambda: trained_mlp(5), "0|shape|size"),
        (lambda: trained_mlp(4, inverse="eigen"), "inverse|eigen"),
    ],
    ids=["other-layers", "other-width", "other-inverse"],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(source, words):
    kfac, state = trained_mlp(4), saved(source())
    before = saved(kfac)
    with pytest.raises(ValueError, match=words):
        kfac.load_state_dict(state)
    assert_same_state(saved(kfac), before)


@KINDS
@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_continues_alone(settings, clone):
    net, kfac = build(settings)
    train(kfac, net, range(2))
    net_copy, kfac_copy = clone((net, kfac))
    before = {k: v.clone() for k, v in net_copy.state_dict().items()}
    train(kfac, net, range(2, 5))
    assert all(torch.equal(before[k], v) for k, v in net_copy.state_dict().items())
    train(kfac_copy, net_copy, range(2, 5))
    assert_same_parameters(net, net_copy)


def test_two_runs_with_one_seed_are_identical():
    (a, kfac_a), (b, kfac_b) = build({}), build({})
    train(kfac_a, a, range(4))
    train(kfac_b, b, range(4))
    assert_same_parameters(a, b)
