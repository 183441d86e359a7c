"""EKFAC: the diagonal of the exact Fisher in K-FAC's eigenbasis, and all that follows from it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature, Periods, StepRule, samples
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.exact import flatten
from acktr.kfac.factors import Batched
from tests.helpers.options import in_groups

from . import oracle
from .test_weight_sharing import SumOverPositions

SIGMA = 0.7


class Twice(nn.Module):
    """One layer that each sample goes through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Words(nn.Module):
    """Words come more than once in a sample, and one of them is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.linspace(1.0, 2.0, x.shape[1])[:, None]
        return (self.embed(x).tanh() * places).sum(1)


def conv(**options: object) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 2, **options), nn.Tanh(), SumOverPositions(), nn.Linear(4, 2))


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (3,)),
    "no-bias": (lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh()), (3,)),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)),
        (5, 3),
    ),
    "twice": (Twice, (3,)),
    "conv": (conv, (2, 4, 5)),
    "padded": (lambda: conv(stride=2, padding=1), (2, 4, 5)),
    "groups": (lambda: conv(groups=2), (2, 4, 5)),
    "words": (Words, (6,)),
}
OPTIONS = {
    "whole": {},
    "reduce": {"weight_sharing": "reduce"},
    "split": {"max_factor_size": 3},
    "split-in-two": {"max_factor_size": 2, "weight_sharing": "reduce"},
}


def inputs(shape: tuple[int, ...], n: int = 7) -> Tensor:
    return torch.randint(5, (n, *shape)) if shape == (6,) else torch.randn(n, *shape)


def kronecker_blocks(kfac: KFAC) -> list[KroneckerBlock]:
    return [b for b in kfac._all_blocks() if isinstance(b, KroneckerBlock)]


def eigenbasis(block: KroneckerBlock) -> Tensor:
    """Q_S (x) Q_A of one block as columns over its (out, in + 1) matrix, group by group."""
    A, S, _ = block.inverse.tensors
    columns, rows = (kind.size for kind in block.pair.kinds)
    if isinstance(block.pair.kinds.S, Batched):
        return torch.block_diag(*map(torch.kron, S, A))
    A = A if A.numel() else torch.eye(columns)
    whole = [torch.block_diag(*x) if x.ndim == 3 else x for x in (S, A)]
    return torch.kron(whole[0][:rows].contiguous(), whole[1][:columns].contiguous())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)
def test_the_moments_are_the_diagonal_of_the_exact_fisher(build, shape, options, observe, monkeypatch):
    """...in the eigenbasis; so the block is nearer to the exact one than K-FAC's, and has its trace."""
    monkeypatch.setattr(samples, "MAX_ENTRIES", 100)  # samples in several parts
    net, x = build(), inputs(shape)
    kfac = KFAC(net, lr=0.0, **in_groups(stat_decay=1.0, inverse="ekfac", **options))
    observe(kfac, lambda: [Normal(net(x), SIGMA)])
    net(x).square().mean().backward()
    kfac.step()  # makes the basis, and moves nothing
    observe(kfac, lambda: [Normal(net(x), SIGMA)])

    fisher = oracle.dense_fisher(net, x, oracle.gaussian(SIGMA))
    for block in kronecker_blocks(kfac):
        exact, basis = oracle.block_of(fisher, net, block), eigenbasis(block)
        diagonal = (basis.T @ exact @ basis).diagonal()
        torch.testing.assert_close(block.moments.flatten(), diagonal, rtol=1e-9, atol=1e-12)
        dense = kfac.fisher_blocks()[block.name]
        torch.testing.assert_close(dense, basis @ diagonal.diag() @ basis.T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dense.trace(), exact.trace(), rtol=1e-9, atol=0)
        distance, kronecker = exact - dense, exact - KroneckerBlock.dense(block)
        assert distance.norm() <= kronecker.norm() + 1e-12 * exact.norm()


