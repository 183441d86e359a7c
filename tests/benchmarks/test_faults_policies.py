"""Changed files of policies that remember: what the command counts as a refusal, and as a model."""

import random

import pytest

from acktr.errors import CheckpointError, ConfigurationError
from benchmarks.faults import policies
from benchmarks.faults.measure import CHANGES, attempt, load_model
from tests.helpers.saved_models import NET, build


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.zip"
    own = {**NET, "lstm_hidden_size": 4}
    build(policy="MlpLstmPolicy", policy_kwargs=own).learn(16).save(path)
    return path.read_bytes()


def test_a_member_with_checksums_that_fit_is_refused_or_a_model(content):
    draw = random.Random(0)
    found = {policies.try_forged(content, change, draw) for change in CHANGES}
    assert "refused" in found
    assert found <= {"refused", "same"}
    assert attempt(policies._load, content, load_model(content)) == "same"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CheckpointError("One line."), "refused"),
        (ConfigurationError("One line."), "refused"),
        (CheckpointError("Two\nlines."), "crashed"),
        (KeyError("x"), "crashed"),
    ],
)
def test_a_refusal_is_one_line(error, outcome, monkeypatch):
    def raises(data):
        raise error

    monkeypatch.setattr(policies, "load_model", raises)
    assert attempt(policies._load, b"", None) == outcome
