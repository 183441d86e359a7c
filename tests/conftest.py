"""Settings that every test shares."""

import multiprocessing

import pytest
import torch

# Workers and ranks are forked from a server that has imported this once.
multiprocessing.set_forkserver_preload(["acktr"])

# Results must not depend on how many cores a machine has, and small products are faster on one.
torch.set_num_threads(1)


@pytest.fixture
def no_pictures(monkeypatch):
    """A learning curve at the end of a run takes longer than the run."""
    monkeypatch.setattr("acktr.run.training.plot_learning_curve", lambda run: None)


@pytest.fixture
def known_versions(monkeypatch):
    """Versions and commit are asked for once."""
    from acktr.run.versions import versions

    known = versions()
    for module in ("run.training", "run.directory"):
        monkeypatch.setattr(f"acktr.{module}.versions", lambda: known)
