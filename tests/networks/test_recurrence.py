"""Whole rollouts through recurrent layers: torch's own, episode by episode, are the judge."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from acktr.errors import ConfigurationError
from acktr.kfac import KFAC
from acktr.networks.cells import GRU, LSTM

KINDS = {"LSTM": (LSTM, nn.LSTM), "GRU": (GRU, nn.GRU)}
T, N, IN, H = 9, 3, 4, 5
COLUMNS = {"LSTM": {"weight": IN + H + 1}, "GRU": {"weight_ih": IN + 1, "weight_hh": H + 1}}


def rollout(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, N, IN, generator=generator, dtype=torch.float64)
    starts = torch.rand(T, N, generator=generator) < 0.25
    starts[:, 0] = False  # one goes on all the time
    starts[0, 1] = starts[4, 1] = starts[5, 1] = True
    return x, starts, generator


def both(kind, **kwargs):
    ours, theirs = KINDS[kind]
    torch.manual_seed(0)
    plain = theirs(IN, H, **kwargs).double()
    layer = ours(IN, H, **kwargs).double()
    layer.load_state_dict(parameters_of(plain))
    return layer, plain


def parameters_of(plain):
    """What torch's layer has, by our names: of an LSTM weights side by side, and the sum of biases."""
    found = plain.state_dict()
    if isinstance(plain, nn.GRU):
        return found
    joined = {}
    for name in [n for n in found if "_ih_" in n]:
        pair = found[name], found[name.replace("_ih_", "_hh_")]
        joined[name.replace("_ih", "")] = torch.cat(pair, 1) if "weight" in name else sum(pair)
    return joined


def gradients_of(plain):
    """The same of gradients: each of both biases has that of their sum."""
    grads = {name: p.grad for name, p in plain.named_parameters()}
    if isinstance(plain, nn.GRU):
        return grads
    joined = {}
    for name in [n for n in grads if "_ih_" in n]:
        pair = grads[name], grads[name.replace("_ih_", "_hh_")]
        joined[name.replace("_ih", "")] = torch.cat(pair, 1) if "weight" in name else pair[0]
    return joined


def states_of(layer, generator):
    size = layer.num_layers, N, H
    return tuple(
        torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(layer.n_states)
    )


def episode_by_episode(plain, x, starts, state):
    """Outputs (T, N, H) and last states of torch's fused layer on the episodes one by one."""
    outputs = torch.empty(T, N, H, dtype=torch.float64)
    last = [s.clone() for s in state]
    for env in range(N):
        cuts = [0, *[t for t in range(1, T) if starts[t, env]], T]
        own = [s[:, env : env + 1].contiguous() for s in state]
        columns = []
        for begin, end in itertools.pairwise(cuts):
            if starts[begin, env]:
                own = [torch.zeros_like(s) for s in own]
            given = own[0] if len(own) == 1 else tuple(own)
            out, new = plain(x[begin:end, env : env + 1], given)
            own = [new] if len(own) == 1 else list(new)
            columns.append(out[:, 0])
        outputs = torch.cat((outputs[:, :env], torch.cat(columns)[:, None], outputs[:, env + 1 :]), 1)
        for s, o in zip(last, own, strict=True):
            s[:, env] = o[:, 0].detach()
    return outputs, last


