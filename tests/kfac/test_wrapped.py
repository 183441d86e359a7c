"""Models that come wrapped, cast, compiled, checkpointed or called in another way."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from acktr.kfac import KFAC, Curvature
from acktr.kfac.blocks import KroneckerBlock
from tests.helpers.options import in_groups

from . import oracle


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def learn(kfac: KFAC, forward) -> dict[str, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    with kfac.capture():
        out = forward()
    kfac.update_curvature(Normal(out, 1.0))
    kfac.zero_grad()
    out.square().mean().backward()
    kfac.step()
    return kfac.factors()


def assert_same(got, expected) -> None:
    torch.testing.assert_close(list(got.values()), list(expected.values()), rtol=1e-9, atol=1e-12)


def test_a_functional_call_is_one_like_any_other():
    net, x = mlp(), torch.randn(5, 3)
    other = copy.deepcopy(net)
    params = dict(net.named_parameters())
    assert_same(
        learn(KFAC(net), lambda: functional_call(net, params, (x,))),
        learn(KFAC(other), lambda: other(x)),
    )


def test_a_functional_call_with_other_tensors_depends_on_nothing():
    net, x = mlp(), torch.randn(5, 3)
    params = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    with pytest.raises(RuntimeError, match="do not depend on any parameter"):
        learn(KFAC(net), lambda: functional_call(net, params, (x,)))


def test_distributed_data_parallel():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net, x = mlp(), torch.randn(5, 3)
        other, wrapped = copy.deepcopy(net), nn.parallel.DistributedDataParallel(net)
        kfac = KFAC(wrapped, process_group=dist.group.WORLD)
        assert_same(learn(kfac, lambda: wrapped(x)), learn(KFAC(other), lambda: other(x)))
    finally:
        dist.destroy_process_group()


class Recomputed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.head, self.reentrant = mlp(), nn.Linear(2, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.net, x, use_reentrant=self.reentrant))


def test_checkpoints_are_recomputed():
    net, x = Recomputed(False), torch.randn(5, 3)
    plain = copy.deepcopy(nn.Sequential(*net.net, net.head))
    assert_same(learn(KFAC(net), lambda: net(x)), learn(KFAC(plain), lambda: plain(x)))


def test_reentrant_checkpoints_are_refused():
    net = Recomputed(True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        learn(KFAC(net), lambda: net(torch.randn(5, 3, requires_grad=True)))


def test_sparse_embeddings_are_refused():
    for layer in (nn.Embedding(5, 2, sparse=True), nn.EmbeddingBag(5, 2, sparse=True)):
        with pytest.raises(RuntimeError, match="sparse=False"):
            learn(KFAC(layer), lambda layer=layer: layer(torch.randint(5, (4, 3))))


@pytest.mark.slow
def test_compiled_modules_are_captured_uncompiled():
    plain, x = mlp(), torch.randn(5, 3)
    whole, inside = copy.deepcopy(plain), copy.deepcopy(plain)
    whole = torch.compile(whole, backend="eager")
    inside.compile(backend="eager")
    whole(x)  # compiled before
    expected = learn(KFAC(plain), lambda: plain(x))
    for net in (whole, inside):
        assert_same(learn(KFAC(net), lambda net=net: net(x)), expected)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_float32_are_taken_step_by_step(kind):
    """oneDNN computes an LSTM as one node otherwise."""
    net, x = Recurrent(kind).float(), torch.randn(5, 4, 3, dtype=torch.float32)
    before = torch._C._get_mkldnn_enabled()
    kfac = KFAC(net)
    learn(kfac, lambda: net(x))
    assert torch._C._get_mkldnn_enabled() == before
    assert all(isinstance(block, KroneckerBlock) for block in kfac._all_blocks())


@pytest.mark.parametrize("options", [{}, {"inverse": "ekfac"}, {"weight_sharing": "reduce"}])
def test_sequences_of_different_lengths(options):
    """Packed rows belong to no sample in equal parts: they count by themselves."""
    net = nn.ModuleDict({"rnn": nn.GRU(3, 4), "head": nn.Linear(4, 2)})
    kfac = KFAC(net, **in_groups(**options))
    for lengths in ([5, 3, 2], [4, 4, 1], [2, 1, 1]):
        x = pack_sequence([torch.randn(n, 3) for n in lengths])
        learn(kfac, lambda x=x: net["head"](net["rnn"](x)[1][-1]))
    assert all(isinstance(block, KroneckerBlock) for block in kfac._all_blocks())
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("inverse", ["cholesky", "ekfac"])
def test_bags_of_different_sizes(inverse):
    net = nn.ModuleDict({"bag": nn.EmbeddingBag(5, 3, mode="sum"), "head": nn.Linear(3, 2)})
    kfac, words = KFAC(net, **in_groups(inverse=inverse)), torch.tensor([0, 1, 1, 4, 2, 0])
    for offsets in ([0, 1, 3], [0, 0, 4], [0, 2, 4]):
        learn(kfac, lambda offsets=offsets: net["head"](net["bag"](words, torch.tensor(offsets))))
    assert isinstance(kfac._all_blocks()[0], KroneckerBlock)
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_largest_of_a_bag_is_no_product():
    net = nn.Sequential(nn.EmbeddingBag(5, 3, mode="max"), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="no Kronecker block for 0"):
        factors = learn(KFAC(net), lambda: net(torch.randint(5, (6, 4))))
    assert factors["0.weight"][0].shape == (15,)


def test_a_norm_of_rows_laid_flat(observe):
    """The leading axis holds samples and positions, and nothing but the graph says in which order."""

    class Flat(nn.Module):
        def __init__(self, time_first: bool) -> None:
            super().__init__()
            self.norm, self.head, self.time_first = nn.LayerNorm(3), nn.Linear(3, 2), time_first

        def forward(self, x: Tensor) -> Tensor:
            rows = (x.transpose(0, 1) if self.time_first else x).flatten(0, 1)
            y = self.head(self.norm(rows).tanh()).tanh()
            shape = (5, len(x), 2) if self.time_first else (len(x), 5, 2)
            return y.view(shape).sum(0 if self.time_first else 1)

    x = torch.randn(4, 5, 3)
    for time_first in (False, True):
        net = Flat(time_first)
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
        observe(kfac, lambda net=net: [Normal(net(x), 1.0)], n_patterns=2)
        exact = oracle.fisher_by_loops(net, x, oracle.gaussian()).diagonal()
        rows = [oracle.parameter_positions(net)[f"norm.{name}"] for name in ("weight", "bias")]
        found = torch.cat(kfac.factors()["norm"])
        torch.testing.assert_close(found, exact[torch.cat(rows)], rtol=1e-9, atol=1e-11)


def test_autocast():
    net, x = mlp().float(), torch.randn(50, 3, dtype=torch.float32)
    other = copy.deepcopy(net)

    def in_half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    found, expected = learn(KFAC(net), in_half), learn(KFAC(other), lambda: other(x))
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        for one, another in zip(mine, theirs, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, another, rtol=0.05, atol=0.05)


def test_lengths_that_change_from_batch_to_batch():
    """A causal sum over time: the graph repeats, its sizes do not."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    kfac = KFAC(net, curvature=Curvature(approximation="ekfac"))
    for length in (4, 7, 4, 5):
        x = torch.randn(length, 5, 3)
        learn(kfac, lambda x=x: net(x).mean(0))
    assert len(kfac._structure._known) == 1


