"""What people do with an optimiser: short precision, scaled losses, accumulation, many processes."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, CrossEntropy, Curvature
from acktr.kfac.exact import FisherProduct
from acktr.kfac.likelihood import Accumulated, likelihoods_of
from tests.helpers.options import in_groups
from tests.helpers.processes import run_in_processes

from . import oracle

SHORT = [torch.bfloat16, torch.float16]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Mixed(nn.Module):
    """Layers of all kinds of blocks: products, tables, norms, and what only a gradient is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(20, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.gain, self.slope = nn.Parameter(torch.ones(6)), nn.PReLU()

    def forward(self, words):
        return self.head(self.slope(self.norm(self.table(words).mean(1)) * self.gain))


def learn(kfac, net, x, y, steps=15, measure=False):
    losses = []
    for _ in range(steps):
        with kfac.capture():
            logits = net(x).float()
        kfac.update_curvature(CrossEntropy(logits))
        loss = F.cross_entropy(logits, y)
        kfac.zero_grad()
        loss.backward(retain_graph=kfac.needs_exact_fisher)
        kfac.step(forward=(lambda: CrossEntropy(net(x).float())) if measure else None)
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------------- precision


OPTIONS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"inverse": "eigen"},
    {"inverse": "ekfac"},
    {"weight_sharing": "reduce"},
    {"cg_iterations": 2},
    {"exact_scaling": True, "momentum": 0.5},
    {"statistics_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_short_parameters_have_statistics_and_inverses_in_float32(dtype, options):
    x, y = torch.randn(64, 6).to(dtype), torch.randint(3, (64,))
    net = mlp().to(dtype)
    kfac = KFAC(net, lr=1.0, damping=0.01, target_kl=0.01, **in_groups(**options))
    losses = learn(kfac, net, x, y)
    assert losses[-1] < losses[0] - 0.02
    assert not any(kfac.counters.values())
    for block in kfac._structure:
        tensors = [*block.average.values, *block.inverse.tensors]
        assert {t.dtype for t in tensors} == {torch.float32}
    buffers = [x for state in kfac.state.values() for x in state.values()]
    assert all(x.dtype == torch.float32 for x in buffers)
    assert {p.dtype for p in net.parameters()} == {dtype}


@pytest.mark.filterwarnings("ignore:.*slope.*:UserWarning")
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_short_parameters_of_all_kinds(dtype):
    words, y = torch.randint(20, (64, 4)), torch.randint(3, (64,))
    net = Mixed().to(dtype)
    kfac = KFAC(net, lr=1.0, damping=0.01, target_kl=0.01)
    losses = learn(kfac, net, words, y)
    assert losses[-1] < losses[0] - 0.02
    values = [t for factors in kfac.factors().values() for t in factors]
    assert {t.dtype for t in values} == {torch.float32}
    assert all(t.isfinite().all() for t in values)


def test_the_first_step_of_short_parameters_is_that_of_long_ones_to_rounding():
    x, y = torch.randn(64, 6).bfloat16(), torch.randint(3, (64,))
    short = mlp().bfloat16()
    long = copy.deepcopy(short).float()
    moved = []
    for net, data in ((short, x), (long, x.float())):
        before = [p.detach().float().clone() for p in net.parameters()]
        torch.manual_seed(5)
        learn(KFAC(net, lr=10.0, damping=0.01, target_kl=0.05), net, data, y, steps=1)
        pairs = zip(before, net.parameters(), strict=True)
        moved.append(torch.cat([(p.detach().float() - b).flatten() for b, p in pairs]))
    assert torch.cosine_similarity(*moved, dim=0) > 0.99
    assert moved[0].norm() / moved[1].norm() == pytest.approx(1.0, abs=0.05)


def test_a_resumed_run_of_short_parameters_takes_the_same_steps():
    x, y = torch.randn(64, 6).bfloat16(), torch.randint(3, (64,))
    net = mlp().bfloat16()
    kfac = KFAC(net, lr=1.0, target_kl=0.01, momentum=0.9)
    learn(kfac, net, x, y, steps=3)
    other = copy.deepcopy(net)
    resumed = KFAC(other, lr=1.0, target_kl=0.01, momentum=0.9)
    resumed.load_state_dict(kfac.state_dict())
    for optimizer, module in ((kfac, net), (resumed, other)):
        torch.manual_seed(3)
        learn(optimizer, module, x, y, steps=2)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("measure", [False, True])
def test_a_scaled_loss(measure):
    x, y = torch.randn(64, 6).float(), torch.randint(3, (64,))
    net = mlp().float()
    kfac = KFAC(net, lr=1.0, damping=0.01, target_kl=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    losses = []

    def outputs():
        with torch.autocast("cpu", torch.float16):
            return net(x).float()

    for k in range(12):
        with kfac.capture():
            logits = outputs()
        kfac.update_curvature(CrossEntropy(logits))
        loss = F.cross_entropy(logits, y)
        kfac.zero_grad()
        scaler.scale(loss).backward()
        if k == 5:
            net[0].weight.grad[0, 0] = torch.inf  # the scaler leaves this step out
        options = {"forward": lambda: CrossEntropy(outputs())} if measure else {}
        scaler.step(kfac, **options)
        scaler.update()
        losses.append(loss.item())
    assert losses[6] == losses[5]
    assert losses[-1] < losses[0] - 0.05
    assert not any(kfac.counters.values())


# ---------------------------------------------------------------------- groups and batches


@pytest.mark.parametrize("inverse", ["cholesky", "ekfac"])
def test_weights_may_decay_and_biases_not(inverse):
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    net = mlp()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim < 2]},
    ]
    kfac = KFAC(
        net, lr=1.0, damping=0.01, target_kl=0.005, param_groups=groups, **in_groups(inverse=inverse)
    )
    losses = learn(kfac, net, x, y, measure=True)
    assert losses[-1] < losses[0]
    assert len(kfac.last_step) == 2
    assert kfac.last_step[0].measured_kl <= 0.01 * 1.5


