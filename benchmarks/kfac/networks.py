"""Five small networks and their data: what K-FAC is measured on outside of reinforcement learning.

The digits are scikit-learn's, the text is a module of the standard library.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from acktr.kfac import CrossEntropy

Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """A network, its data, and what its outputs mean.

    :param data: all inputs and targets
    :param batch_size: of a step
    """

    model: nn.Module
    data: Batch
    batch_size: int
    likelihood: Callable[[Tensor, Tensor], Any]
    loss: Callable[[Tensor, Tensor], Tensor]

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield batches drawn at random, without end."""
        x, y = self.data
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randperm(len(x), generator=generator)[: self.batch_size]
            yield x[chosen], y[chosen]


def _classes(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _digits() -> Batch:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("The digits are scikit-learn's: pip install scikit-learn.") from error
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)


def mlp() -> Task:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return Task(nn.Sequential(*layers), _digits(), 128, CrossEntropy, _classes)


def cnn() -> Task:
    x, y = _digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    return Task(model, (x.view(-1, 1, 8, 8), y), 128, CrossEntropy, _classes)


def autoencoder() -> Task:
    x, _ = _digits()
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise((64, 64, 32, 8, 32, 64, 64)):
        layers += [nn.Linear(i, o), nn.Tanh()]

    def loss(logits: Tensor, images: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1).mean()

    def likelihood(logits: Tensor, _: Tensor) -> Bernoulli:
        return Bernoulli(logits=logits, validate_args=False)

    return Task(nn.Sequential(*layers[:-1]), (x, x), 128, likelihood, loss)


class CharGRU(nn.Module):
    """A recurrent network that says the next character."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.table, self.gru = nn.Embedding(words, 16), nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, words)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, T, C)`` of characters ``(N, T)``."""
        logits: Tensor = self.head(self.gru(self.table(x))[0])
        return logits


class CharTransformer(nn.Module):
    """Two causal layers of attention that say the next character."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(words, 32), nn.Embedding(32, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, words)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, T, C)`` of characters ``(N, T)``."""
        h = self.table(x) + self.places(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(h)
        return logits


def _text(kind: type[nn.Module]) -> Task:
    text = inspect.getsource(argparse)[:40000]
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(c) for c in text])
    windows = codes[: len(codes) // 25 * 25].view(-1, 25)
    return Task(kind(len(letters)), (windows[:, :-1], windows[:, 1:]), 32, CrossEntropy, _classes)


TASKS: dict[str, Callable[[], Task]] = {
    "MLP": mlp,
    "CNN": cnn,
    "autoencoder": autoencoder,
    "GRU": lambda: _text(CharGRU),
    "transformer": lambda: _text(CharTransformer),
}
