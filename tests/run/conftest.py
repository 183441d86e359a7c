"""A finished run, and a copy of it to do harm to."""

import shutil

import pytest

from tests.helpers.runs import QUICK, TOY, new, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("acktr.run.training.plot_learning_curve", lambda run: None)
        path = new(tmp_path_factory.mktemp("finished"))
        train(path, TOY, *QUICK)
    return path


@pytest.fixture
def copy(tmp_path, finished):
    return shutil.copytree(finished, tmp_path / "run")
