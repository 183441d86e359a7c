"""Runs whose policy remembers: a resumed one is the same to the bit, and can be played."""

import pytest

from acktr.run.directory import Run
from acktr.run.play import evaluate
from tests.helpers.models import same
from tests.helpers.runs import QUICK, TOY, new, rows, train

pytestmark = pytest.mark.usefixtures("no_pictures")
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
