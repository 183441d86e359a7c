"""K-FAC against Adam on a deep autoencoder: how many steps to the same loss.

Deep, narrow autoencoders of drawn curves are the classic test of second-order optimisers (Hinton &
Salakhutdinov 2006; Martens & Grosse 2015, sec. 13). The data are made here: random Bezier curves on
8 x 8 pixels, other ones for each seed. Both optimisers start from the same weights and see the same
full batch at each step. Adam's learning rate is tuned, for each seed and each loss anew; K-FAC has one
setting for all.

    python examples/kfac_autoencoder.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.optim import Adam, Optimizer

from acktr.kfac import KFAC, Periods

SIDE = 8
WIDTHS = (64, 32, 16, 8, 16, 32, 64)
FIRST_KL, LAST_KL = 0.1, 0.001  # trust region of K-FAC at the start and at the end, nats


@dataclass
class Setting:
    """How much to run."""

    images: int = 1000
    seeds: tuple[int, ...] = (10, 11, 12)  # K-FAC's setting was chosen on 0, 1 and 2
    kfac_steps: int = 300
    adam_steps: int = 1600
    adam_rates: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08)
    adam_schedules: tuple[str, ...] = ("constant", "linear to 0")
    targets: tuple[float, ...] = (4.0, 2.0, 1.5, 1.2)  # nats per image


QUICK = Setting(
    images=200,
    seeds=(10,),
    kfac_steps=60,
    adam_steps=500,
    adam_rates=(0.002, 0.005, 0.01, 0.02, 0.04),
    adam_schedules=("constant",),
    targets=(4.0, 2.0),
)


@dataclass
class Run:
    """Loss before each step, and the seconds spent up to there."""

    name: str
    losses: list[float]
    seconds: list[float]

    def steps_to(self, target: float) -> int | None:
        """Return how many steps it took to reach ``target``; ``None`` if it was not reached."""
        return next((step for step, loss in enumerate(self.losses) if loss <= target), None)


def draw_curves(n: int, seed: int) -> Tensor:
    """Draw random quadratic Bezier curves with a soft pen: ``(n, SIDE * SIDE)`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    start, middle, end = (0.05 + 0.9 * torch.rand(n, 3, 2, generator=generator)).split(1, dim=1)
    t = torch.linspace(0, 1, 20).view(1, -1, 1)
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end  # (n, 20, 2)
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    pixels = torch.cartesian_prod(axis, axis).expand(n, -1, -1)
    pen = 0.7 / SIDE
    return torch.exp(-0.5 * (torch.cdist(pixels, points).amin(-1) / pen) ** 2)


def make_autoencoder(seed: int) -> nn.Sequential:
    """Build the network; the same seed gives the same weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(WIDTHS):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def nats_per_image(logits: Tensor, images: Tensor) -> Tensor:
    """Cross-entropy of Bernoulli pixels, less the images' own entropy: 0 is a perfect copy."""
    entropy = -(torch.xlogy(images, images) + torch.xlogy(1 - images, 1 - images))
    loss = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return (loss - entropy).sum(1).mean()


def train(
    name: str,
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    steps: int,
    schedule: Callable[[Optimizer, float], None],
) -> Run:
    """Take ``steps`` full-batch steps; ``schedule`` is told how much of them is done, 0 to 1."""
    run = Run(name, [], [])
    begin = time.perf_counter()
    for step in range(steps):
        schedule(optimizer, step / steps)
        if isinstance(optimizer, KFAC):
            with optimizer.capture():
                logits = model(images)
            optimizer.update_curvature(Bernoulli(logits=logits, validate_args=False))
        else:
            logits = model(images)
        loss = nats_per_image(logits, images)
        run.losses.append(loss.item())
        run.seconds.append(time.perf_counter() - begin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return run


def train_kfac(seed: int, setting: Setting) -> Run:
    """K-FAC, whose trust region shrinks geometrically from FIRST_KL to LAST_KL."""

    def shrink_trust_region(optimizer: Optimizer, done: float) -> None:
        for group in optimizer.param_groups:
            group["target_kl"] = FIRST_KL * (LAST_KL / FIRST_KL) ** done

    images, model = draw_curves(setting.images, seed), make_autoencoder(seed)
    optimizer = KFAC(
        model,
        lr=1.0,
        damping=0.001,
        momentum=0.5,
        target_kl=FIRST_KL,
        periods=Periods(factor=1, inverse=1),
    )
    return train("K-FAC", model, optimizer, images, setting.kfac_steps, shrink_trust_region)


def train_adam(seed: int, setting: Setting) -> list[Run]:
    """Adam with every learning rate of the grid."""
    images, runs = draw_curves(setting.images, seed), []
    for schedule in setting.adam_schedules:
        for rate in setting.adam_rates:

            def set_rate(
                optimizer: Optimizer, done: float, rate: float = rate, schedule: str = schedule
            ) -> None:
                for group in optimizer.param_groups:
                    group["lr"] = rate if schedule == "constant" else rate * (1 - done)

            model = make_autoencoder(seed)
            optimizer = Adam(model.parameters(), lr=rate)
            name = f"Adam {rate:g} {schedule}"
            runs.append(train(name, model, optimizer, images, setting.adam_steps, set_rate))
    return runs


def fastest(runs: list[Run], target: float) -> tuple[Run | None, int]:
    """Return the run that reached ``target`` first, and its steps."""
    reached = [(steps, run) for run in runs if (steps := run.steps_to(target)) is not None]
    if not reached:
        return None, len(runs[0].losses)
    steps, run = min(reached, key=lambda pair: pair[0])
    return run, steps


def compare(kfac: list[Run], adam: list[list[Run]], setting: Setting) -> dict[float, list[float]]:
    """Print steps and seconds to each target, and return the ratios of steps, Adam / K-FAC."""
    ratios: dict[float, list[float]] = {}
    print("nats  seed  K-FAC steps  (s)   best Adam steps  (s)   steps ratio  Adam's setting")
    for target in setting.targets:
        for seed, ours, grid in zip(setting.seeds, kfac, adam, strict=True):
            best, adam_steps = fastest(grid, target)
            steps = ours.steps_to(target)
            if steps is None:
                print(f"{target:4.1f}  {seed:4d}  not reached by K-FAC in {len(ours.losses)} steps")
                ratios.setdefault(target, []).append(0.0)
                continue
            ratio = adam_steps / steps
            ratios.setdefault(target, []).append(ratio)
            more = "" if best else ">"  # no Adam got there: a lower bound
            seconds = best.seconds[adam_steps] if best else grid[0].seconds[-1]
            print(
                f"{target:4.1f}  {seed:4d}  {steps:11d} {ours.seconds[steps]:5.2f}"
                f"  {more + str(adam_steps):>16} {seconds:5.2f}   {more + f'{ratio:.1f}':>11}"
                f"  {best.name.removeprefix('Adam ') if best else 'none got there'}"
            )
    for target, found in ratios.items():
        print(
            f"to {target} nats: Adam needs {min(found):.1f} / {statistics.median(found):.1f} / "
            f"{max(found):.1f} times the steps (min / median / max of {len(found)} seeds)"
        )
    return ratios


def plot(kfac: list[Run], adam: list[list[Run]], target: float, path: Path) -> None:
    """Draw the loss over steps and over seconds, each seed's best Adam for ``target``."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    best = [fastest(grid, target)[0] or grid[0] for grid in adam]
    for label, colour, runs in (("Adam, best of its grid", "C1", best), ("K-FAC", "C0", kfac)):
        for i, run in enumerate(runs):
            options = {"color": colour, "lw": 1.2, "label": label if i == 0 else None}
            axes[0].plot(range(len(run.losses)), run.losses, **options)
            axes[1].plot(run.seconds, run.losses, **options)
    for ax, label in zip(axes, ("steps", "seconds on one core"), strict=True):
        ax.axhline(target, color="0.6", lw=0.8, ls="--")
        ax.set(yscale="log", xlabel=label)
        ax.grid(alpha=0.25, which="both")
    axes[0].set_ylabel("training loss, nats per image")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[float, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args(arguments)
    setting = QUICK if options.quick else Setting()
    torch.set_num_threads(1)
    kfac = [train_kfac(seed, setting) for seed in setting.seeds]
    adam = [train_adam(seed, setting) for seed in setting.seeds]
    print("Adam's learning rates:", ", ".join(map(str, setting.adam_rates)), end="; ")
    print("schedules:", ", ".join(setting.adam_schedules))
    ratios = compare(kfac, adam, setting)
    plot(kfac, adam, setting.targets[-1], options.out)
    print(f"figure: {options.out}")
    return ratios


if __name__ == "__main__":
    main()
