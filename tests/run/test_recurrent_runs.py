"""Runs whose policy remembers: a resumed one is the same to the bit, and can be played."""

import pytest

from acktr.cli import main
from acktr.networks.recurrent import RecurrentPolicy
from acktr.run.directory import Run
from acktr.run.play import evaluate, record
from tests.helpers.models import same
from tests.helpers.runs import QUICK, TOY, new, rows, train

pytestmark = pytest.mark.usefixtures("no_pictures")
STRICT = "tests.helpers.masked_envs:StrictMultiDiscrete-v0"
MEMORY = ("policy=MlpLstmPolicy", "policy_kwargs.lstm_hidden_size=4")


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    whole, _ = train(new(tmp_path / "whole"), TOY, *QUICK, *MEMORY)
    train(new(tmp_path / "parts"), TOY, *QUICK, *MEMORY, stop_at=2)
    parts, told = train(tmp_path / "parts", TOY, *QUICK, *MEMORY, resume=True)
    assert told[-1].endswith("exactly, environments included.")
    assert same(parts._last_lstm_states, whole._last_lstm_states)
    assert any(s.any() for s in whole._last_lstm_states[0])
    assert same(parts.get_parameters(), whole.get_parameters())
    for table in ("progress.csv", "episodes.csv"):
        assert rows(tmp_path / "parts" / table) == rows(tmp_path / "whole" / table)
    assert len(evaluate(Run(tmp_path / "parts"), 2).returns) == 2


def test_a_run_with_memory_and_masks_is_evaluated_and_filmed(tmp_path, capsys):
    """The environment raises on a forbidden action."""
    pytest.importorskip("moviepy")
    path = new(tmp_path / "run")
    model, _ = train(path, STRICT, *QUICK, *MEMORY)
    assert isinstance(model.policy, RecurrentPolicy)
    assert main(["evaluate", str(path), "--episodes", "3"]) == 0
    assert "over 3 episodes" in capsys.readouterr().out
    film, evaluation = record(Run.open(path), tmp_path / "film.mp4", episodes=1)
    assert film.is_file()
    assert len(evaluation.returns) == 1


def test_environments_that_are_stepped_together(tmp_path):
    pytest.importorskip("envpool")
    path = new(tmp_path / "run")
    model, _ = train(path, "CartPole-v1", *QUICK, *MEMORY, "backend=envpool")
    assert any(s.any() for s in model._last_lstm_states[0])
    assert len(evaluate(Run.open(path), 1).returns) == 1
