"""Likelihoods of losses: one unit with the loss, and nothing of what is left out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Poisson

from acktr.kfac import KFAC, CrossEntropy, SquaredError, StepRule, likelihood
from acktr.kfac.exact import FisherProduct
from acktr.kfac.likelihood import (
    DistributionLikelihood,
    OutputCotangent,
    likelihood_of,
    mean_kl,
    random_signs,
)
from tests.helpers.options import in_groups

from . import oracle

CLASSES, WIDEST = 3, 12


@pytest.fixture(autouse=True)
def signs_of_places(monkeypatch):
    """The same sign at the same place, however long the sequence is."""
    table = torch.randn(8, WIDEST, CLASSES).sign()

    def signs(like: Tensor) -> Tensor:
        return (
            table[tuple(slice(n) for n in like.shape)] if like.ndim == 3 else like.new_ones(like.shape)
        )

    monkeypatch.setattr(likelihood, "random_signs", signs)


def observed(module: nn.Module, forward, **options) -> KFAC:
    kfac = KFAC(module, **in_groups(**options))
    with kfac.capture():
        outputs = forward()
    kfac.update_curvature(outputs)
    return kfac


def mlp(inputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, CLASSES))


def same(kfac: KFAC, other: KFAC, **tolerance) -> None:
    mine, theirs = kfac.fisher_blocks(), other.fisher_blocks()
    assert mine.keys() == theirs.keys()
    for name, block in mine.items():
        torch.testing.assert_close(block, theirs[name], **tolerance)


# ---------------------------------------------------------------------- cross-entropy


def test_a_classifier_has_the_numbers_of_its_distribution():
    net, x = mlp(), torch.randn(6, 4)
    mine = observed(net, lambda: CrossEntropy(net(x)))
    theirs = observed(net, lambda: Categorical(logits=net(x)))
    same(mine, theirs, rtol=0, atol=0)


def hessian_of_the_loss(net: nn.Module, x: Tensor, counted: Tensor) -> Tensor:
    """The dense Fisher of the mean of F.cross_entropy over what counts."""
    total = 0.0
    for sample, kept in zip(x, counted, strict=True):
        for position in sample[kept]:
            total = total + oracle.fisher_by_loops(net, position[None], oracle.categorical)
    return total / counted.sum()


@pytest.mark.parametrize("left_out", ["none", "mask", "ignore_index"])
def test_the_exact_fisher_of_tokens_is_in_the_unit_of_a_mean_loss(left_out):
    net, x = mlp(), torch.randn(4, 6, 4)
    targets = torch.randint(CLASSES, (4, 6))
    counted = torch.ones(4, 6, dtype=torch.bool)
    if left_out != "none":
        counted = torch.rand(4, 6) < 0.6
    targets[~counted] = -100
    given = {
        "none": {"class_dim": -1},
        "mask": {"mask": counted},
        "ignore_index": {"targets": targets},
    }[left_out]
    outputs = CrossEntropy(net(x), **given)
    product = FisherProduct([outputs], list(net.parameters()))
    dense = hessian_of_the_loss(net, x, counted)
    vector = torch.randn(len(dense))
    torch.testing.assert_close(product(vector), dense @ vector, rtol=1e-9, atol=1e-12)
    assert float(outputs.units) == counted.sum()


def test_the_factors_of_tokens_are_those_of_flattened_ones(monkeypatch):
    """What is left out is in neither of them; norms have the same mean, but square whole sequences."""
    net, x = mlp(), torch.randn(4, 6, 4)
    mask, signs = torch.rand(4, 6) < 0.6, torch.randn(4, 6, CLASSES).sign()
    monkeypatch.setattr(likelihood, "random_signs", lambda like: signs)
    whole = observed(net, lambda: CrossEntropy(net(x), mask=mask))
    monkeypatch.setattr(likelihood, "random_signs", lambda like: signs[mask])
    flat = observed(net, lambda: CrossEntropy(net(x[mask])))
    for name in ("0", "3"):
        for mine, theirs in zip(whole.factors()[name], flat.factors()[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_classes_may_be_the_second_axis_as_in_cross_entropy():
    net, x, targets = mlp(), torch.randn(4, 6, 4), torch.randint(CLASSES, (4, 6))
    one = observed(net, lambda: CrossEntropy(net(x), targets))
    other = observed(net, lambda: CrossEntropy(net(x).transpose(1, 2), targets))
    same(one, other)


def test_a_sum_over_positions_is_the_likelihood_of_sequences():
    net, x = mlp(), torch.randn(4, 6, 4)
    one = observed(net, lambda: CrossEntropy(net(x), class_dim=-1, reduction="batchmean"))
    other = observed(net, lambda: Categorical(logits=net(x)))
    same(one, other, rtol=0, atol=0)


# ---------------------------------------------------------------------- padding


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(7, 4), mlp()

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        return self.net(self.table(words))


class Recurrent(Words):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        return self.net(self.gru(self.table(words))[0])


class TimeFirst(Recurrent):
    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        self.gru.batch_first = False
        return self.net(self.gru(self.table(words.T))[0]).transpose(0, 1)


class Attention(Words):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(words.shape[1]) >= lengths[:, None]
        return self.net(self.layer(self.table(words), src_key_padding_mask=padding))


class Pooled(Words):
    """The loss is of the sequence, but positions were masked before they were pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1, groups=2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        return self.net(self.conv(self.table(words).transpose(1, 2)).transpose(1, 2))


