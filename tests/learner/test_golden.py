"""Files of every version of the format that is read: they give what they gave when they were made."""

import json

import pytest
import torch

from acktr import ACKTR
from acktr.envs.state import NotCapturable
from acktr.files.bundle import MIGRATIONS, VERSION
from acktr.files.checkpoints import CheckpointStore
from acktr.run.state import capture_learner, restore_learner
from tests.golden.make import HERE, answers, build

VERSIONS = [*MIGRATIONS, VERSION]


def assert_answers(model, version):
    wanted = json.loads((HERE / f"answers-v{version}.json").read_text())
    found = answers(model)
    assert found.pop("values") == pytest.approx(wanted.pop("values"), rel=1e-5)
    assert found == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model(version):
    model = ACKTR.load(HERE / f"model-v{version}.zip", env=build().env)
    assert_answers(model, version)
    model.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint(version):
    checkpoint, _ = CheckpointStore(HERE / f"checkpoints-v{version}").newest()
    model = build()
    assert restore_learner(model, checkpoint.components, "golden") == []
    assert_answers(model, version)
    model.learn(16, reset_num_timesteps=False)
    components, reasons = capture_learner(model)
    assert reasons == []
    assert components["learner"]["num_timesteps"] == 80


def test_what_is_left_of_a_state_that_does_not_fit(monkeypatch):
    checkpoint, _ = CheckpointStore(HERE / f"checkpoints-v{VERSION}").newest()
    model = build()

    def refuse(env, state):
        raise NotCapturable("another version")

    monkeypatch.setattr("acktr.run.state.restore", refuse)
    problems = restore_learner(model, checkpoint.components, "golden")
    assert problems == ["their state does not fit here (another version)"]
    assert_answers(model, VERSION)
    assert torch.equal(torch.get_rng_state(), checkpoint.components["rank-0"]["random"]["torch"])
