"""Many processes with parts of a batch take the step that one takes with all of it."""

import copy
import functools
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC, StepRule, comm, curvature, likelihood, refresh
from acktr.kfac.comm import Comm
from tests.helpers.options import in_groups
from tests.helpers.processes import run_in_processes, signs_of_values

STEPS = 5
N = 24  # samples, for one process, two and four


class SharedTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        # The second, with its bias, is a square.
        self.trunk = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
        self.policy, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        h = self.trunk(x.flatten(1))
        return self.policy(h), self.value(h).flatten()


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 4, (1, 2), groups=2), nn.Flatten()
        )
        self.policy, self.value = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.policy(h), self.value(h).flatten()


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.log_std = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.policy(x.flatten(1)), None


MODELS = {"linear": Linear, "convolution": Convolution, "shared trunk": SharedTrunk}


def train(rank, size, kind, options, shared_from=None):
    """Five steps on this process's part of the batches; returns parameters and what was measured."""
    likelihood.random_signs = curvature.random_signs = signs_of_values
    if shared_from is not None:
        refresh.SHARED_FROM = shared_from
        comm.PACKED_FROM = 2
        comm.ALONE_FROM = 64  # bytes: some leave at once and some wait
        comm.GATHERED_UP_TO = 4096  # and some are gathered
    torch.manual_seed(0)
    model = MODELS[kind]().double()
    group = dist.group.WORLD if size > 1 else None
    options = {"factor_period": 1, "inverse_period": 1, "burn_in": 0, **options}
    measured = options.pop("measured", False)
    kfac = KFAC(model, lr=0.5, damping=0.05, target_kl=0.02, process_group=group, **in_groups(**options))
    for _ in range(STEPS):
        x, y = torch.randn(N, 1, 2, 3).double(), torch.randint(3, (N,))
        part = slice(rank * N // size, (rank + 1) * N // size)
        with kfac.capture():
            distributions, loss = evaluate(model, x[part], y[part])
        kfac.update_curvature(*distributions)
        kfac.zero_grad()
        loss.backward(retain_graph=True)
        own = x[part], y[part]
        kfac.step(forward=functools.partial(first_of, model, *own) if measured else None)
        if kfac.wants_reduction:
            kfac.report_reduction(loss - evaluate(model, x[part], y[part])[1])
    info, damping = kfac.last_step[0], torch.tensor(kfac.param_groups[0]["damping"])
    state = kfac.state_dict()["curvature"]
    return [p.detach() for p in model.parameters()], [info.step_scale, info.predicted_kl, damping], state


def first_of(model, x, y):
    return evaluate(model, x, y)[0]


def evaluate(model, x, y):
    out, value = model(x)
    if value is None:
        likelihood = Normal(out, model.log_std.exp().expand_as(out))
        return [likelihood], -likelihood.log_prob(x.flatten(1)[:, :3]).sum(1).mean()
    loss = nn.functional.cross_entropy(out, y) + value.square().mean()
    return [Categorical(logits=out), Normal(value, 1.0)], loss


def one_process(kind, options):
    signs = likelihood.random_signs
    try:
        return train(0, 1, kind, options)
    finally:
        likelihood.random_signs = curvature.random_signs = signs


@functools.cache
def several(size):
    """All models in one start of the processes, which takes longer than the training."""
    ranks = run_in_processes(size, train_each, list(MODELS), [{}])
    return dict(zip(MODELS, zip(*ranks, strict=True), strict=True))


def train_each(rank, size, kinds, options, shared_from=None):
    return [train(rank, size, kind, o, shared_from) for kind in kinds for o in options]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_a_split_batch_gives_the_same_parameters(kind, size):
    expected, info, _ = one_process(kind, {})
    for parameters, of_rank, _ in several(size)[kind]:
        torch.testing.assert_close(parameters, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(of_rank, info, atol=1e-10, rtol=0)


MODELS_OF_OPTIONS = ["convolution", "shared trunk"]
OPTIONS = [
    {"cg_iterations": 2},
    {"inverse_period": 2},
    {"exact_scaling": True, "momentum": 0.5},
    {"adapt_damping": True, "inverse_period": 2},
    {"inverse": "eigen", "momentum": 0.5, "weight_decay": 0.01},
    {"inverse_refresh": "background", "inverse_period": 2},
    {"inverse_refresh": "staggered", "inverse_period": 2, "inverse": "eigen"},
    {"max_factor_size": 3, "factor_period": 2},
    {"inverse": "ekfac", "momentum": 0.5, "inverse_period": 2},
    {"measured": True, "momentum": 0.5},
    {"inverse": "ekfac", "inverse_refresh": "background", "max_factor_size": 3, "cg_iterations": 1},
]


@pytest.mark.parametrize("shared_from", [1, 10**6])
def test_with_every_option_and_with_inverses_dealt_out(shared_from):
    kinds = [(kind, o) for kind in MODELS_OF_OPTIONS for o in OPTIONS]
    ranks = run_in_processes(2, train_each, MODELS_OF_OPTIONS, OPTIONS, shared_from)
    for of_ranks, (kind, options) in zip(zip(*ranks, strict=True), kinds, strict=True):
        expected, info, state = one_process(kind, options)
        for parameters, info_of_rank, of_rank in of_ranks:
            torch.testing.assert_close(info_of_rank, info, atol=1e-10, rtol=0, msg=str(options))
            torch.testing.assert_close(parameters, expected, atol=1e-10, rtol=0, msg=str(options))
            for name, block in state.items():
                torch.testing.assert_close(of_rank[name], block, atol=1e-10, rtol=0)


def lonely(rank, size, what):
    """Something is missing or wrong on the second process alone."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]).double()
    kfac = KFAC(model, process_group=dist.group.WORLD)
    x = torch.randn(8, 3).double()
    if rank and what == "nan":
        x[0] = torch.nan
    both = not (rank and what == "missing")
    with kfac.capture():
        outputs = [layer(x) for layer in model[: 1 + both]]
    kfac.update_curvature(*(Normal(out, 1.0, validate_args=False) for out in outputs))
    sum(out.square().mean() for out in outputs).backward()
    kfac.step()
    seen = {name: float(average[0].sum()) for name, average in kfac.factors().items()}
    return [p.detach() for p in model.parameters()], kfac.counters, seen


def test_a_layer_that_one_process_does_not_use_moves_on_both():
    (first, _, seen), (second, _, seen_too) = run_in_processes(2, lonely, "missing")
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert seen == seen_too
    # The one process that uses the layer is the mean.
    assert seen["1"] == pytest.approx(seen["0"])


def test_a_nan_on_one_process_is_refused_by_both():
    (first, counters, seen), (second, counters_too, _) = run_in_processes(2, lonely, "nan")
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert counters == counters_too
    assert counters["rejected_statistics"] == 2
    assert counters["rejected_steps"] == 1
    assert all(p.isfinite().all() for p in first)
    assert all(map(math.isfinite, seen.values()))


def reports(rank, size):
    """The loss fell on one process, and rose by more on the other."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    kfac = KFAC(layer, process_group=dist.group.WORLD, step_rule=StepRule(adapt_damping=True))
    for _ in range(5):
        with kfac.capture():
            out = layer(torch.randn(8, 3).double())
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        out.square().mean().backward()
        kfac.step()
    return kfac.report_reduction([10.0, -30.0][rank]), kfac.param_groups[0]["damping"]


def test_the_damping_adapts_to_the_mean_reduction():
    first, second = run_in_processes(2, reports)
    assert first == second
    assert first[0] < 0
    assert first[1] > 0.01


def sums(rank, size, gathered_up_to):
    comm.BUCKET_BYTES = 64  # several buckets
    comm.GATHERED_UP_TO = gathered_up_to
    comm.PACKED_FROM = 2
    talk = Comm(dist.group.WORLD)
    tensors = [torch.full((3,), 1.0 + rank), torch.eye(4).double(), torch.ones(2, 5, 5), torch.ones(())]
    tensors[2][:, 0, 1] = tensors[2][:, 1, 0] = float(rank)
    finish = talk.sum(tensors, symmetric=True)
    out = [x.clone() for x in tensors]
    talk.broadcast(out, 1)
    return finish(), out, tensors


@pytest.mark.parametrize("gathered_up_to", [0, 10**6])
def test_sums_and_broadcasts_keep_shapes_and_dtypes(gathered_up_to):
    for total, received, own in run_in_processes(2, sums, gathered_up_to):
        assert [x.dtype for x in total] == [x.dtype for x in own]
        assert total[0].tolist() == [3.0, 3.0, 3.0]
        assert torch.equal(total[1], 2 * torch.eye(4).double())
        assert total[2][0, 0, 1] == total[2][1, 1, 0] == 1.0
        assert total[2][0, 2, 3] == 2.0
        assert total[3] == 2.0
        assert received[0].tolist() == [2.0, 2.0, 2.0]


def test_work_is_dealt_out_by_cost():
    talk = Comm()
    talk.size = 2
    assert talk.owners([1, 8, 2, 5]) == [1, 0, 1, 1]
    assert Comm().owners([3, 1]) == [0, 0]


def test_alone_nothing_is_said_and_copies_work():
    talk = Comm()
    assert talk.alone
    x = torch.ones(2)
    assert talk.sum([x])()[0] is x
    assert copy.deepcopy(talk) is talk
    assert pickle.loads(pickle.dumps(talk)).alone
