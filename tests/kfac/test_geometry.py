"""What makes the gradient natural: it measures KL, and it does not see the parametrisation."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from acktr.kfac import KFAC, Curvature
from tests.helpers.options import in_groups

from . import oracle
from .heads import GAUSSIAN, GAUSSIAN_LOG_STD, HEADS, Head

# ---------------------------------------------------------------- KL


def tanh_net(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, size))


def sum_kl(old, new) -> Tensor:
    if isinstance(old, (list, tuple)):
        return sum(sum_kl(o, n) for o, n in zip(old, new, strict=True))
    return kl_divergence(old, new).sum()


@pytest.mark.parametrize("inverse", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    "head",
    [h for name, h in HEADS.items() if name != "one-hot"],
    ids=[n for n in HEADS if n != "one-hot"],
)
def test_half_quadratic_becomes_the_measured_kl(head, layer, inverse, observe):
    """One layer, one sample: the block is the exact Fisher, so the ratio tends to 1."""
    net, x = tanh_net(head.size), torch.randn(1, 3)
    # The gradient of a likelihood: it does not leave the range of the Fisher.
    target = head.distribution(net(x).detach() + 0.3 * torch.randn(1, head.size))
    errors = []
    for target_kl in [1e-4, 1e-6, 1e-8]:
        start = {k: v.clone() for k, v in net.state_dict().items()}
        # A fresh dictionary each time: torch writes the defaults into it.
        group = [{"params": list(net[layer].parameters())}]
        kfac = KFAC(
            net,
            lr=1e6,
            target_kl=target_kl,
            param_groups=group,
            **in_groups(stat_decay=1.0, inverse=inverse),
        )
        observe(kfac, lambda: [head.distribution(net(x))])
        old = head.distribution(net(x).detach())
        kfac.zero_grad()
        sum_kl(target, head.distribution(net(x))).backward()
        kfac.step()
        measured = sum_kl(old, head.distribution(net(x).detach()))
        predicted = kfac.last_step[0].predicted_kl
        torch.testing.assert_close(predicted.item(), target_kl, rtol=1e-9, atol=0)
        errors.append(abs(measured / predicted - 1).item())
        net.load_state_dict(start)

    # The error is of first order in the step, hence in sqrt(KL).
    assert errors[1] < 0.15 * errors[0] + 1e-9
    assert errors[2] < 0.15 * errors[1] + 1e-7
    assert errors[2] < 2e-3


def test_gaussian_mean_of_a_linear_layer_has_exactly_the_predicted_kl(observe):
    """Quadratic in the parameters: the prediction holds at any step size and batch size."""
    layer, x = nn.Linear(3, 2), torch.randn(20, 3)
    kfac = KFAC(layer, lr=0.7, target_kl=None, curvature=Curvature(stat_decay=1.0))
    observe(kfac, lambda: [Normal(layer(x), 0.5)])
    old = Normal(layer(x).detach(), 0.5)
    layer(x).exp().mean().backward()
    kfac.step()

    measured = kl_divergence(old, Normal(layer(x).detach(), 0.5)).sum(-1).mean()
    torch.testing.assert_close(kfac.last_step[0].predicted_kl, measured, rtol=1e-11, atol=0)


# ---------------------------------------------------------------- invariance


class Affine(nn.Module):
    """A fixed invertible affine map of the channels, without parameters."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mix", torch.eye(size) + 0.5 * torch.rand(size, size))
        self.register_buffer("shift", torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift.view(-1, *[1] * (x.dim() - 2))
        return torch.einsum("oi,ni...->no...", self.mix, x) + shift


def reparametrise(layer: nn.Module) -> nn.Sequential:
    """The layer between two affine maps; then set ``layer`` itself to compute the same function."""
    pre, post = Affine(layer.weight.shape[1]), Affine(layer.weight.shape[0])
    inner = type(layer)(*layer.weight.shape[1::-1], *layer.weight.shape[2:3])
    with torch.no_grad():
        inner_sum = inner.weight.flatten(2).sum(-1) if layer.weight.dim() > 2 else inner.weight
        bias = post.mix @ (inner.bias + inner_sum @ pre.shift) + post.shift
        layer.weight.copy_(torch.einsum("po,oi...,iq->pq...", post.mix, inner.weight, pre.mix))
        layer.bias.copy_(bias)
    return nn.Sequential(pre, inner, post)


# A softmax does not see a shift of all logits: without damping its S has no inverse. The last logit
# is pinned to 0 instead.
PINNED_CATEGORICAL = Head(
    3,
    lambda out: Categorical(logits=torch.cat([out, torch.zeros_like(out[:, :1])], dim=1)),
    lambda out: oracle.categorical(torch.cat([out, torch.zeros(1)]))[:-1, :-1],
)
NETS = {
    "mlp": (
        lambda: [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)],
        (3,),
        PINNED_CATEGORICAL,
    ),
    "conv": (
        lambda: [nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)],
        (2, 3, 3),
        GAUSSIAN_LOG_STD,
    ),
    "gaussian": (lambda: [nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 3)], (3,), GAUSSIAN),
}


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
@pytest.mark.parametrize("target_kl", [None, 1e-3])
@pytest.mark.parametrize(("build", "shape", "head"), NETS.values(), ids=NETS)
def test_affine_reparametrisation_leaves_the_function_space_step(build, shape, head, target_kl, inverse):
    """Martens & Grosse 2015, theorem 1, with momentum, over three steps and no damping."""
    layers = build()
    wrapped = [reparametrise(m) if hasattr(m, "weight") else m for m in layers]
    plain, changed = nn.Sequential(*layers), nn.Sequential(*wrapped)
    x = torch.randn(60, *shape)
    torch.testing.assert_close(plain(x), changed(x), rtol=1e-12, atol=1e-12)
    target = torch.randn(60, head.size)

    def train(net):
        kfac = KFAC(
            net, lr=0.1, damping=0.0, target_kl=target_kl, momentum=0.5, **in_groups(inverse=inverse)
        )
        outputs = []
        for seed in range(3):
            torch.manual_seed(seed)
            with kfac.capture():
                out = net(x)
            kfac.update_curvature(head.distribution(out))
            kfac.zero_grad()
            (out - target).square().mean().backward()
            kfac.step()
            outputs.append(net(x).detach())
        return torch.stack(outputs)

    start = plain(x).detach()
    moved, reference = train(changed), train(plain)
    assert (reference[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(moved, reference, rtol=1e-7, atol=1e-8)
