"""Whether K-FAC's trust region holds: the KL that steps really move, on five small networks.

``python -m benchmarks.kfac_kl`` writes ``benchmarks/results/kfac_kl.csv``, of which the table of
``docs/kfac.md`` is made. After each step the KL on the batch of the step is measured, and counts as held
if it is within a factor 2 of the bound; steps that ``lr`` keeps shorter than the bound are left out. The
ways:

* ``predicted``: K-FAC's own quadratic form, ``kfac.step()``;
* ``measured``: one more forward pass, ``kfac.step(forward=...)``.

The digits are scikit-learn's, the text is a module of the standard library.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from acktr.kfac import KFAC, CrossEntropy
from acktr.kfac.likelihood import likelihoods_of, mean_kl

TARGET_KL = 0.01  # nats a sample, or a token
WAYS = ("predicted", "measured")
RESULTS = Path(__file__).parent / "results" / "kfac_kl.csv"
Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """A network, its batches, and what its outputs mean."""

    model: nn.Module
    batches: Callable[[], Iterator[Batch]]
    likelihood: Callable[[Tensor, Tensor], Any]
    loss: Callable[[Tensor, Tensor], Tensor]


def _classes(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _minibatches(x: Tensor, y: Tensor, size: int) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        while True:
            chosen = torch.randperm(len(x), generator=generator)[:size]
            yield x[chosen], y[chosen]

    return batches


def _digits() -> Batch:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("The digits are scikit-learn's: pip install scikit-learn.") from error
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)


def mlp() -> Task:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return Task(nn.Sequential(*layers), _minibatches(*_digits(), 128), CrossEntropy, _classes)


def cnn() -> Task:
    x, y = _digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    return Task(model, _minibatches(x.view(-1, 1, 8, 8), y, 128), CrossEntropy, _classes)


def autoencoder() -> Task:
    x, _ = _digits()
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise((64, 64, 32, 8, 32, 64, 64)):
        layers += [nn.Linear(i, o), nn.Tanh()]

    def loss(logits: Tensor, images: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1).mean()

    def likelihood(logits: Tensor, _: Tensor) -> Bernoulli:
        return Bernoulli(logits=logits, validate_args=False)

    return Task(nn.Sequential(*layers[:-1]), _minibatches(x, x, 128), likelihood, loss)


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
    return Task(
        kind(len(letters)), _minibatches(windows[:, :-1], windows[:, 1:], 32), CrossEntropy, _classes
    )


TASKS: dict[str, Callable[[], Task]] = {
    "MLP": mlp,
    "CNN": cnn,
    "autoencoder": autoencoder,
    "GRU": lambda: _text(CharGRU),
    "transformer": lambda: _text(CharTransformer),
}


class Found(NamedTuple):
    """The figures of one run.

    :param ratios: the measured KL of each bounded step over its target
    :param milliseconds: of the processor, the mean of a step
    :param loss: the mean of the last ten
    :param passes: extra forward passes a step
    """

    ratios: list[float]
    milliseconds: float
    loss: float
    passes: float


def run(make: Callable[[], Task], way: str, steps: int, seed: int, **options: Any) -> Found:
    """Train, and measure each step."""
    torch.manual_seed(seed)
    task = make()
    model = task.model
    kfac = KFAC(model, lr=1.0, target_kl=TARGET_KL, **{"damping": 0.003, **options})
    ratios, losses, spent = [], [], []
    passes = 0
    for _, (x, y) in zip(range(steps), task.batches(), strict=False):

        def forward(x: Tensor = x, y: Tensor = y) -> Any:
            nonlocal passes
            passes += 1
            return task.likelihood(model(x), y)

        begin = time.process_time()
        with kfac.capture():
            outputs = model(x)
        likelihood = task.likelihood(outputs, y)
        kfac.update_curvature(likelihood)
        loss = task.loss(outputs, y)
        kfac.zero_grad()
        loss.backward()
        old = [part.detached() for part in likelihoods_of([likelihood])]
        kfac.step(forward=forward if way == "measured" else None)
        spent.append(time.process_time() - begin)
        with torch.no_grad():
            kl = mean_kl(old, likelihoods_of([task.likelihood(model(x), y)])).item()
        losses.append(loss.item())
        info = kfac.last_step[0]
        if info.step_scale < info.max_scale * (1.0 - 1e-6) or kl > TARGET_KL:
            ratios.append(kl / TARGET_KL)
    return Found(ratios, 1e3 * statistics.mean(spent), statistics.mean(losses[-10:]), passes / steps)


def rows(
    tasks: Iterable[str], steps: int, seeds: int, momenta: Iterable[float]
) -> Iterator[dict[str, Any]]:
    """Yield the line of each run."""
    for name, momentum, way, seed in itertools.product(tasks, momenta, WAYS, range(1, seeds + 1)):
        found = run(TASKS[name], way, steps, seed, momentum=momentum)
        held = sum(0.5 <= r <= 2.0 for r in found.ratios) / max(len(found.ratios), 1)
        yield {
            "network": name, "momentum": momentum, "trust_region": way, "seed": seed,
            "bounded_steps": len(found.ratios), "held": f"{held:.3f}",
            "least": f"{min(found.ratios, default=0.0):.3g}",
            "most": f"{max(found.ratios, default=0.0):.3g}",
            "milliseconds": f"{found.milliseconds:.2f}", "extra_passes": f"{found.passes:.2f}",
            "last_loss": f"{found.loss:.4f}",
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--momenta", default="0,0.9")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    momenta = [float(m) for m in options.momenta.split(",")]
    with options.out.open("w", newline="") as file:
        writer = None
        for row in rows(options.tasks.split(","), options.steps, options.seeds, momenta):
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
