"""Networks whose parameters are used in unusual ways, small enough for a dense Fisher; to (N, 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from .models import Around, Model


class Weights(nn.Module):
    """Weights of these shapes, and what ``call(weights, x)`` makes with them, pooled to two outputs."""

    def __init__(self, call, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.w, x)


def by_columns(w, x):
    """A weight that is used in two parts of its inputs."""
    return F.linear(x[:, :2], w[0][:, :2]).tanh() + F.linear(x[:, 2:], w[0][:, 2:]).sin()


def product_and_kernel(w, x):
    """One weight in a product and, at each position, in a convolution."""
    first = F.linear(x, w[0]).tanh()
    second = F.conv1d(first.transpose(1, 2), w[0].unsqueeze(-1))
    return second.tanh().mean(-1)[:, :2]


def one_bias(w, x):
    return F.linear(F.linear(x, w[0], w[2]).tanh(), w[1], w[2])[:, :2]


def scalars(w, x):
    return (F.linear(x, w[0]) * w[1] + w[2]).tanh()


def quadratic_form(w, x):
    form = torch.einsum("ni,ij,nj->n", x, w[0], x.sin())
    return torch.stack([form, F.linear(x, w[1]).tanh().sum(1)], 1)


def centres(w, x):
    distances = (x.unsqueeze(1) - w[0]).square().sum(-1)
    return F.linear((-distances).exp(), w[1])


def copies(w, x):
    """Three copies of each sample, one block of samples after the other."""
    many = torch.cat([x, x.sin(), x.cos()])
    return F.linear(many, w[0]).tanh().view(3, len(x), -1).mean(0)


def copies_beside(w, x):
    many = torch.stack([x, x.sin(), x.cos()], 1).flatten(0, 1)
    return F.linear(many, w[0]).tanh().view(len(x), 3, -1).mean(1)


def flat_time_first(w, x):
    rows = x.permute(1, 0, 2).reshape(-1, x.shape[-1])
    return F.linear(rows, w[0]).tanh().view(x.shape[1], x.shape[0], -1).mean(0)


def other_lengths(w, x):
    """At each step, and once for all of them."""
    return F.linear(F.linear(x, w[0]).tanh().mean(1), w[0])[:, :2] + F.linear(x[:, :2], w[0])[:, 0, :2]


def unfolded(w, x):
    patches = F.unfold(x, 2).transpose(1, 2)
    return (patches @ w[0]).tanh().mean(1)


class Masked(nn.Module):
    """Attention that leaves positions out."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left_out = x[..., 0] > 0.5
        left_out[:, 0] = False
        return self.head(self.core(x, x, x, key_padding_mask=left_out)[0].mean(1))


class ByCall(nn.Module):
    """A part that is called with its parameters given anew."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional_call(self.core, dict(self.core.named_parameters()), (x,)))


def checkpointed(core: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(core, x, use_reentrant=False).mean(1)


def weighted_bag(core: nn.Module, x: Tensor) -> Tensor:
    return core(x, per_sample_weights=(1.0 + x).to(core.weight)).tanh()


def packed(core: nn.Module, x: Tensor) -> Tensor:
    """Sequences of as many steps as their first numbers say, sorted by their lengths on the way."""
    lengths = 1 + (x[:, 1:, 0] > 0).sum(1)
    rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(core(rows)[0], batch_first=True)[0].sum(1)


def chosen(core: nn.Module, x: Tensor) -> Tensor:
    """Positions of which each sample has as many as it likes."""
    kept = x.flatten(2)[..., 0] > -0.5
    out = core(x[kept]).tanh().flatten(1)
    return out.new_zeros(*kept.shape, out.shape[-1]).index_put((kept,), out).sum(1)


def backwards(core: nn.Module, x: Tensor) -> Tensor:
    """Once in the order of the samples, and once in the other."""
    return core(x).tanh() + core(x.flip(0)).sin().flip(0)


def last_channels() -> nn.Module:
    core = nn.Conv2d(2, 4, 2).to(memory_format=torch.channels_last)
    return Around(core, lambda c, x: c(x.to(memory_format=torch.channels_last)).tanh().mean((2, 3)), 4)


def of(call, *shapes: tuple[int, ...]):
    return lambda: Weights(call, *shapes)


ODD = {
    "addmm": Model(of(lambda w, x: torch.addmm(w[1], x, w[0]).tanh(), (3, 2), (2,)), (3,)),
    "rows-left-over": Model(of(lambda w, x: F.linear(x, w[0][:2]).tanh(), (4, 3)), (3,)),
    "by-columns": Model(of(by_columns, (2, 4)), (4,), diagonal=("w.0",)),
    "product-and-kernel": Model(of(product_and_kernel, (3, 3)), (4, 3)),
    "one-bias": Model(of(one_bias, (3, 3), (3, 3), (3,)), (3,)),
    "scalars": Model(of(scalars, (2, 3), (), ()), (3,), diagonal=("w.1", "w.2")),
    "quadratic-form": Model(of(quadratic_form, (3, 3), (2, 3)), (3,)),
    "centres": Model(of(centres, (4, 3), (2, 4)), (3,), diagonal=("w.0",)),
    "copies": Model(of(copies, (2, 3)), (3,)),
    "copies-beside": Model(of(copies_beside, (2, 3)), (3,)),
    "flat-time-first": Model(of(flat_time_first, (2, 3)), (4, 3)),
    "other-lengths": Model(of(other_lengths, (3, 3)), (4, 3)),
    "unfolded": Model(of(unfolded, (8, 2)), (2, 3, 3)),
    "depthwise": Model(
        lambda: Around(nn.Conv1d(2, 4, 2, groups=2), lambda c, x: c(x).tanh().mean(-1), 4), (2, 4)
    ),
    "channels-last": Model(last_channels, (2, 3, 3)),
    "masked-attention": Model(Masked, (4, 4)),
    "functional-call": Model(ByCall, (3,)),
    "checkpointed-encoder": Model(
        lambda: Around(nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True), checkpointed, 4),
        (4, 4), diagonal=("core.norm1", "core.norm2"),
    ),
    "weighted-bag": Model(
        lambda: Around(nn.EmbeddingBag(5, 3, mode="sum"), weighted_bag, 3), (4,), 5
    ),
    "packed-rnn": Model(lambda: Around(nn.RNN(3, 4, batch_first=True), packed, 4), (5, 3)),
    "packed-both-ways": Model(
        lambda: Around(nn.GRU(3, 2, 2, batch_first=True, bidirectional=True), packed, 4), (5, 3)
    ),
    "packed-projected": Model(
        lambda: Around(nn.LSTM(3, 4, batch_first=True, proj_size=2), packed, 2), (5, 3)
    ),
    "packed-and-equal": Model(
        lambda: Around(
            nn.GRU(3, 4, batch_first=True), lambda c, x: packed(c, x.abs()), 4
        ), (5, 3),
    ),
    "chosen-positions": Model(lambda: Around(nn.Linear(3, 4), chosen, 4), (5, 3)),
    "chosen-frames": Model(
        lambda: Around(nn.Conv1d(2, 4, 2, groups=2), chosen, 8), (5, 2, 3)
    ),
    "chosen-and-normalised": Model(
        lambda: Around(nn.LayerNorm(3), chosen, 3), (5, 3), diagonal=("core",)
    ),
    "backwards": Model(lambda: Around(nn.Linear(3, 4), backwards, 4), (3,)),
    "one-number": Model(
        lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2)), (1,)
    ),
}  # fmt: skip