PADDED = {m.__name__: m for m in (Words, Recurrent, TimeFirst, Attention, Pooled)}
APPROXIMATIONS = {
    "expand": {},
    "reduce": {"weight_sharing": "reduce"},
    "ekfac": {"inverse": "ekfac"},
}


@pytest.mark.parametrize("options", APPROXIMATIONS.values(), ids=APPROXIMATIONS)
@pytest.mark.parametrize("kind", PADDED.values(), ids=PADDED)
def test_padding_counts_for_nothing(kind, options):
    """However long the padding and whatever stands in it: the same factors, moments and steps."""
    net, lengths = kind(), torch.tensor([5, 3, 6, 2])
    words, targets = torch.randint(7, (4, 6)), torch.randint(CLASSES, (4, 6))
    start = {name: x.clone() for name, x in net.state_dict().items()}
    found = []
    for longest in (6, 11):
        net.load_state_dict(start)
        kfac = KFAC(net, damping=0.01, **in_groups(**options))
        padded, labels = (F.pad(x, (0, longest - 6), value=1) for x in (words, targets))
        there = torch.arange(longest) < lengths[:, None]
        padded = torch.where(there, padded, torch.randint(7, padded.shape))
        labels = torch.where(there, labels, -100)
        for _ in range(3):
            with kfac.capture():
                logits = net(padded, lengths)
            kfac.update_curvature(CrossEntropy(logits, labels))
            kfac.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
            kfac.step()
        found.append((kfac, [p.detach().clone() for p in net.parameters()]))
    (kfac, params), (other, others) = found
    same(kfac, other, rtol=1e-8, atol=1e-11)
    for one, two in zip(params, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)


def test_without_padding_a_mask_changes_nothing():
    net, words = Recurrent(), torch.randint(7, (4, 6))
    everything = torch.ones(4, 6, dtype=torch.bool)
    for options in APPROXIMATIONS.values():
        masked = observed(net, lambda: CrossEntropy(net(words, None), mask=everything), **options)
        plain = observed(net, lambda: CrossEntropy(net(words, None), class_dim=-1), **options)
        same(masked, plain, rtol=1e-10, atol=1e-12)


def test_a_batch_of_which_nothing_counts_is_left_out():
    net, x = mlp(), torch.randn(4, 6, 4)
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    kfac = observed(net, lambda: CrossEntropy(net(x), class_dim=-1))
    before = {name: block.clone() for name, block in kfac.fisher_blocks().items()}
    with kfac.capture():
        outputs = CrossEntropy(net(x), mask=nothing)
    kfac.update_curvature(outputs)
    assert kfac.counters["rejected_statistics"] == len(before)
    for name, block in kfac.fisher_blocks().items():
        torch.testing.assert_close(block, before[name], rtol=0, atol=0)


# ---------------------------------------------------------------------- squared error


@pytest.mark.parametrize("masked", [False, True])
def test_the_fisher_of_a_squared_error_is_the_hessian_of_its_loss(masked):
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 4)
    mask = torch.rand(6, 2) < 0.6 if masked else None
    outputs = net(x)
    product = FisherProduct([SquaredError(outputs, mask=mask)], list(net.parameters()))
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in params.values()])
        own = {n: v.view_as(p) for (n, p), v in zip(params.items(), parts, strict=True)}
        squares = (torch.func.functional_call(net, own, (x,)) - outputs.detach()).square()
        return squares.mean() if mask is None else squares[mask].mean()

    start = torch.cat([p.flatten() for p in params.values()])
    dense = torch.autograd.functional.hessian(
        loss, start
    )  # where the residual is 0 it is the Gauss-Newton matrix
    vector = torch.randn(len(dense))
    torch.testing.assert_close(product(vector), dense @ vector, rtol=1e-9, atol=1e-12)


