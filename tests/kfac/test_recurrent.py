"""Recurrent weights as linear Gaussian chains: their blocks and inverses, exact on such chains."""

import functools

import pytest
import torch
from torch import Tensor, nn

from acktr.kfac.assignment import Spec
from acktr.kfac.forms import Form
from acktr.kfac.graph import whole
from acktr.kfac.inverses import damping_shifts
from acktr.kfac.options import Curvature
from acktr.kfac.recurrent import LinearGaussianBlock, gamma
from acktr.kfac.samples import Batch
from acktr.kfac.uses import Use, Used

CHAINS = pytest.mark.parametrize("chain", ["lgm-1", "lgm-2"])
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def covariances(size: int, lags: int, symmetric: bool) -> list[Tensor]:
    """``E[x_t x_(t-d)']`` of a stationary chain, for d from 0 on."""
    Q, V = (torch.linalg.qr(torch.randn(size, size))[0] for _ in range(2))
    psi = Q @ torch.linspace(-0.6, 0.8, size).diag() @ (Q.T if symmetric else V.T)
    root = torch.randn(size, size) + 2.0 * torch.eye(size)
    if symmetric:  # in the coordinates of the symmetric root
        values, vectors = torch.linalg.eigh(root @ root.T)
        root = vectors * values.sqrt() @ vectors.T
    found = [root @ root.T]
    step = root @ psi @ torch.linalg.inv(root)
    for _ in range(lags):
        found.append(step @ found[-1])
    return found


def chain_block(chain: str, rows: int = 2, columns: int = 3) -> LinearGaussianBlock:
    form = Form((rows, columns), whole((rows, columns)))
    params = {"weight": nn.Parameter(torch.zeros(rows, columns))}
    spec = Spec("layer", 0, (("weight", "layer.weight"),), form)
    return LinearGaussianBlock(spec, params, Curvature(stat_decay=1.0, recurrent=chain))


def given(block: LinearGaussianBlock, A: list[Tensor], G: list[Tensor], steps: float) -> None:
    """Put the moments of chains in the place of averages."""
    lags = torch.cat([steps * A[1].flatten(), G[1].flatten(), torch.tensor([1.0 - 1.0 / steps])])
    block.average.update((steps * A[0], G[0], lags), True, block.like)


class Rows(Use):
    def __init__(self, a: Tensor, created: int) -> None:
        self.lead, self.a, self.created = tuple(a.shape[:1]), a, created

    def rows(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        return self.a, grads


def all_samples(moments: list[Tensor], steps: int) -> Tensor:
    """Rows ``(N, T, d)`` whose moments over samples are those of the chain at all lags."""
    blocks = [
        torch.cat([moments[t - s] if t >= s else moments[s - t].T for s in range(steps)], 1)
        for t in range(steps)
    ]
    root = torch.linalg.cholesky(torch.cat(blocks))
    return (root * len(root) ** 0.5).T.unflatten(1, (steps, -1))


@CHAINS
def test_samples_of_a_chain_have_its_block(chain):
    """Of the finite chain "lgm-1" is exact; "lgm-2" reads the same lags, in the order of time."""
    steps = 5
    A, G = (covariances(n, steps, chain == "lgm-1") for n in (3, 2))
    a, g = all_samples(A, steps), all_samples(G, steps)
    a, g = a.repeat_interleave(len(g), 0), g.repeat(len(a), 1, 1)  # independent of each other
    block, n = chain_block(chain), len(a)
    uses = [Used(Rows(a[:, t], t), g[:, t], (1, 1)) for t in (3, 0, 4, 1, 2)]
    block.average.update(block.statistics(uses, Batch(n, n)), True, block.like)
    expected = chain_block(chain)
    given(expected, A, G, steps)
    for mine, theirs in zip(block.average.values, expected.average.values, strict=True):
        close(mine, theirs)
    if chain == "lgm-1":
        gradients = (g.mT @ a).flatten(1)
        close(block.dense(), gradients.T @ gradients / n)


def test_an_endless_chain_is_the_sum_over_all_lags():
    A, G = (covariances(n, 400, symmetric=False) for n in (3, 2))
    block = chain_block("lgm-2")
    given(block, A, G, steps=1e9)
    lags = [torch.kron(g, a) for g, a in zip(G, A, strict=True)]
    close(block.dense() / 1e9, lags[0] + sum(v + v.T for v in lags[1:]))


@CHAINS
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_inverse_is_that_of_the_damped_chain(chain, symmetric):
    """...and the quadratic form is that of the dense form."""
    A, G = (covariances(n, 1, symmetric) for n in (3, 2))
    block, damped, damping = chain_block(chain), chain_block(chain), 0.3
    given(block, A, G, steps=6)
    shifts = damping_shifts([block.pair], [damping])
    given(
        damped,
        [A[0] + shifts[0] * torch.eye(3) / 6, A[1]],
        [G[0] + shifts[1] * torch.eye(2), G[1]],
        steps=6,
    )
    ((tensors, ok),) = block.inverse.method.invert([block.pair], [damping], False)
    assert ok
    assert [tuple(x.shape) for x in tensors] == block.inverse.method.shapes(block.pair.kinds)
    block.inverse.tensors = tensors
    matrix = torch.randn(2, 3)
    (natural,) = block.precondition([matrix], damping)
    close(damped.dense() @ natural.flatten(), matrix.flatten())
    close(block.quadratic([matrix]), matrix.flatten() @ block.dense() @ matrix.flatten())


@CHAINS
def test_factors_without_full_rank_have_a_quadratic_form(chain):
    A, G = (covariances(n, 1, symmetric=False) for n in (2, 2))
    A = [torch.block_diag(x, torch.zeros(1, 1)) for x in A]  # an input that is always 0
    block = chain_block(chain)
    given(block, A, G, steps=6)
    matrix = torch.randn(2, 3)
    close(block.quadratic([matrix]), matrix.flatten() @ block.dense() @ matrix.flatten())
    assert block.dense()[2].abs().max() < 1e-12


@CHAINS
def test_no_step_counts_as_more_than_equal_ones_or_less_than_noise(chain):
    """Estimated lags may lie outside of what a stationary chain can have."""
    A, G = [torch.eye(3)] * 2, [torch.eye(2)] * 2
    for sign in (1.0, -1.0):
        block = chain_block(chain)
        given(block, [A[0], 1.2 * A[1]], [G[0], sign * 1.2 * G[1]], steps=6)
        spectrum = torch.linalg.eigvalsh(block.dense()) / 6
        lowest = float(gamma(torch.tensor(-0.9), 6)) if chain == "lgm-1" else 1 / 6
        close(spectrum, torch.full((6,), 6.0 if sign > 0 else lowest), rtol=1e-5)


def test_gamma_is_the_sum_over_lags():
    x = torch.linspace(-0.9, 1.0, 39)
    for steps in (1, 2, 7, 24):
        direct = sum((1 - abs(d) / steps) * x ** abs(d) for d in range(1 - steps, steps))
        torch.testing.assert_close(gamma(x, steps), direct, rtol=1e-5, atol=0)
        close(gamma(x, steps)[:-1], direct[:-1])
