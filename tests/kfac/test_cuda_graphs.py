"""Updates that a device repeats by itself: the same as those that the host launches one by one."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from acktr.kfac import KFAC, Graphs
from tests.helpers.options import in_groups
from tests.helpers.recording import NoLooks, RecordingEngine

UPDATES = 13


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh()
        )
        self.policy, self.value = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        latent = self.trunk(x)
        return self.policy(latent), self.value(latent)


def train(settings, graphs=None, updates=UPDATES):
    """Train on batches that differ; the rate and the bound follow a schedule."""
    torch.manual_seed(0)
    net = Net()
    kfac = KFAC(net, lr=0.3, target_kl=0.01, damping=0.1, **in_groups(**settings))
    kfac.defer_checks = True
    engine = RecordingEngine()
    run = Graphs(kfac, engine) if graphs else lambda name, work, *inputs: work(*inputs)

    def update(x, target):
        kfac.zero_grad()
        with kfac.capture():
            logits, value = net(x)
        kfac.update_curvature(
            Categorical(logits=logits, validate_args=False), Normal(value, 1.0, validate_args=False)
        )
        loss = (logits.logsumexp(1) + 0.5 * (value.flatten() - target).square()).mean()
        loss.backward(retain_graph=kfac.needs_exact_fisher)
        kfac.step()
        return loss.detach()

    losses, infos = [], []
    for number in range(updates):
        kfac.param_groups[0].update(lr=0.3 - 0.02 * number, target_kl=0.01 / (1 + number))
        x = torch.randn(6, 1, 3, 3)
        losses.append(run("update", update, x, x.sum((1, 2, 3))).clone())
        infos.append(torch.stack([kfac.last_step[0].step_scale, kfac.last_step[0].predicted_kl]))
    return net, kfac, torch.stack([*losses, *torch.cat(infos)]), engine


SETTINGS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"fisher": "monte-carlo", "weight_sharing": "reduce"},
    {"factor_period": 2, "inverse_period": 3},
    {"inverse_period": 2, "inverse_refresh": "staggered"},
    {"burn_in": 6, "factor_period": 2, "inverse_period": 3},
    {"cg_iterations": 3},
    {"exact_scaling": True, "momentum": 0.5},
    {"max_factor_size": 5, "statistics_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_repeated_updates_are_those_that_are_launched_one_by_one(settings):
    net, kfac, told, _ = train(settings)
    again, graphed, told_again, engine = train(settings, graphs=True)
    assert engine.repeated > 0
    # Where a matrix begins in memory may change the last bit of its products.
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(dict(net.named_parameters()), dict(again.named_parameters()), **close)
    torch.testing.assert_close(told, told_again, **close)
    own, other = kfac.state_dict(), graphed.state_dict()
    for state in (own, other):
        state["param_groups"] = [{**group, "params": 0} for group in state["param_groups"]]
    torch.testing.assert_close(own["curvature"], other["curvature"], **close)
    assert own["curvature_calls"] == other["curvature_calls"] == UPDATES
    assert own["counters"] == other["counters"]
    assert own["param_groups"][0]["step"] == other["param_groups"][0]["step"] == UPDATES
    assert isinstance(other["param_groups"][0]["lr"], float)  # not what the graph reads


def test_one_kind_of_update_is_recorded_once():
    *_, engine = train({}, graphs=True)
    assert (engine.recorded, engine.repeated) == (1, UPDATES - 4)  # state comes with the first, then two


def one_layer():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    kfac = KFAC(net, damping=0.1, lr=0.1)
    kfac.defer_checks = True

    def update(x):
        kfac.zero_grad()
        with kfac.capture():
            output = net(x)
        kfac.update_curvature(Normal(output, 1.0, validate_args=False))
        output.square().mean().backward()
        kfac.step()

    return net, kfac, update


@pytest.mark.parametrize("graphs", [False, True])
def test_a_failed_inverse_is_kept_and_damped_in_a_repetition_too(graphs):
    """A factor that turns negative cannot be inverted; what is known of it lies on the device."""
    _, kfac, update = one_layer()
    run = Graphs(kfac, RecordingEngine()) if graphs else lambda name, work, *inputs: work(*inputs)

    for number in range(9):
        if number == 7:
            kept = [x.clone() for x in kfac._all_blocks()[0].inverse.tensors]
            next(iter(kfac.factors().values()))[0].sub_(100 * torch.eye(4))
        torch.manual_seed(number)
        run("update", update, torch.randn(4, 3))
        if number == 7:
            torch.testing.assert_close(kept, kfac._all_blocks()[0].inverse.tensors, rtol=0, atol=0)
            assert kfac.counters["kept_inverses"] == 1
    assert kfac.counters["damping_escalations"] > 0


def test_what_is_loaded_is_what_goes_on():
    """A state that is loaded lies elsewhere: what was recorded before is not repeated on it."""
    net, kfac, update = one_layer()
    engine = RecordingEngine()
    graphs = Graphs(kfac, engine)

    def updates(count):
        for number in range(count):
            torch.manual_seed(number)
            graphs("update", update, torch.randn(4, 3))

    updates(5)
    state, weights = copy.deepcopy(kfac.state_dict()), copy.deepcopy(net.state_dict())
    updates(6)
    expected = copy.deepcopy(net.state_dict())
    net.load_state_dict(weights)
    kfac.load_state_dict(state)
    updates(6)
    torch.testing.assert_close(dict(net.state_dict()), dict(expected), rtol=1e-12, atol=1e-12)
    assert engine.recorded == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"inverse": "ekfac"}, "ekfac"),
        ({"inverse": "eigen"}, "eigen"),
        ({"inverse_refresh": "background"}, "background"),
        ({"adapt_damping": True}, "adapt_damping"),
    ],
)
def test_what_waits_for_the_device_is_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Graphs(KFAC(nn.Linear(2, 2), **in_groups(**settings)), RecordingEngine())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_cuda_device_it_says_so():
    with pytest.raises(RuntimeError, match="need a CUDA device"):
        Graphs(KFAC(nn.Linear(2, 2)))


def test_a_step_never_looks_at_a_value():
    """On the meta device there is none: whoever looks is refused."""
    net = Net().to("meta")
    kfac = KFAC(net, damping=0.1, momentum=0.9)
    assert kfac.defer_checks
    for _ in range(3):
        kfac.zero_grad()
        with kfac.capture():
            logits, value = net(torch.empty(6, 1, 3, 3, device="meta"))
        std = torch.ones((), device="meta")
        with NoLooks():
            kfac.update_curvature(
                Categorical(logits=logits, validate_args=False), Normal(value, std, validate_args=False)
            )
            (logits.sum() + value.sum()).backward()
            kfac.step()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        kfac.counters  # noqa: B018  # the one place that looks
