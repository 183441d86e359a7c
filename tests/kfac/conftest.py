"""Fixtures: float64, a fixed seed, and sign patterns that make curvature propagation exact."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import acktr.kfac.likelihood
from acktr.kfac import KFAC, Periods


@pytest.fixture(autouse=True)
def float64_and_seed() -> Iterator[None]:
    """Equality tests need float64; every test starts from the same seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def parts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests of parts curvature and inverses are made anew at each step, unless they say otherwise."""
    monkeypatch.setattr(Periods.__init__, "__defaults__", (1, 1, 0, "together"))


class OrthogonalSigns:
    """Signs whose average over ``n_patterns`` updates is E[r r'] = I, exactly.

    Update k uses row k of a Hadamard matrix, one column for each coordinate that needs its own. So
    a plain average of ``n_patterns`` updates is the expectation, not an estimate of it.

    :param columns: ``"outputs"``: one for each output of a sample, shared by all samples, which is
        enough where samples do not mix; ``"channels"``: shared by all positions too; ``"batch"``:
        nothing is shared
    """

    def __init__(self, n_patterns: int, columns: str) -> None:
        rows = torch.ones(1, 1)
        while len(rows) < n_patterns:
            rows = torch.kron(rows, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        self.rows, self.columns = rows, columns
        self.start(0)

    def start(self, pattern: int) -> None:
        self.left = self.rows[pattern]

    def __call__(self, like: Tensor) -> Tensor:
        shape = {
            "outputs": like.shape[1:],
            "channels": (*like.shape[1:2], *[1] * (like.dim() - 2)),
            "batch": like.shape,
        }[self.columns]
        width = math.prod(shape)
        assert width <= len(self.left), "more coordinates than sign patterns"
        signs, self.left = self.left[:width], self.left[width:]
        return signs.reshape(shape).expand_as(like).to(like).clone()


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``observe(kfac, forward)``: exact curvature of ``forward()``, a list of distributions.

    The optimiser must average plainly (``stat_decay=1``). ``n_patterns`` is at least the number of
    columns that one update needs (two for each dimension of a Normal).
    """

    def run(
        kfac: KFAC,
        forward: Callable[[], list],
        n_patterns: int = 16,
        columns: str = "outputs",
    ) -> None:
        signs = OrthogonalSigns(n_patterns, columns)
        with monkeypatch.context() as patch:
            patch.setattr(acktr.kfac.likelihood, "random_signs", signs)
            for pattern in range(len(signs.rows)):
                signs.start(pattern)
                with kfac.capture():
                    distributions = forward()
                kfac.update_curvature(*distributions)

    return run
