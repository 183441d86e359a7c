"""Wide layers: split factors are the diagonal blocks of whole ones, and bound memory and time."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.averages import Gram
from acktr.kfac.factors import split_shape
from tests.helpers.options import in_groups

NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6)), (5,)),
    "no-bias": (lambda: nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 4)), (5,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 5, 2), nn.Tanh(), nn.Flatten()), (2, 3, 3)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh()), (4, 3, 3)),
}


@pytest.mark.parametrize(
    ("size", "bound", "shape"),
    [
        (4097, 1024, (5, 820)),
        (8, 4, (2, 4)),
        (9, 4, (3, 3)),
        (4, 4, None),
        (9, None, None),
        (3, 1, (3, 1)),
        (2049, "auto", None),  # 2048 inputs and a bias
        (3000, "auto", (3, 1000)),
        (50257, "auto", (50, 1006)),
    ],
)
def test_split_shape(size, bound, shape):
    assert split_shape(size, bound) == shape
    if shape is not None:
        k, s = shape
        assert s <= (1024 if bound == "auto" else bound)
        assert 0 <= k * s - size < k


def mask(size: int, bound: int) -> torch.Tensor:
    """1 where a whole factor and its split form agree."""
    k, s = split_shape(size, bound) or (1, size)
    return torch.block_diag(*[torch.ones(s, s)] * k)[:size, :size]


def join(factor: torch.Tensor, size: int) -> torch.Tensor:
    """A factor as one matrix."""
    return torch.block_diag(*factor)[:size, :size] if factor.ndim == 3 else factor


def diagonal_blocks(matrix: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """The diagonal blocks of a matrix, with zeros beyond its size."""
    whole = matrix.new_zeros(count * width, count * width)
    whole[: len(matrix), : len(matrix)] = matrix
    return torch.stack([whole[i : i + width, i : i + width] for i in range(0, len(whole), width)])


@pytest.mark.parametrize("bound", [1, 3, 4])
@pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)
def test_split_factors_are_the_diagonal_blocks_of_whole_ones(build, shape, bound):
    net = build()
    x = torch.randn(20, *shape)
    whole, split = KFAC(net), KFAC(net, curvature=Curvature(max_factor_size=bound))
    for _ in range(3):
        for kfac in (whole, split):
            torch.manual_seed(1)
            with kfac.capture():
                out = net(x)
            kfac.update_curvature(Normal(out, 0.5))
    for name, factors in whole.factors().items():
        for full, parts in zip(factors, split.factors()[name], strict=True):
            if full.ndim == 3:  # the groups of a convolution divide its factors already
                torch.testing.assert_close(parts, full)
                continue
            torch.testing.assert_close(join(parts, len(full)), full * mask(len(full), bound))
            if parts.ndim == 3:
                torch.testing.assert_close(parts, diagonal_blocks(full, *parts.shape[:2]))


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
@pytest.mark.parametrize("bound", [2, 3, 100])
def test_a_split_step_is_that_of_the_dense_formula(inverse, bound):
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))
    kfac = KFAC(
        net, lr=1.0, damping=0.05, target_kl=0.01, **in_groups(inverse=inverse, max_factor_size=bound)
    )
    with kfac.capture():
        out = net(torch.randn(30, 5))
    kfac.update_curvature(Categorical(logits=out))
    out.square().mean().backward()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    directions, quadratic = {}, 0.0
    for name, (A, S) in kfac.factors().items():
        layer = layers[name]
        gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        A, S = join(A, gradient.shape[1]), join(S, gradient.shape[0])
        eye_a, eye_s = torch.eye(len(A)), torch.eye(len(S))
        if inverse == "cholesky":
            pi = ((A.trace() / len(A)) / (S.trace() / len(S))).sqrt()
            damped = torch.kron(S + 0.05**0.5 / pi * eye_s, A + pi * 0.05**0.5 * eye_a)
        else:
            damped = torch.kron(S, A) + 0.05 * torch.kron(eye_s, eye_a)
        direction = torch.linalg.solve(damped, gradient.flatten()).view_as(gradient)
        directions[name] = direction
        quadratic += (direction.flatten() @ torch.kron(S, A) @ direction.flatten()).item()
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    kfac.step()
    scale = min(1.0, (2 * 0.01 / quadratic) ** 0.5)
    assert kfac.last_step[0].step_scale.item() == pytest.approx(scale)
    for name, layer in layers.items():
        torch.testing.assert_close(before[name] - layer.weight, scale * directions[name][:, :-1])


def test_memory_is_bounded():
    net = nn.Linear(100, 90)
    kfac = KFAC(net, curvature=Curvature(max_factor_size=16))
    with kfac.capture():
        out = net(torch.randn(8, 100))
    kfac.update_curvature(Normal(out, 1.0))
    A, S = kfac.factors()[""]
    assert tuple(A.shape) == (7, 15, 15)
    assert tuple(S.shape) == (6, 15, 15)


def test_states_of_other_splits_are_refused_and_the_own_one_is_restored():
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))

    def train(kfac: KFAC) -> None:
        with kfac.capture():
            out = net(torch.randn(30, 5))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()

    kfac = KFAC(net, curvature=Curvature(max_factor_size=3))
    train(kfac)
    state = kfac.state_dict()
    with pytest.raises(ValueError, match="curvature of block '0' has shapes"):
        KFAC(net).load_state_dict(state)
    other = KFAC(net, curvature=Curvature(max_factor_size=3))
    other.load_state_dict(state)
    for name, factors in kfac.factors().items():
        for mine, theirs in zip(factors, other.factors()[name], strict=True):
            assert torch.equal(mine, theirs)


def wide_classifier() -> nn.Sequential:
    """An embedding and an output layer of more words than a whole factor may have."""
    return nn.Sequential(nn.Embedding(2100, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2100))


def test_wide_layers_are_split_by_themselves_and_say_so_once(caplog):
    net = wide_classifier()
    kfac = KFAC(net)
    for _ in range(2):
        with kfac.capture():
            out = net(torch.randint(2100, (5,)))
        kfac.update_curvature(Categorical(logits=out))
    shapes = {name: [tuple(x.shape) for x in pair] for name, pair in kfac.factors().items()}
    assert shapes == {
        "0": [(2100,), (3, 3)],  # one number a word
        "1": [(4, 4), (4, 4)],
        "3": [(5, 5), (3, 700, 700)],
    }
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "K-FAC keeps the factors of 3 (2100, 4) as blocks of at most 1024 coordinates, as they are "
        "wider than 2048: Curvature(max_factor_size=None) keeps them whole."
    )


@pytest.mark.parametrize("bound", [None, 1500])
def test_what_is_asked_for_is_not_told(bound, caplog):
    net = wide_classifier()
    kfac = KFAC(net, curvature=Curvature(max_factor_size=bound))
    with kfac.capture():
        out = net(torch.randint(2100, (5,)))
    kfac.update_curvature(Categorical(logits=out))
    width = 2100 if bound is None else 1050
    assert kfac.factors()["3"][1].shape[-1] == width
    assert not caplog.records


@pytest.mark.parametrize("bound", [0, -3, "all"])
def test_a_bound_below_one_is_refused(bound):
    with pytest.raises(ValueError, match="max_factor_size must be at least 1"):
        KFAC(nn.Linear(2, 2), curvature=Curvature(max_factor_size=bound))


@pytest.mark.parametrize("size", [1024, 1037])
@pytest.mark.parametrize("bias", [False, True])
def test_a_wide_gram_matrix_is_multiplied_by_strips_to_the_same(size, bias):
    rows = torch.randn(9, size, dtype=torch.float64)
    whole = torch.cat([rows, rows.new_ones(9, 1)], -1) if bias else rows
    product = whole.mT @ whole
    torch.testing.assert_close(Gram(rows, 3, bias).dense(), product / 3)
    average = product.clone()
    Gram(rows, 3, bias).average_into(average, 0.25)
    torch.testing.assert_close(average, 0.75 * product + 0.25 * product / 3)