def test_a_graph_that_comes_again_is_looked_up(monkeypatch):
    net, calls = mlp(), []
    kfac = KFAC(net)
    analyse = type(kfac._structure)._analyse

    def counted(*args):
        calls.append(1)
        return analyse(*args)

    monkeypatch.setattr(type(kfac._structure), "_analyse", counted)
    for _ in range(3):
        learn(kfac, lambda: net(torch.randn(5, 3)))
    learn(kfac, lambda: net(torch.randn(5, 3)).tanh())
    learn(kfac, lambda: net(torch.randn(7, 3)))
    assert len(calls) == 2


def test_layers_used_for_the_first_time_later_get_blocks_then():
    net = nn.ModuleDict({"one": nn.Linear(3, 2), "two": nn.Linear(3, 2)})
    kfac, x = KFAC(net), torch.randn(6, 3)
    learn(kfac, lambda: net["one"](x))
    assert set(kfac.factors()) == {"one"}
    state = copy.deepcopy(kfac.state_dict())
    learn(kfac, lambda: net["one"](x) + net["two"](x))
    assert list(kfac.factors()) == ["one", "two"]
    fresh = KFAC(net)
    fresh.load_state_dict(state)
    learn(fresh, lambda: net["one"](x) + net["two"](x))
    assert list(fresh.factors()) == ["one", "two"]


def test_the_logits_of_tokens_laid_flat():
    class Speller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.out = nn.Embedding(5, 3), nn.GRU(3, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(self.embed(x))[0]).flatten(0, 1)

    net = Speller()
    for options in ({}, {"inverse": "ekfac"}, {"weight_sharing": "reduce"}):
        kfac = KFAC(net, **in_groups(**options))
        for _ in range(2):
            x = torch.randint(5, (6, 3))
            with kfac.capture():
                out = Categorical(logits=net(x))
            kfac.update_curvature(out)
            kfac.zero_grad()
            (-out.log_prob(x.flatten())).mean().backward()
            kfac.step()
        assert set(kfac.factors()) == {"embed", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "out"}
