"""Runs of environments that raise on a forbidden action: trained, and read from their files."""

import pytest
import yaml

from acktr.cli import main
from acktr.errors import WorkerError
from acktr.run.directory import Run
from acktr.run.play import evaluate, record
from tests.helpers.runs import QUICK, new, train

pytestmark = pytest.mark.usefixtures("no_pictures")
STRICT = "tests.helpers.masked_envs:StrictMultiDiscrete-v0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("acktr.run.training.plot_learning_curve", lambda run: None)
        path = new(tmp_path_factory.mktemp("masks"))
        train(path, STRICT, *QUICK)
    return path


def test_a_run_is_evaluated_with_its_masks(trained, capsys):
    assert len(evaluate(Run.open(trained), 5).returns) == 5
    assert main(["evaluate", str(trained), "--episodes", "2"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out


def test_a_run_is_filmed_with_its_masks(trained, tmp_path):
    pytest.importorskip("moviepy")
    film, evaluation = record(Run.open(trained), tmp_path / "film.mp4", episodes=2)
    assert film.is_file()
    assert len(evaluation.returns) == 2


def test_a_run_without_masks_is_evaluated_without(trained):
    path = trained / "config.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump({**yaml.safe_load(before), "use_masking": False}))
    try:
        with pytest.raises(WorkerError, match="is forbidden"):
            evaluate(Run.open(trained), 20)
    finally:
        path.write_text(before)


def test_the_command_line_turns_masks_off(tmp_path, capsys):
    command = ["train", STRICT, "--out", str(tmp_path / "run"), "--no-progress", "--steps", "2000"]
    assert main([*command, "--set", "use_masking=false"]) == 5
    assert "is forbidden" in capsys.readouterr().err
