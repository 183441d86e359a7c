"""Recurrent layers as chains in time: in networks, beside other options, saved, by two processes."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, CrossEntropy, Curvature, Periods, curvature, likelihood
from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.cuda_graphs import Graphs
from acktr.kfac.recurrent import LinearGaussianBlock
from tests.helpers.options import in_groups
from tests.helpers.processes import run_in_processes, signs_of_values

from . import oracle

CHAINS = pytest.mark.parametrize("chain", ["lgm-1", "lgm-2"])
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


class Net(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, **options: object) -> None:
        super().__init__()
        options = {"batch_first": True, **options}
        self.layer = kind(3, 2, **options)
        self.head = nn.Linear(4 if options.get("bidirectional") else 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def signals(samples: int, steps: int) -> Tensor:
    return torch.randn(samples, steps, 3).cumsum(1) / 2.0 + 1.0


def step(kfac: KFAC, x: Tensor) -> None:
    with kfac.capture():
        out = kfac.module(x)
    kfac.update_curvature(Normal(out, 1.0))
    kfac.zero_grad()
    (out - 1).square().mean().backward()
    kfac.step()


def chains(kfac: KFAC) -> list[LinearGaussianBlock]:
    return [b for b in kfac._all_blocks() if isinstance(b, LinearGaussianBlock)]


@CHAINS
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_chains_of_states_are_nearer_to_the_dense_fisher(kind, chain, observe):
    """Statistics are exact expectations: what is left is the approximation."""
    net, x = Net(kind), signals(12, 5)
    fisher = oracle.fisher_by_loops(net, x, oracle.gaussian())
    distances = []
    for recurrent in ("independent", chain):
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0, recurrent=recurrent))
        observe(kfac, lambda: [Normal(net(x), 1.0)], n_patterns=10)
        (block,) = [b for b in kfac._all_blocks() if b.name == "layer.weight_hh_l0"]
        distances.append((block.dense() - oracle.block_of(fisher, net, block)).norm())
    assert distances[1] < 0.8 * distances[0]


@CHAINS
def test_every_layer_and_direction_takes_steps_inside_the_trust_region(chain):
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        net = Net(kind, num_layers=2, bidirectional=True)
        kfac = KFAC(net, curvature=Curvature(recurrent=chain))
        for _ in range(3):
            step(kfac, signals(4, 4))  # as many steps as samples
            assert kfac.last_step[0].predicted_kl <= 0.001 * (1 + 1e-9)
        assert len(chains(kfac)) == 8
        assert kfac.counters == dict.fromkeys(kfac.counters, 0)


def test_rows_are_in_the_order_of_time(monkeypatch):
    """The inputs of a recurrent weight are the states before, from either end."""
    seen = {}
    steps_of = LinearGaussianBlock._steps

    def spy(block, *args):
        seen[block.name] = steps_of(block, *args)
        return seen[block.name]

    monkeypatch.setattr(LinearGaussianBlock, "_steps", spy)
    net, x = Net(bidirectional=True), signals(4, 6)
    step(KFAC(net, lr=0.0, curvature=Curvature(recurrent="lgm-1")), x)
    states = net.layer(x)[0].detach()
    zero = torch.zeros(4, 1, 2)
    close(seen["layer.weight_ih_l0"][0][..., :3], x)
    close(seen["layer.weight_hh_l0"][0][..., :2], torch.cat([zero, states[:, :-1, :2]], 1))
    backwards = states.flip(1)[:, :-1, 2:]
    close(seen["layer.weight_hh_l0_reverse"][0][..., :2], torch.cat([zero, backwards], 1))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRUCell(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = x.new_zeros(len(x), 2), []
        for t in range(x.shape[1]):
            h = self.layer(x[:, t], h)
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)


def factors(net: nn.Module, forward, recurrent: str = "lgm-2") -> list[tuple[Tensor, ...]]:
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0, recurrent=recurrent))
    with kfac.capture():
        outputs = forward()
    kfac.update_curvature(outputs)
    return [b.average.values for b in chains(kfac)]


@pytest.mark.parametrize("other", ["cells", "time-first"])
def test_the_same_layer_written_otherwise_has_the_same_lags(other, monkeypatch):
    monkeypatch.setattr(likelihood, "random_signs", signs_of_values)
    net, x = Net(), signals(4, 4)
    mine = factors(net, lambda: Normal(net(x), 1.0))
    if other == "cells":
        cells = Cells()
        weights = {f"layer.{n[:-3]}": p for n, p in net.layer.state_dict().items()}
        head = {f"head.{n}": p for n, p in net.head.state_dict().items()}
        cells.load_state_dict({**weights, **head})
        theirs = factors(cells, lambda: Normal(cells(x), 1.0))
    else:
        first = Net(batch_first=False)
        first.load_state_dict(net.state_dict())
        theirs = factors(first, lambda: Normal(first(x.transpose(0, 1)).transpose(0, 1), 1.0))
    assert len(mine) == len(theirs) == 2
    close(mine, theirs)


def test_padding_at_the_end_counts_in_no_lag(monkeypatch):
    monkeypatch.setattr(likelihood, "random_signs", signs_of_values)
    net, x = Net(), signals(5, 7)
    targets = torch.randint(2, (5, 7))
    targets[:, 4:] = -100
    padded = factors(net, lambda: CrossEntropy(net(x), targets, class_dim=-1))
    cut = factors(net, lambda: CrossEntropy(net(x[:, :4]), targets[:, :4], class_dim=-1))
    close(padded, cut)


def test_a_single_step_has_the_plain_block():
    kfacs = []
    for recurrent in ("independent", "lgm-1", "lgm-2"):
        torch.manual_seed(0)
        net = Net()
        kfac = KFAC(net, target_kl=None, curvature=Curvature(recurrent=recurrent))
        step(kfac, signals(5, 1))
        kfacs.append(kfac)
    for kfac in kfacs[1:]:
        assert len(chains(kfac)) == 2
        close(kfac.fisher_blocks(), kfacs[0].fisher_blocks())
        close(list(kfac.module.parameters()), list(kfacs[0].module.parameters()))


@CHAINS
def test_other_layers_and_wide_ones_keep_their_blocks(chain):
    kfac = KFAC(Net(), curvature=Curvature(recurrent=chain, max_factor_size=5))
    step(kfac, signals(5, 3))
    assert not chains(kfac)  # 6 gates
    kfac = KFAC(Net(), curvature=Curvature(recurrent=chain))
    step(kfac, signals(5, 3))
    plain = [b.name for b in kfac._all_blocks() if type(b) is KroneckerBlock]
    assert plain == ["head"]


@CHAINS
def test_frozen_biases_and_weights(chain):
    net = Net()
    net.layer.bias_ih_l0.requires_grad_(False)
    net.layer.weight_hh_l0.requires_grad_(False)
    kfac = KFAC(net, curvature=Curvature(recurrent=chain))
    for _ in range(2):
        step(kfac, signals(5, 3))
    net.layer.bias_ih_l0.requires_grad_(True)
    net.layer.weight_hh_l0.requires_grad_(True)
    for _ in range(2):
        step(kfac, signals(5, 3))
    assert kfac.last_step[0].predicted_kl <= 0.001 * (1 + 1e-9)


# ---------------------------------------------------------------------- states, schedules, processes


@CHAINS
@pytest.mark.parametrize("refresh", ["together", "staggered", "background"])
def test_a_resumed_run_takes_the_same_steps(chain, refresh):
    options = {"recurrent": chain, "inverse_refresh": refresh, "inverse_period": 2, "factor_period": 2}
    kfac = KFAC(Net(), **in_groups(**options))
    for _ in range(3):
        step(kfac, signals(4, 3))
    other = KFAC(copy.deepcopy(kfac.module), **in_groups(**options))
    other.load_state_dict(copy.deepcopy(kfac.state_dict()))
    x = signals(4, 3)
    for _ in range(3):
        for one in (kfac, other):
            torch.manual_seed(5)
            step(one, x)
    mine, theirs = (list(k.module.parameters()) for k in (kfac, other))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("saved", "loading"), [("independent", "lgm-1"), ("lgm-1", "lgm-2"), ("lgm-2", "independent")]
)
def test_the_state_of_another_chain_is_refused(saved, loading):
    kfac, other = (
        KFAC(Net(), curvature=Curvature(recurrent=saved)),
        KFAC(Net(), curvature=Curvature(recurrent=loading)),
    )
    step(kfac, signals(4, 3))
    with pytest.raises(ValueError, match=r"layer\.weight_ih_l0"):
        other.load_state_dict(kfac.state_dict())


@CHAINS
def test_scaling_the_fisher_scales_its_lags(chain):
    kfac = KFAC(Net(), curvature=Curvature(recurrent=chain))
    step(kfac, signals(4, 3))
    for block in chains(kfac):
        before = block.dense()
        block.scale(4.0)
        close(block.dense(), 4.0 * before)


def train(rank: int, size: int, chain: str) -> list[Tensor]:
    likelihood.random_signs = curvature.random_signs = signs_of_values
    torch.manual_seed(0)
    net = Net()
    group = torch.distributed.group.WORLD if size > 1 else None
    kfac = KFAC(
        net,
        process_group=group,
        curvature=Curvature(recurrent=chain),
        periods=Periods(factor=1, inverse=1),
    )
    for _ in range(3):
        x = signals(6, 4)
        step(kfac, x[rank * 6 // size : (rank + 1) * 6 // size])
    return [p.detach() for p in net.parameters()]


@CHAINS
def test_parts_of_a_batch_on_two_processes_are_the_batch(chain, monkeypatch):
    ranks = run_in_processes(2, train, chain)
    monkeypatch.setattr(likelihood, "random_signs", signs_of_values)
    expected = train(0, 1, chain)
    for of_rank in ranks:
        torch.testing.assert_close(of_rank, expected, atol=1e-9, rtol=0)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recurrent": "lgm"}, "recurrent must be one of independent, lgm-1, lgm-2, diagonal"),
        (
            {"recurrent": "lgm-1", "inverse": "ekfac"},
            "approximation='kfac' alone, got approximation='ekfac'",
        ),
        ({"recurrent": "lgm-2", "inverse": "eigen"}, "inverse='cholesky' alone, got inverse='eigen'"),
        ({"recurrent": "lgm-2", "weight_sharing": "reduce"}, "weight_sharing='expand' alone"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KFAC(Net(), **in_groups(**options))


def test_a_cuda_graph_is_refused():
    with pytest.raises(ValueError, match="recurrent='lgm-1', whose decompositions wait"):
        Graphs(KFAC(Net(), curvature=Curvature(recurrent="lgm-1")))


@pytest.mark.parametrize("how", ["packed", "flattened"])
def test_rows_of_no_sample_are_refused(how):
    net, x = Net(), signals(3, 4)
    kfac = KFAC(net, curvature=Curvature(recurrent="lgm-1"))
    with kfac.capture():
        if how == "packed":
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 1]), batch_first=True)
            out = net.head(nn.utils.rnn.pad_packed_sequence(net.layer(packed)[0], batch_first=True)[0])
        else:
            out = net(x).flatten(0, 1)
    with pytest.raises(
        RuntimeError, match=r"the rows of 'layer\.weight_.h_l0' do not belong to samples"
    ):
        kfac.update_curvature(Normal(out, 1.0))
