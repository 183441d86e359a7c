"""What it pays to take a recurrent layer's time steps for a chain: the three ways of ``recurrent=``.

``python -m benchmarks.kfac.recurrent`` writes ``benchmarks/results/kfac/recurrent.csv``: the task "GRU"
of :mod:`benchmarks.kfac.race` with its grid, rules and seeds, once for each. ``--fisher`` prints how far
the blocks are from the dense Fisher of small networks, ``--memory`` those of policies that remember,
beside independent steps and a diagonal block.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, Curvature, Periods
from acktr.kfac.recurrent import CHAINS as KINDS
from acktr.networks.cells import GRU, LSTM
from acktr.networks.recurrence import Recurrent
from benchmarks.faults.measure import existing
from benchmarks.kfac.race import GRIDS, RESULTS, append, races
from benchmarks.markdown import markdown_table

TABLE = RESULTS / "recurrent.csv"
SAMPLES, STEPS = 32, 10  # of the small networks
WAYS = ("independent", *KINDS)
CHAINS = {
    f"K-FAC {kind}": [{**settings, "recurrent": kind} for settings in GRIDS["K-FAC"]] for kind in WAYS
}


class Small(nn.Module):
    """A recurrent layer of 3 inputs and 4 states, and a linear one of 2 outputs at each step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, T, 2)`` of ``(N, T, 3)``."""
        outputs: Tensor = self.head(self.layer(x)[0])
        return outputs


def inputs(samples: int, steps: int) -> Tensor:
    """Return ``(N, T, 3)``: three signals that change slowly, one of them around 1."""
    x = torch.randn(samples, steps, 3)
    for t in range(1, steps):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * x[:, t]
    x[..., 0] += 1.0
    return x


def distances(
    kind: type[nn.RNNBase], last: bool, samples: int = 32, draws: int = 300
) -> list[list[str]]:
    """Return a row for each weight of a layer: the relative Frobenius errors of its three blocks.

    :param last: whether the loss is of the last step alone
    :param draws: of random signs, over which statistics are averaged
    """
    torch.manual_seed(0)
    net, x = Small(kind), inputs(SAMPLES, STEPS)
    first = STEPS - 1 if last else 0
    errors: dict[str, list[str]] = {}
    for chain in WAYS:
        torch.manual_seed(1)
        kfac = KFAC(net, curvature=Curvature(stat_decay=1.0, recurrent=chain), periods=Periods(factor=1))
        for _ in range(draws):
            with kfac.capture():
                outputs = net(x)[:, first:]
            kfac.update_curvature(Normal(outputs, 1.0))
        for block in kfac._all_blocks():
            if block.name.startswith("layer"):
                exact = dense_fisher(net, x, first, list(block.params.values()))
                error = (block.dense() - exact).norm() / exact.norm()
                errors.setdefault(block.name, []).append(f"{float(error):.2f}")
    loss = "last step" if last else "each step"
    return [[kind.__name__, loss, f"`{name[6:]}`", *of] for name, of in errors.items()]


class Remembering(nn.Module):
    """:class:`Small` with the layer of a policy that remembers, which K-FAC shows whole sequences.

    :param small: whose weights it has
    """

    def __init__(self, small: Small, kind: type[Recurrent]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 4), small.head
        theirs = small.layer.state_dict()
        if kind is LSTM:
            weight = torch.cat([theirs["weight_ih_l0"], theirs["weight_hh_l0"]], 1)
            theirs = {"weight_l0": weight, "bias_l0": theirs["bias_ih_l0"] + theirs["bias_hh_l0"]}
        self.layer.load_state_dict(theirs)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, T, 2)`` of ``(N, T, 3)``."""
        starts = torch.zeros(x.shape[1], len(x), dtype=torch.bool)
        state = self.layer.zeros(len(x))
        outputs: Tensor = self.head(self.layer(x.transpose(0, 1).flatten(0, 1), state, starts)[0])
        return outputs.unflatten(0, starts.shape).transpose(0, 1)


def distances_of_memory(kind: type[nn.RNNBase], own: type[Recurrent], draws: int = 300) -> list[str]:
    """Return a row: errors of independent steps, of whole sequences, and of the exact diagonal.

    They are those of the Fisher of all weights of the layer, what they have to do with each other
    included. The loss is of each step. A scale is no error: it is the trust region's.

    :param draws: as for :func:`distances`
    """
    torch.manual_seed(0)
    net, x = Small(kind), inputs(SAMPLES, STEPS)
    errors = []
    for model in (net, Remembering(net, own)):
        torch.manual_seed(1)
        kfac = KFAC(model, curvature=Curvature(stat_decay=1.0), periods=Periods(factor=1))
        for _ in range(draws):
            with kfac.capture():
                outputs = model(x)
            kfac.update_curvature(Normal(outputs, 1.0))
        blocks = [b for b in kfac._all_blocks() if b.name.startswith("layer")]
        exact = dense_fisher(model, x, 0, *(list(b.params.values()) for b in blocks))
        found = torch.block_diag(*(b.dense() for b in blocks))
        errors.append((best_scale(found, exact) * found - exact).norm() / exact.norm())
    errors.append((exact.diagonal().diag() - exact).norm() / exact.norm())
    return [kind.__name__, *(f"{float(e):.2f}" for e in errors)]


def best_scale(block: Tensor, exact: Tensor) -> Tensor:
    """Return the factor with which a block is nearest."""
    return (block * exact).sum() / block.square().sum()


def dense_fisher(net: nn.Module, x: Tensor, first: int, *blocks: list[nn.Parameter]) -> Tensor:
    """Return the Fisher of weights and their biases.

    :param first: step whose outputs count
    :param blocks: a weight and its bias each, in the order of the matrix ``(out, in + 1)`` row by row
    """
    total = torch.zeros(())
    params = [p for block in blocks for p in block]
    for sample in x:
        rows = []
        for output in net(sample[None])[:, first:].flatten():
            grads = torch.autograd.grad(output, params, retain_graph=True)
            pairs = zip(grads[::2], grads[1::2], strict=True)
            rows.append(torch.cat([torch.cat([w, b.unsqueeze(-1)], -1).flatten() for w, b in pairs]))
        jacobian = torch.stack(rows)
        total = total + jacobian.T @ jacobian
    return total / len(x)


def main(arguments: list[str] | None = None) -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fisher", action="store_true", help="print the distances, and train nothing")
    parser.add_argument("--memory", action="store_true", help="likewise, of policies that remember")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory:
        rows = [distances_of_memory(*pair) for pair in ((nn.GRU, GRU), (nn.LSTM, LSTM))]
        print(markdown_table(["layer", "independent steps", "whole sequences", "diagonal"], rows))
        return
    if options.fisher:
        kinds = itertools.product((nn.RNN, nn.GRU, nn.LSTM), (False, True))
        rows = [row for kind, last in kinds for row in distances(kind, last)]
        print(markdown_table(["layer", "loss of", "weight", *WAYS], rows))
        return
    done = {(r["network"], r["optimizer"], r["settings"], r["seed"]): r for r in existing(TABLE)}
    for line, _ in races(["GRU"], done, CHAINS):
        print(*line.values(), flush=True)
        append(TABLE, [line])


if __name__ == "__main__":
    main()