def test_the_kl_of_squared_errors_is_their_distance():
    one, other = torch.randn(6, 2), torch.randn(6, 2)
    kl = mean_kl([SquaredError(one).detached()], [SquaredError(other)])
    torch.testing.assert_close(kl, F.mse_loss(one, other))
    mask = torch.tensor([True, False, True, True, False, True])
    kl = mean_kl([SquaredError(one, mask=mask).detached()], [SquaredError(other, mask=mask)])
    torch.testing.assert_close(kl, F.mse_loss(one[mask], other[mask]))


def test_likelihoods_in_different_units_add_up():
    """Tokens and a value a sequence: each with the weight that its mean loss has."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.value = nn.Linear(4, CLASSES, bias=False), nn.Linear(4, 1, bias=False)

    net, x = Both(), torch.randn(4, 6, 4)
    mask = torch.rand(4, 6) < 0.6

    def of_both() -> list:
        return [CrossEntropy(net.net(x), mask=mask), SquaredError(net.value(x[:, 0]))]

    kfac = observed(net, of_both)
    torch.testing.assert_close(
        kfac.fisher_blocks()["value"], 2 * x[:, 0].T @ x[:, 0] / 4, rtol=1e-10, atol=1e-12
    )
    alone = observed(net.net, lambda: of_both()[0])
    torch.testing.assert_close(kfac.fisher_blocks()["net"], alone.fisher_blocks()[""])


# ---------------------------------------------------------------------- registry and bad input


class PoissonLikelihood(DistributionLikelihood[Poisson]):
    def cotangents(self, estimator: str) -> list[OutputCotangent]:
        root = self.distribution.rate.detach().rsqrt()
        return [OutputCotangent(self.distribution.rate, root * random_signs(root), None)]

    def without_graph(self, samples: Tensor | slice) -> Poisson:
        return Poisson(self.distribution.rate.detach()[samples], validate_args=False)


def test_a_distribution_of_ones_own_can_be_registered():
    likelihood_of.register(Poisson, PoissonLikelihood)
    net, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(6, 4)
    product = FisherProduct([Poisson(net(x).exp())], list(net.parameters()))
    dense = oracle.dense_fisher(net, x, lambda out: out.exp().diag())
    vector = torch.randn(len(dense))
    torch.testing.assert_close(product(vector), dense @ vector, rtol=1e-9, atol=1e-12)
    kfac = KFAC(net, lr=1.0, damping=0.0, target_kl=1e-4, step_rule=StepRule(exact_scaling=True))
    with kfac.capture():
        output = Poisson(net(x).exp())
    kfac.update_curvature(output)
    (-output.log_prob(torch.ones(6, 2)).mean()).backward(retain_graph=True)
    kfac.step()
    kl = mean_kl([output], [Poisson(net(x).exp())]).item()
    assert kl == pytest.approx(1e-4, rel=0.1)


BAD = {
    "no axis": (lambda: CrossEntropy(torch.randn(4, 3, 3)), "class_dim"),
    "either axis": (
        lambda: CrossEntropy(torch.randn(4, 3, 3), torch.zeros(4, 3, dtype=torch.long)),
        "class_dim",
    ),
    "targets": (
        lambda: CrossEntropy(torch.randn(4, 3), torch.zeros(5, dtype=torch.long)),
        "targets must",
    ),
    "mask": (lambda: CrossEntropy(torch.randn(4, 3), mask=torch.ones(4, 3)), "mask must"),
    "mask of numbers": (lambda: SquaredError(torch.randn(4, 3), mask=torch.ones(4, 3)), "must be bool"),
    "axis of the samples": (lambda: CrossEntropy(torch.randn(4, 3, 5), class_dim=0), "class_dim must"),
    "axis that is not there": (lambda: CrossEntropy(torch.randn(4, 3), class_dim=7), "class_dim must"),
    "axis in words": (lambda: CrossEntropy(torch.randn(4, 3), class_dim="1"), "class_dim must"),
    "mask of entries": (lambda: SquaredError(torch.randn(4, 3), mask=torch.ones(3)), "mask must"),
    "reduction": (lambda: SquaredError(torch.randn(4, 3), reduction="sum"), "reduction must"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_distribution_is_refused():
    net = nn.Linear(2, 1)
    kfac = KFAC(net)
    with kfac.capture():
        output = torch.distributions.Exponential(net(torch.randn(3, 2)).exp())
    with pytest.raises(TypeError, match="No Fisher is known for Exponential"):
        kfac.update_curvature(output)