def learn(kfac: KFAC, x: Tensor, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    """One update; the gradient, and theta before minus theta after."""
    params = list(kfac.module.parameters())
    with kfac.capture():
        out = kfac.module(x)
    kfac.update_curvature(Normal(out, sigma))
    kfac.zero_grad()
    (out - 3).square().mean().backward(retain_graph=True)
    before = flatten([p.detach().clone() for p in params])
    kfac.step()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    return flatten(grads), before - flatten([p.detach() for p in params])


def dense(kfac: KFAC) -> Tensor:
    """The matrix of all blocks, in the order of the parameters."""
    net, blocks = kfac.module, kfac.fisher_blocks()
    size = sum(p.numel() for p in net.parameters())
    whole = torch.zeros(size, size)
    for name, block in blocks.items():
        rows = oracle.layer_positions(net, name).flatten()
        whole[rows[:, None], rows] = block
    return whole


@pytest.mark.parametrize("options", [{}, {"max_factor_size": 3}], ids=["whole", "split"])
@pytest.mark.parametrize("refresh", ["together", "staggered", "background"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.3)])
@pytest.mark.parametrize("lr", [10.0, 1e-3], ids=["kl-binds", "lr-binds"])
def test_steps_against_the_dense_solution(lr, momentum, weight_decay, refresh, options):
    """The damping is added to the moments; the trust region measures with them undamped."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    target_kl, damping = 1e-3, 0.02
    kfac = KFAC(
        net,
        lr=lr,
        damping=damping,
        target_kl=target_kl,
        momentum=momentum,
        weight_decay=weight_decay,
        **in_groups(
            stat_decay=0.9, inverse="ekfac", inverse_period=2, inverse_refresh=refresh, **options
        ),
    )
    velocity: Tensor | float = 0.0
    for _ in range(5):
        theta = flatten([p.detach().clone() for p in net.parameters()])
        gradient, taken = learn(kfac, torch.randn(20, 4))
        fisher = dense(kfac)
        damped = fisher + damping * torch.eye(len(fisher))
        velocity = momentum * velocity + torch.linalg.solve(damped, gradient)
        step = velocity + weight_decay * theta
        quadratic = step @ fisher @ step
        eta = (2 * target_kl / quadratic).sqrt().clamp(max=lr)
        info = kfac.last_step[0]
        torch.testing.assert_close(info.step_scale, eta, rtol=1e-9, atol=0)
        torch.testing.assert_close(info.predicted_kl, eta**2 * quadratic / 2, rtol=1e-9, atol=0)
        torch.testing.assert_close(taken, eta * step, rtol=1e-8, atol=1e-11)


def test_conjugate_gradients_have_it_as_preconditioner_and_damping():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    kfac = KFAC(
        net,
        lr=10.0,
        damping=0.02,
        curvature=Curvature(approximation="ekfac"),
        step_rule=StepRule(cg_iterations=60),
    )
    for _ in range(3):
        x = torch.randn(20, 4)
        exact = oracle.dense_fisher(net, x, oracle.gaussian(SIGMA))
        gradient, taken = learn(kfac, x)
        step = torch.linalg.solve(exact + dense(kfac) + 0.02 * torch.eye(len(exact)), gradient)
        eta = (2e-3 / (step @ exact @ step)).sqrt()
        torch.testing.assert_close(taken, eta * step, rtol=1e-7, atol=1e-10)


def test_the_moments_follow_the_basis():
    """What they were, written in the new basis, without what is off its diagonal."""
    convolutions = nn.Conv1d(1, 4, 2), nn.Tanh(), nn.Conv1d(4, 6, 2, groups=2)
    net = nn.Sequential(nn.Unflatten(1, (1, 4)), *convolutions, nn.Flatten())
    kfac = KFAC(net, lr=0.1, curvature=Curvature(approximation="ekfac"), periods=Periods(inverse=2))
    for _ in range(2):
        learn(kfac, torch.randn(20, 4))
    with kfac.capture():
        out = net(torch.randn(20, 4))
    kfac.update_curvature(Normal(out, SIGMA))
    old = kfac.fisher_blocks()
    kfac.step()  # makes a new basis
    for block in kronecker_blocks(kfac):
        basis = eigenbasis(block)
        diagonal = (basis.T @ old[block.name] @ basis).diagonal()
        torch.testing.assert_close(block.moments.flatten(), diagonal, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(block.dense(), old[block.name], rtol=1e-3)


def test_until_it_has_measured_it_is_the_eigen_form():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(20, 4)
    steps = []
    for inverse in ("eigen", "ekfac"):
        kfac = KFAC(copy.deepcopy(net), lr=10.0, **in_groups(inverse=inverse))
        torch.manual_seed(1)
        steps.append([learn(kfac, x)[1] for _ in range(2)])
    (first, second), (same, other) = steps
    torch.testing.assert_close(same, first, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(other, second, rtol=1e-2)


def test_a_damping_of_zero_leaves_alone_what_no_sample_moves():
    net, x = nn.Linear(3, 2), torch.randn(20, 3) * torch.tensor([1.0, 1.0, 0.0])
    kfac = KFAC(net, lr=1.0, damping=0.0, target_kl=None, curvature=Curvature(approximation="ekfac"))
    for _ in range(2):
        learn(kfac, x)
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, SIGMA))
    net.weight.grad = torch.ones(2, 3)
    before = net.weight.detach().clone()
    kfac.step()
    torch.testing.assert_close(net.weight[:, 2], before[:, 2], rtol=0, atol=1e-12)
    assert (net.weight - before)[:, :2].abs().min() > 1e-3


def test_a_failed_basis_is_left_behind_with_its_moments():
    """On an accelerator zeros stand for a first basis that failed; nothing measured in them counts."""
    net, x = nn.Linear(3, 2), torch.randn(20, 3)
    kfac = KFAC(net, curvature=Curvature(approximation="ekfac"))
    kfac.defer_checks = True
    learn(kfac, x)
    (block,) = kronecker_blocks(kfac)
    block.inverse.tensors = [torch.zeros_like(t) for t in block.inverse.tensors]
    block._basis = []
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, SIGMA))
    assert not block.moments.any()
    out.sum().backward()
    kfac.step()
    torch.testing.assert_close(block.moments, block.inverse.tensors[2])


def test_statistics_in_bfloat16_are_near():
    kfac = KFAC(conv(groups=2), lr=0.0, curvature=Curvature(approximation="ekfac"))
    x = torch.randn(7, 2, 4, 5)
    learn(kfac, x)
    rounded = copy.deepcopy(kfac)
    for block in kronecker_blocks(rounded):
        block.options = replace(block.options, statistics_dtype=torch.bfloat16)
    for one in (kfac, rounded):
        torch.manual_seed(1)
        with one.capture():
            out = one.module(x)
        one.update_curvature(Normal(out, SIGMA))
    for block, other in zip(kronecker_blocks(kfac), kronecker_blocks(rounded), strict=True):
        assert other.moments.dtype == torch.float64
        assert not torch.equal(block.moments, other.moments)
        distance = (block.moments - other.moments).abs().max()
        assert distance < 0.02 * block.moments.max()


def test_rows_that_are_no_samples_count_by_themselves():
    """Seven rows and two samples: nobody knows what belongs together."""
    a, g = torch.randn(7, 3), torch.randn(7, 2)
    rows = a.unsqueeze(-2), g.unsqueeze(-2), False
    moments = samples.second_moments([rows], 2, 3, torch.float64)
    torch.testing.assert_close(moments, g.square().T @ a.square() / 2)
    both = samples.second_moments([rows, (rows[0][:2], rows[1][:2], False)], 2, 3, torch.float64)
    torch.testing.assert_close(both, moments + g[:2].square().T @ a[:2].square() / 2)


def test_numbers_that_overflow_do_not_stay():
    net, x = nn.Linear(3, 2), torch.randn(20, 3)
    kfac = KFAC(net, damping=1.0, curvature=Curvature(approximation="ekfac", stat_decay=0.1))
    learn(kfac, x)
    (block,) = kronecker_blocks(kfac)
    learn(kfac, x.clone().mul_(1e100))
    for _ in range(3):
        learn(kfac, x)
    assert block.moments.isfinite().all()
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("mine", "other"), [("ekfac", "eigen"), ("eigen", "ekfac")])
def test_a_state_of_the_other_kind_is_refused(mine, other):
    kfac, stranger = (KFAC(nn.Linear(3, 2), **in_groups(inverse=inverse)) for inverse in (mine, other))
    learn(stranger, torch.randn(6, 3))
    with pytest.raises(ValueError, match=f"not of the form .*'{mine}'"):
        kfac.load_state_dict(stranger.state_dict())


def test_moments_of_another_shape_are_refused():
    kfac = KFAC(nn.Linear(3, 2), curvature=Curvature(approximation="ekfac"))
    learn(kfac, torch.randn(6, 3))
    state = copy.deepcopy(kfac.state_dict())
    state["curvature"][""]["average"]["moments"]["values"] = [torch.zeros(7)]
    with pytest.raises(ValueError, match=r"moments of block '' have shapes \[\(7,\)\]"):
        kfac.load_state_dict(state)


def test_freezing_a_parameter_begins_anew():
    kfac = KFAC(nn.Linear(3, 2), curvature=Curvature(approximation="ekfac"))
    for _ in range(2):
        learn(kfac, torch.randn(6, 3))
    kfac.module.bias.requires_grad_(False)
    for _ in range(2):
        with kfac.capture():
            out = kfac.module(torch.randn(6, 3))
        kfac.update_curvature(Normal(out, SIGMA))
        out.square().mean().backward()
        kfac.step()
    assert kronecker_blocks(kfac)[0].moments.shape == (2, 3)