@pytest.mark.parametrize("kwargs", [{}, {"num_layers": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_with_resets_is_its_episodes_one_by_one(kind, kwargs):
    layer, plain = both(kind, **kwargs)
    x, starts, generator = rollout()
    state = states_of(layer, generator)
    weights = torch.randn(T, N, H, generator=generator, dtype=torch.float64)
    ours_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()

    out, after = layer(ours_x.flatten(0, 1), state, starts)
    (out.view(T, N, H) * weights).sum().backward()
    expected, last = episode_by_episode(plain, their_x, starts, state)
    (expected * weights).sum().backward()

    torch.testing.assert_close(out.view(T, N, H), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours_x.grad, their_x.grad, rtol=0, atol=1e-10)
    theirs = gradients_of(plain)
    assert theirs.keys() == dict(layer.named_parameters()).keys()
    for name, p in layer.named_parameters():
        assert (p.grad - theirs[name]).abs().max() < 1e-10, name
    for of_all, of_last in zip(after, last, strict=True):
        torch.testing.assert_close(of_all[-1], of_last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_one_by_one_are_the_same_sequence(kind):
    layer, _ = both(kind, num_layers=2)
    x, starts, generator = rollout()
    state = states_of(layer, generator)
    with torch.no_grad():
        whole, after = layer(x.flatten(0, 1), state, starts)
        for t in range(T):
            out, one = layer(x[t], state, starts[t : t + 1])
            state = tuple(s[0] for s in one)
            torch.testing.assert_close(out, whole.view(T, N, H)[t], rtol=0, atol=1e-14)
            for s, of_all in zip(state, after, strict=True):
                torch.testing.assert_close(s, of_all[t], rtol=0, atol=1e-14)


class Sequence(nn.Module):
    """A recurrent layer and a head, over a rollout: ours, or torch's a step at a time."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(H, 2).double()

    def forward(self, x, starts, state):
        if isinstance(self.layer, LSTM | GRU):
            return self.head(self.layer(x.flatten(0, 1), state, starts)[0])
        outputs = []
        for step, begins in zip(x, starts, strict=True):
            state = tuple(s * ~begins.view(1, -1, 1) for s in state)
            out, new = self.layer(step.unsqueeze(0), state if len(state) > 1 else state[0])
            state = new if isinstance(new, tuple) else (new,)
            outputs.append(out[0])
        return self.head(torch.cat(outputs))


def factors(model, x, starts, state, below=None, **options):
    """Of K-FAC, for a Gaussian output of standard deviation 1; the signs are always the same."""
    kfac = KFAC(model if below is None else nn.ModuleList([below, model]), damping=0.1, **options)
    torch.manual_seed(0)
    with kfac.capture():
        mean = model(x if below is None else below(x), starts, state)
    kfac.update_curvature(Normal(mean, torch.ones_like(mean)))
    return kfac.factors()


@pytest.mark.parametrize("steps", [3, 7], ids=["fewer steps than inputs", "more"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_have_the_trace_of_the_dense_fisher_and_its_partial_trace_over_inputs(
    kind, steps, monkeypatch
):
    """Means over all signs of the cotangents: what the draws have for expectation."""
    layer, _ = both(kind)
    model = Sequence(layer)
    model.head = nn.Linear(H, 1).double()
    x, starts = rollout()[0][:steps, :1], torch.zeros(steps, 1, dtype=torch.bool)
    starts[2] = True
    state = layer.zeros(1)
    names = COLUMNS[kind]
    sums = dict.fromkeys(names, 0.0)
    for signs in itertools.product((-1.0, 1.0), repeat=steps):
        drawn = torch.tensor(signs, dtype=torch.float64).unsqueeze(1)
        monkeypatch.setattr("acktr.kfac.likelihood.random_signs", lambda like, drawn=drawn: drawn)
        found = factors(model, x, starts, state)
        for name in names:
            A, S = found[f"layer.{name}_l0"]
            sums[name] += A.trace() * S / 2**steps
    mean = model(x, starts, state)
    for name, width in names.items():
        params = [getattr(layer, f"{n}_l0") for n in (name, name.replace("weight", "bias"))]
        dense = torch.zeros_like(sums[name])
        for m in mean.flatten():
            weight, bias = torch.autograd.grad(m, params, retain_graph=True)
            joint = torch.cat((weight, bias.unsqueeze(1)), 1)
            assert joint.shape[1] == width
            dense += joint @ joint.T / steps
        torch.testing.assert_close(sums[name], dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_blocks_have_the_diagonal_of_the_dense_fisher(kind, monkeypatch):
    """Of whole sequences, as means over all signs; the head keeps its Kronecker block."""
    layer, _ = both(kind)
    model, steps = Sequence(layer), 5
    model.head = nn.Linear(H, 1).double()
    x, starts = rollout()[0][:steps, :1], torch.zeros(steps, 1, dtype=torch.bool)
    starts[2] = True
    params = dict(layer.named_parameters())
    sums = dict.fromkeys(params, 0.0)
    for signs in itertools.product((-1.0, 1.0), repeat=steps):
        drawn = torch.tensor(signs, dtype=torch.float64).unsqueeze(1)
        monkeypatch.setattr("acktr.kfac.likelihood.random_signs", lambda like, drawn=drawn: drawn)
        found = factors(model, x, starts, layer.zeros(1), curvature={"recurrent": "diagonal"})
        assert len(found["head"]) == 2
        for name in params:
            (square,) = found[f"layer.{name}"]
            sums[name] += square / 2**steps
    mean = model(x, starts, layer.zeros(1)).flatten()
    rows = [torch.autograd.grad(m, list(params.values()), retain_graph=True) for m in mean]
    for name, of_steps in zip(params, zip(*rows, strict=True), strict=True):
        dense = torch.stack(of_steps).square().mean(0).flatten()
        assert dense.max() > 0
        torch.testing.assert_close(sums[name], dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_below_a_memory_has_the_statistics_of_single_steps(kind):
    """What is shown of the memory's own products goes no further down."""
    layer, plain = both(kind)
    x, starts, generator = rollout()
    state = states_of(layer, generator)
    below = nn.Linear(IN, IN).double()
    ours, theirs = Sequence(layer), Sequence(plain)
    theirs.head.load_state_dict(ours.head.state_dict())
    found, expected = (factors(model, x, starts, state, below) for model in (ours, theirs))
    for name in ("0", "1.head"):
        for of_ours, of_theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(of_ours, of_theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_factor_is_the_mean_over_steps_and_environments(kind):
    layer, _ = both(kind)
    x, starts, generator = rollout()
    state = states_of(layer, generator)
    found = factors(Sequence(layer), x, starts, state)
    with torch.no_grad():
        out, _ = layer(x.flatten(0, 1), state, starts)
    before = torch.cat((state[0], out.view(T, N, H)[:-1])) * ~starts.unsqueeze(-1)
    seen = {"weight_ih": [x], "weight_hh": [before], "weight": [x, before]}
    for name in COLUMNS[kind]:
        a = torch.cat([*seen[name], torch.ones(T, N, 1, dtype=torch.float64)], -1).flatten(0, 1)
        torch.testing.assert_close(found[f"layer.{name}_l0"][0], a.T @ a / (T * N), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_the_dense_fisher_of_single_steps(kind):
    """Sequences of one step on copies of one sample, where a product of means is a mean of products."""
    layer, _ = both(kind)
    model = Sequence(layer)
    model.head = nn.Linear(H, 1).double()  # of one output each sign has the whole Fisher
    x = rollout()[0][:1, :1].expand(1, T * N, IN)
    starts = torch.ones(1, T * N, dtype=torch.bool)
    kfac = KFAC(model, damping=0.1)
    with kfac.capture():
        mean = model(x, starts, layer.zeros(T * N))
    kfac.update_curvature(Normal(mean, torch.ones_like(mean)))
    blocks, name = kfac.fisher_blocks(), next(iter(COLUMNS[kind]))
    params = [getattr(layer, f"{n}_l0") for n in (name, name.replace("weight", "bias"))]
    grads = [
        torch.cat([g.flatten(1) if g.ndim > 1 else g.unsqueeze(1) for g in of_sample], 1).flatten()
        for of_sample in (torch.autograd.grad(m, params, retain_graph=True) for m in mean.flatten())
    ]
    dense = torch.stack(grads).T @ torch.stack(grads) / (T * N)
    torch.testing.assert_close(blocks[f"layer.{name}_l0"], dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["bidirectional", "batch_first", "proj_size", "typo"])
def test_what_no_rollout_can_have_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"may have bias and dropout, not {name}"):
        LSTM(IN, H, **{name: True})


@pytest.mark.parametrize("dropout", [-0.1, 1.5, "much"])
def test_dropout_is_a_share(dropout):
    with pytest.raises(ConfigurationError, match="dropout in lstm_kwargs must be from 0 to 1"):
        GRU(IN, H, dropout=dropout)


def test_there_is_no_second_derivative():
    layer, _ = both("GRU")
    x, starts, generator = rollout()
    out, _ = layer(x.flatten(0, 1).requires_grad_(), states_of(layer, generator), starts)
    first = torch.autograd.grad(out.square().sum(), layer.weight_hh_l0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].square().sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_units_begin_with_times_from_2_steps_to_128(kind):
    """With nothing seen and no weights of states, a state falls as its unit's time says."""
    layer = KINDS[kind][0](IN, H, num_layers=2)
    for level in range(2):
        biases = (p for n, p in layer.named_parameters() if n.startswith("bias") and f"_l{level}" in n)
        keeps = torch.sigmoid(sum(b.view(-1, H)[1] for b in biases))
        torch.testing.assert_close(1 / (1 - keeps[[0, -1]]), torch.tensor([2.0, 128.0]))
        assert (keeps.diff() > 0).all()
    assert not KINDS[kind][0](IN, H, bias=False).bias


@pytest.mark.parametrize("kind", KINDS)
def test_pre_activations_begin_with_the_scale_of_what_is_seen(kind):
    torch.manual_seed(0)
    layer = KINDS[kind][0](2, 256, num_layers=2)
    for level, width in enumerate((2, 256)):
        weight = layer.weights(level).of_input
        assert weight.square().mean().item() * width == pytest.approx(1.0, abs=0.1)
