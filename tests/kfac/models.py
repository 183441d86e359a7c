"""Networks as people write them, small enough for a dense Fisher; from (N, ...) to (N, 2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Model(NamedTuple):
    """A network, the shape of one sample (of words: the number of kinds), and its diagonal blocks."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0
    diagonal: tuple[str, ...] = ()


class Around(nn.Module):
    """``call(core, x)``, pooled to two outputs by a linear layer of its own."""

    def __init__(self, core: nn.Module, call: Callable, width: int, head: bool = True) -> None:
        super().__init__()
        self.core, self.call = core, call
        self.head = nn.Linear(width, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.core, x))


def swap(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def steps(core: nn.Module, x: Tensor) -> Tensor:
    """A cell, step by step."""
    state = None
    for t in range(x.shape[1]):
        state = core(x[:, t], state)
    return state[0] if isinstance(state, tuple) else state


class Tied(nn.Module):
    """A language model whose embedding is its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.middle(self.embed(x)).tanh(), self.embed.weight).tanh().sum(1)[:, :2]


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(2, 2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x).tanh()) + F.linear(F.linear(x, self.A), self.B)


class Autoencoder(nn.Module):
    """Its decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight).tanh(), self.weight.T)[:, :2]


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.norm(self.layer(x).tanh())
        return self.head(x)


class Packed(nn.Module):
    """Keys and values of one weight, bias and all, cut in parts by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        first = F.linear(x, self.weight[:2], self.bias[:2]).tanh()
        second = F.linear(x.sin(), self.weight[2:], self.bias[2:]).tanh()
        return first * second[:, :2] + second[:, 2:]


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place, self.scale = nn.Parameter(torch.randn(1, 5, 3)), nn.Parameter(torch.randn(3))
        self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(((self.first(x) + self.place).tanh() * self.scale).mean(1))


class Einsum(nn.Module):
    """A product written out, and one with a weight for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.heads = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("ntd,od->nto", x, self.weight).tanh()
        return torch.einsum("nto,toc->ntc", hidden, self.heads).sin().sum(1)


class Columns(nn.Module):
    """Samples along the last axis, and a weight that is a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.weight @ x.T).tanh().T
        return torch.stack([hidden @ self.vector, hidden.sum(1)], 1)


class Spread(nn.Module):
    """One weight for all of a batch of products, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight.expand(len(x), 3, 2)).tanh().sum(1)


class Neighbours(nn.Module):
    """A graph network: what its layers make lies on the right of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.eye(len(x))
        return near @ self.second((near @ self.first(x)).tanh())


class Checkpointed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(lambda x: self[1](self[0](x)), x, use_reentrant=False)
        return self[2](hidden)


class TimeFirst(nn.Module):
    """Whatever works on (N, T, ...) works on (T, N, ...), which torch's own sequences are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(swap(x)).mean(0))