def test_batches_of_one():
    net = mlp()
    kfac = KFAC(net, lr=1.0, damping=0.1, target_kl=0.01)
    x, y = torch.randn(1, 6), torch.tensor([2])
    losses = learn(kfac, net, x, y, measure=True)
    assert losses[-1] < losses[0]


def test_the_exact_fisher_of_accumulated_batches_is_that_of_all_samples():
    net, x, y = mlp(), torch.randn(24, 6), torch.randint(3, (24,))
    params = list(net.parameters())
    vector = torch.randn(sum(p.numel() for p in params))
    dense = oracle.dense_fisher(net, x, oracle.categorical)
    parts = [slice(0, 6), slice(6, 12), slice(12, 24)]
    batches = [likelihoods_of([Categorical(logits=net(x[part]))]) for part in parts]
    product = FisherProduct([Accumulated([[Accumulated(batches[:2])], batches[2]])], params)
    torch.testing.assert_close(product(vector), dense @ vector)

    for options in ({"exact_scaling": True, "momentum": 0.9}, {"cg_iterations": 2}):
        kfac = KFAC(net, lr=10.0, target_kl=0.01, damping=0.1, **in_groups(**options))
        for _ in range(2):
            dense = oracle.dense_fisher(net, x, oracle.categorical)
            before = [p.detach().clone() for p in params]
            kfac.zero_grad()
            for part in parts:
                with kfac.capture():
                    logits = net(x[part])
                kfac.update_curvature(CrossEntropy(logits))
                loss = F.cross_entropy(logits, y[part], reduction="sum") / len(x)
                loss.backward(retain_graph=True)
            kfac.step()
            pairs = zip(before, params, strict=True)
            step = torch.cat([(b - p.detach()).flatten() for b, p in pairs])
            torch.testing.assert_close(kfac.last_step[0].predicted_kl, step @ dense @ step / 2)


# ---------------------------------------------------------------------- many processes


def wrapped(rank, size, how):
    torch.manual_seed(0)
    net = mlp()
    model = nn.parallel.DistributedDataParallel(net)
    kfac = KFAC(model if how == "wrapper" else net, lr=1.0, damping=0.01, target_kl=0.01)
    torch.manual_seed(10 + rank)
    x = torch.randn(16, 6)
    losses = learn(kfac, model, x, x[:, :3].argmax(-1), steps=6, measure=True)
    return [p.detach() for p in net.parameters()], losses


def test_the_group_is_that_of_the_wrapper():
    (first, losses), (second, _) = run_in_processes(2, wrapped, "wrapper")
    assert losses[-1] < losses[0]
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)


def test_several_processes_without_a_group_are_refused():
    with pytest.raises(AssertionError, match="There are 2 processes and KFAC knows of no group"):
        run_in_processes(2, wrapped, "module")


def test_sharded_parameters_are_refused():
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = mlp()
        fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"'0.weight' is sharded \(DTensor\)"):
            KFAC(net, process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*no Kronecker block.*:UserWarning")
def test_a_pass_under_vmap_has_the_factors_of_a_plain_one():
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    factors = []
    for call in (lambda net: net, torch.func.vmap):
        torch.manual_seed(0)
        net = mlp()
        kfac = KFAC(net, curvature=Curvature(fisher="curvature-propagation"))
        learn(kfac, call(net), x, y, steps=1)
        factors.append(kfac.factors())
    plain, mapped = factors
    for name in ("0", "2"):
        A, S = mapped[f"{name}.weight"] if f"{name}.weight" in mapped else mapped[name]
        torch.testing.assert_close(A, plain[name][0][:-1, :-1])
        torch.testing.assert_close(S, plain[name][1])
