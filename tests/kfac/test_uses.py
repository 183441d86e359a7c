"""Every kind of use against the dense Fisher, in float64: whose rows are whose, and what they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.diagonal import DiagonalBlock
from tests.helpers.options import in_groups

from . import oracle
from .models import MODELS, inputs
from .test_ekfac import eigenbasis

SIGMA = 0.7
EACH = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def with_norms_moved(net: nn.Module) -> nn.Module:
    """Gains and shifts that are not the ones and zeros that they begin as."""
    for p in net.parameters():
        if p.ndim == 1:
            nn.init.normal_(p)
    return net


@EACH
def test_diagonals_and_moments_are_those_of_the_exact_fisher(model, observe):
    """Of a Kronecker block the moments are the diagonal of the exact block in its eigenbasis.

    They are sums over samples of squares of sums over positions and uses: nothing but the right rows of
    the right samples gives them.
    """
    net, x = with_norms_moved(model.build()), inputs(model)
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian(SIGMA))
    kfac = KFAC(net, lr=0.0, curvature=Curvature(stat_decay=1.0, approximation="ekfac"))
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=2)
    net(x).square().mean().backward()
    kfac.step()  # makes the basis, and moves nothing
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=2)

    blocks = kfac._all_blocks()
    held = [name for block in blocks for _, name in block.spec.params]
    assert sorted(held) == sorted(name for name, p in net.named_parameters() if p.requires_grad)
    assert {b.name for b in blocks if isinstance(b, DiagonalBlock)} == set(model.diagonal)
    for block in blocks:
        exact = oracle.block_of(fisher, net, block)
        if isinstance(block, KroneckerBlock):
            basis = eigenbasis(block)
            expected = (basis.T @ exact @ basis).diagonal()
            torch.testing.assert_close(block.moments.flatten(), expected, rtol=1e-9, atol=1e-11)
        else:
            found = torch.cat(block.average.values)
            torch.testing.assert_close(found, exact.diagonal(), rtol=1e-9, atol=1e-11)


@EACH
def test_expand_and_reduce_take_steps_inside_the_trust_region(model):
    for sharing in ("expand", "reduce"):
        net = model.build()
        kfac = KFAC(net, curvature=Curvature(weight_sharing=sharing))
        before = [p.detach().clone() for p in net.parameters()]
        for _ in range(2):
            with kfac.capture():
                out = net(inputs(model))
            kfac.update_curvature(Normal(out, 1.0))
            kfac.zero_grad()
            (out - 1).square().mean().backward()
            kfac.step()
            assert kfac.last_step[0].predicted_kl <= 0.001 * (1 + 1e-9)
        moved = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        assert moved == [p.requires_grad for p in net.parameters()]


def factors(net: nn.Module, x: Tensor, **options: object) -> dict[str, tuple[Tensor, ...]]:
    kfac = KFAC(net, **in_groups(stat_decay=1.0, **options))
    torch.manual_seed(1)
    with kfac.capture():
        out = net(x)
    kfac.update_curvature(Normal(out, SIGMA))
    return kfac.factors()


ORDERS = {
    "linear": ("linear-tokens", "linear-time-first"),
    "attention": ("attention", "attention-time-first"),
}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("first", "second"), ORDERS.values(), ids=ORDERS)
def test_batch_first_and_time_first_have_the_same_factors(first, second, sharing):
    one, other, x = MODELS[first].build(), MODELS[second].build(), inputs(MODELS[first])
    other.load_state_dict(one.state_dict())
    found = [factors(net, x, weight_sharing=sharing) for net in (one, other)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


class SpelledAttention(nn.Module):
    """:class:`nn.MultiheadAttention` of one head, as three linear layers and a fourth."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 4)
        self.out.load_state_dict(attention.out_proj.state_dict())
        parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        for layer, (weight, bias) in zip((self.q, self.k, self.v), parts, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.q(x) @ self.k(x).mT / 2.0).softmax(-1)
        return self.out(scores @ self.v(x)).mean(1)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_attention_is_the_linear_layers_that_it_is_made_of(sharing):
    attention = nn.MultiheadAttention(4, 1, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    spelled, x = SpelledAttention(attention), torch.randn(3, 5, 4)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0].mean(1)

    mine = factors(Pooled(), x, weight_sharing=sharing)
    theirs = factors(spelled, x, weight_sharing=sharing)
    together = tuple(torch.stack(of) for of in zip(*(theirs[name] for name in "qkv"), strict=True))
    torch.testing.assert_close(mine["attention.in_proj_weight"], together, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(mine["attention.out_proj"], theirs["out"], rtol=1e-9, atol=1e-11)


class SpelledGRU(nn.Module):
    """:class:`nn.GRU` as two linear layers."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(3, 6), nn.Linear(2, 6)
        self.ih.load_state_dict({"weight": gru.weight_ih_l0, "bias": gru.bias_ih_l0})
        self.hh.load_state_dict({"weight": gru.weight_hh_l0, "bias": gru.bias_hh_l0})

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 2)
        for t in range(x.shape[1]):
            (r, z, n), (hr, hz, hn) = self.ih(x[:, t]).chunk(3, -1), self.hh(h).chunk(3, -1)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            h = (1 - z) * (n + r * hn).tanh() + z * h
        return h


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_gru_is_the_linear_layers_that_it_is_made_of(sharing):
    gru = nn.GRU(3, 2, batch_first=True)
    spelled, x = SpelledGRU(gru), torch.randn(3, 4, 3)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = gru

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0][:, -1]

    mine = factors(Last(), x, weight_sharing=sharing)
    theirs = factors(spelled, x, weight_sharing=sharing)
    for name in ("ih", "hh"):
        torch.testing.assert_close(mine[f"gru.weight_{name}_l0"], theirs[name], rtol=1e-9, atol=1e-11)


POOLED = {"mean-batch-first": (False, True), "mean-time-first": (True, True), "none": (False, False)}


@pytest.mark.parametrize(("time_first", "pooled"), POOLED.values(), ids=POOLED)
def test_linear_networks_are_exact(time_first, pooled, observe):
    """Eschenhagen et al. 2023: "reduce" where positions are pooled, "expand" where they are not."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x.transpose(0, 1) if time_first else x))
            return y.mean(0 if time_first else 1) if pooled else y

    net, x = Net(), torch.randn(5, 3, 4)
    kfac = KFAC(
        net, curvature=Curvature(stat_decay=1.0, weight_sharing="reduce" if pooled else "expand")
    )
    observe(kfac, lambda: [Normal(net(x), SIGMA)], n_patterns=8)
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian(SIGMA))
    for block in kfac._all_blocks():
        exact = oracle.block_of(fisher, net, block)
        torch.testing.assert_close(block.dense(), exact, rtol=1e-9, atol=1e-11)