class BatchFirst(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def encoder(batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=batch_first)


def norm(layer: nn.Module) -> nn.Module:
    return Around(
        nn.Sequential(nn.Conv1d(2, 4, 2), layer, nn.Tanh()), lambda core, x: core(x).mean(-1), 4
    )


def conv(layer: nn.Module) -> nn.Module:
    return Around(layer, lambda core, x: core(x).tanh().flatten(2).mean(-1), 4)


class Attending(nn.Module):
    """Attention whose queries, keys and values are one or several tensors."""

    def __init__(self, kinds: int, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.head, self.kinds = nn.Linear(4, 2), kinds

    def forward(self, x: Tensor) -> Tensor:
        first = self.attention.batch_first
        q = x if first else swap(x)
        k = q if self.kinds == 1 else q.sin()
        v = k if self.kinds < 3 else q.cos()
        if self.attention.kdim != 4:
            k, v = k[..., :3], v[..., :2]
        y = self.attention(q, k, v, need_weights=False)[0]
        return self.head(y.mean(1 if first else 0))


LAST, LAST_TIME_FIRST = (lambda c, x: c(x)[0][:, -1]), (lambda c, x: c(swap(x))[0][-1])
MODELS = {
    "linear": Model(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "linear-tokens": Model(lambda: BatchFirst(nn.Linear(3, 4), nn.Tanh()), (5, 3)),
    "linear-time-first": Model(lambda: TimeFirst(nn.Linear(3, 4), nn.Tanh()), (5, 3)),
    "linear-square": Model(lambda: TimeFirst(nn.Linear(3, 4), nn.Tanh()), (4, 3)),
    "norm-time-first": Model(
        lambda: TimeFirst(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh()), (4, 3), diagonal=("layers.1",)
    ),
    "conv1d": Model(lambda: conv(nn.Conv1d(2, 4, 2, stride=2, padding=1)), (2, 5)),
    "conv2d": Model(lambda: conv(nn.Conv2d(2, 4, 2, padding="same", padding_mode="circular")),
        (2, 3, 3)),
    "conv2d-groups": Model(lambda: conv(nn.Conv2d(2, 4, 2, groups=2, dilation=2)), (2, 4, 4)),
    "conv3d": Model(lambda: conv(nn.Conv3d(2, 4, (1, 2, 2))), (2, 2, 3, 2)),
    "conv-transposed1d": Model(
        lambda: conv(nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1)), (2, 4)
    ),
    "conv-transposed2d": Model(lambda: conv(nn.ConvTranspose2d(2, 4, (2, 3), dilation=2)), (2, 3, 3)),
    "conv-transposed-groups": Model(lambda: conv(nn.ConvTranspose1d(4, 4, 2, groups=2)), (4, 3)),
    "embedding": Model(
        lambda: Around(nn.Embedding(5, 3, padding_idx=0), lambda c, x: c(x).tanh().sum(1), 3), (4,), 5
    ),
    "bag-mean": Model(lambda: Around(nn.EmbeddingBag(5, 3), lambda c, x: c(x).tanh(), 3), (4,), 5),
    "bag-sum": Model(
        lambda: Around(nn.EmbeddingBag(5, 3, mode="sum", padding_idx=1), lambda c, x: c(x).tanh(), 3),
        (4,),
        5,
    ),
    "layer-norm": Model(
        lambda: BatchFirst(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh()), (5, 3), diagonal=("layers.1",)
    ),
    "rms-norm": Model(
        lambda: BatchFirst(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh()), (5, 3),
        diagonal=("layers.1.weight",)
    ),
    "group-norm": Model(lambda: norm(nn.GroupNorm(2, 4)), (2, 5), diagonal=("core.1",)),
    "batch-norm": Model(lambda: norm(nn.BatchNorm1d(4)).eval(), (2, 5), diagonal=("core.1",)),
    "instance-norm": Model(
        lambda: norm(nn.InstanceNorm1d(4, affine=True)), (2, 5), diagonal=("core.1",)
    ),
    "attention": Model(lambda: Attending(1, batch_first=True), (5, 4)),
    "attention-time-first": Model(lambda: Attending(1), (5, 4)),
    "attention-memory": Model(lambda: Attending(2, batch_first=True), (5, 4)),
    "attention-three": Model(lambda: Attending(3, bias=False), (5, 4)),
    "attention-widths": Model(
        lambda: Attending(3, batch_first=True, kdim=3, vdim=2), (5, 4),
        diagonal=("attention.in_proj_bias",),
    ),
    "encoder": Model(
        lambda: BatchFirst(nn.Linear(3, 4), encoder(True)), (3, 3),
        diagonal=("layers.1.norm1", "layers.1.norm2"),
    ),
    "encoder-time-first-eval": Model(
        lambda: TimeFirst(nn.Linear(3, 4), encoder(False)).eval(), (3, 3),
        diagonal=("layers.1.norm1", "layers.1.norm2"),
    ),
    "rnn": Model(lambda: Around(nn.RNN(3, 2, batch_first=True), LAST, 2), (3, 3)),
    "rnn-relu-two-ways": Model(
        lambda: Around(nn.RNN(3, 2, 2, nonlinearity="relu", bidirectional=True), LAST_TIME_FIRST, 4),
        (3, 3),
    ),
    "lstm": Model(lambda: Around(nn.LSTM(3, 2, 2), LAST_TIME_FIRST, 2), (3, 3)),
    "lstm-projected": Model(lambda: Around(nn.LSTM(3, 3, proj_size=2), LAST_TIME_FIRST, 2), (3, 3)),
    "gru": Model(lambda: Around(nn.GRU(3, 2, batch_first=True), LAST, 2), (4, 3)),
    "gru-no-bias": Model(lambda: Around(nn.GRU(3, 2, bias=False), LAST_TIME_FIRST, 2), (4, 3)),
    "rnn-cell": Model(lambda: Around(nn.RNNCell(3, 2), steps, 2), (3, 3)),
    "lstm-cell": Model(lambda: Around(nn.LSTMCell(3, 2), steps, 2), (3, 3)),
    "gru-cell": Model(lambda: Around(nn.GRUCell(3, 2), steps, 2), (3, 3)),
    "reused": Model(Reused, (3,), diagonal=("norm",)),
    "tied-embedding": Model(Tied, (3,), 5, diagonal=("embed.weight",)),
    "tied-transposed": Model(Autoencoder, (3,), diagonal=("weight",)),
    "lora": Model(LoRA, (4,)),
    "bilinear": Model(
        lambda: Around(nn.Bilinear(2, 2, 3), lambda c, x: c(x[..., :2], x[..., 2:]).tanh().mean(1), 3),
        (3, 4),
    ),
    "packed-by-hand": Model(Packed, (3,)),
    "positions": Model(Position, (5, 3), diagonal=("place", "scale")),
    "einsum": Model(Einsum, (5, 3)),
    "columns": Model(Columns, (3,)),
    "spread": Model(Spread, (5, 3)),
    "neighbours": Model(Neighbours, (3,)),
    "checkpoint": Model(
        lambda: Checkpointed(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)
    ),
}  # fmt: skip


def inputs(model: Model, n: int = 4) -> Tensor:
    """A batch of a model."""
    if model.words:
        return torch.randint(model.words, (n, *model.shape))
    return torch.randn(n, *model.shape)
