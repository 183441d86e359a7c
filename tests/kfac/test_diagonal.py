"""Parameters without a Kronecker block: bare ones, and those of operations that are not known."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC, Curvature

from . import oracle


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- bare parameters


class Scaled(nn.Module):
    def __init__(self, scale) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.rho = nn.Parameter(torch.tensor([-0.5, 0.7]))
        self.scale = scale

    def forward(self, x: Tensor) -> Normal:
        return Normal(self.mean(x), self.scale(self.rho))


@pytest.mark.parametrize("fisher", ["curvature-propagation", "monte-carlo"])
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (torch.exp, lambda rho: torch.full_like(rho, 2.0)),
        (lambda rho: rho.exp().expand(7, 2), lambda rho: torch.full_like(rho, 2.0)),
        (lambda rho: torch.ones(7, 2) * rho.exp(), lambda rho: torch.full_like(rho, 2.0)),
        (
            nn.functional.softplus,
            lambda rho: 2 * (rho.sigmoid() / nn.functional.softplus(rho)) ** 2,
        ),
    ],
    ids=["exp", "expanded", "sb3", "softplus"],
)
def test_a_state_independent_deviation_is_exact_in_any_draw(scale, expected, fisher):
    net = Scaled(scale)
    kfac = KFAC(net, curvature=Curvature(fisher=fisher))
    with kfac.capture():
        dist = net(torch.randn(7, 3))
    kfac.update_curvature(dist)
    (diagonal,) = kfac.factors()["rho"]
    close(diagonal, expected(net.rho.detach()))


def test_bare_parameters_do_not_warn():
    net = Scaled(torch.exp)
    kfac = KFAC(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with kfac.capture():
            dist = net(torch.randn(7, 3))
        kfac.update_curvature(dist)


@pytest.mark.parametrize("n_samples", [1, 5])
def test_a_bare_parameter_inside_the_network_is_exact_on_average(n_samples, observe):
    """From batch gradients: the square of the sum over independent samples, divided by N."""

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
            self.gain = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).tanh() * self.gain)

    net, x = Gain(), torch.randn(n_samples, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [Categorical(logits=net(x))], columns="batch")
    exact = oracle.dense_fisher(net, x, oracle.categorical).diagonal()
    close(kfac.factors()["gain"][0], exact[oracle.parameter_positions(net)["gain"]])


# ---------------------------------------------------------------- unknown operations


class Bend(nn.Module):
    """A layer of the user's own, without children: K-FAC cannot know what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight.exp()).sin()


@pytest.mark.parametrize("build", [Bend, lambda: nn.PReLU(3)], ids=["own", "torch"])
def test_an_unknown_layer_warns_once_and_gets_the_exact_diagonal(build, observe):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strange, self.head = build(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.strange(x.unsqueeze(-1)).squeeze(-1))

    net, x = Net(), torch.randn(4, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
        observe(kfac, lambda: [Normal(net(x), 1.0)], columns="batch")
        exact = oracle.fisher_by_loops(net, x, oracle.gaussian()).diagonal()
        net(x).square().mean().backward()
        kfac.step()
    about_it = [w for w in caught if "strange" in str(w.message)]
    assert len(about_it) == 1
    assert about_it[0].category is UserWarning
    assert type(net.strange).__name__ in str(about_it[0].message)

    blocks = [f.flatten() for name, pair in kfac.factors().items() if name != "head" for f in pair]
    rows = [p.flatten() for n, p in oracle.parameter_positions(net).items() if "strange" in n]
    close(torch.cat(blocks), exact[torch.cat(rows)])
    assert all(p.isfinite().all() for p in net.parameters())


class BareModel(nn.Module):
    """No layer at all: the parameter belongs to the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sin()


@pytest.mark.filterwarnings("ignore:K-FAC has no Kronecker block")
@pytest.mark.parametrize("kind", ["bare", "unknown", "after-a-frozen-layer"])
def test_a_network_without_any_known_layer_is_exact_on_average(kind, observe):
    """Its outputs depend on the data all the same: a sign for each sample, not one for all."""
    bend, frozen, x = BareModel(), nn.Linear(3, 3).requires_grad_(False), torch.randn(4, 3)
    net, a = {
        "bare": (bend, x),
        "unknown": (nn.Sequential(bend), x),
        "after-a-frozen-layer": (nn.Sequential(frozen, bend), frozen(x)),
    }[kind]
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [Normal(net(x), 1.0)], n_patterns=32, columns="batch")
    exact = (a * (a * bend.weight).cos()).square().mean(0).detach()
    ((diagonal,),) = kfac.factors().values()
    close(diagonal, exact)


@pytest.mark.parametrize("n", [4, 5])
def test_what_acts_on_parameters_is_not_taken_for_what_acts_on_samples(n, observe):
    """A Kronecker product multiplies each entry of one matrix with four entries, as of four samples."""
    net = nn.ParameterList([nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(2, 2))])
    x = torch.randn(n, 4)
    kfac = KFAC(net, curvature=Curvature(approximation="diagonal", stat_decay=1.0))
    observe(kfac, lambda: [Normal(x @ torch.kron(*net), 1.0)], n_patterns=16, columns="batch")
    jacobians = torch.func.jacrev(lambda a, b: x @ torch.kron(a, b), (0, 1))(*net)
    for (found,), jacobian in zip(kfac.factors().values(), jacobians, strict=True):
        close(found, jacobian.square().sum((0, 1)).flatten().detach() / n)


@pytest.mark.filterwarnings("ignore:K-FAC has no Kronecker block")
def test_a_deviation_from_an_unknown_layer_is_exact_on_average(observe):
    """It depends on the state, so it is no state-independent log_std."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.log_std = nn.Linear(3, 3), BareModel()

        def forward(self, x: Tensor) -> Normal:
            return Normal(self.mean(x), self.log_std(x).exp())

    net, x = Net(), torch.randn(4, 3)
    kfac = KFAC(net, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [net(x)], n_patterns=32, columns="batch")
    exact = 2 * (x * (x * net.log_std.weight).cos()).square().mean(0).detach()
    close(kfac.factors()["log_std.weight"][0], exact)


@pytest.mark.filterwarnings("ignore:K-FAC has no Kronecker block")
def test_recurrent_and_attention_layers_train_inside_the_trust_region():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h, _ = self.gru(x)
            return self.head(self.attention(h, h, h)[0].mean(1))

    net = Net()
    kfac = KFAC(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):
        with kfac.capture():
            out = net(torch.randn(6, 5, 3))
        kfac.update_curvature(Normal(out, 1.0))
        kfac.zero_grad()
        (out - 1).square().mean().backward()
        kfac.step()
        assert kfac.last_step[0].predicted_kl <= 0.001 * (1 + 1e-9)
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
