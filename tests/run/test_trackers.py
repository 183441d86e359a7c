"""Trackers: what is logged arrives there too, and one that cannot be used is refused before anything."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Plot
from stable_baselines3.common.logger import Figure, Image, Video

from acktr.cli import main
from acktr.errors import ConfigurationError
from acktr.run.directory import Run
from acktr.run.trackers import check_tracker, flat, track_film, tracked
from tests.helpers.runs import QUICK, TOY, new, train

pytestmark = pytest.mark.usefixtures("no_pictures")
MORE = ("n_final_eval_episodes=1", "n_timesteps=64", "checkpoint_steps=32", "eval_interval=0")


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """Its client, with a store in a directory."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())


@pytest.fixture
def wandb(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return wandb


def test_mlflow(mlflow, tmp_path):
    path = new(tmp_path / "run")
    model, _ = train(path, TOY, *QUICK, *MORE, "tracker=mlflow")
    run = mlflow.get_run(tracked(Run.open(path), "mlflow"))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    settings = dict(flat(Run.open(path).read_configuration()))
    assert run.data.params["n_steps"] == str(settings["n_steps"])
    assert run.data.params.keys() == settings.keys()
    with (path / "progress.csv").open() as file:
        columns = file.readline().strip().split(",")
    assert set(columns) <= run.data.metrics.keys()
    assert json.loads((path / "result.json").read_text())["evaluation"]["mean_return"] == pytest.approx(
        run.data.metrics["final/mean_return"]
    )
    # More steps go on in the same run, and no update is there twice.
    train(path, TOY, *QUICK, *MORE, "n_timesteps=96", "tracker=mlflow", resume=True)
    assert [x.run_id for x in [mlflow.get_run(run.info.run_id).info]] == [run.info.run_id]
    history = mlflow.get_metric_history(run.info.run_id, "time/total_timesteps")
    steps = [metric.value for metric in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 96
    assert len(mlflow.search_runs(["0", run.info.experiment_id])) == 1
    (path / "episode.mp4").write_bytes(b"a film")
    track_film(Run.open(path), path / "episode.mp4")
    assert "episode.mp4" in [file.path for file in mlflow.list_artifacts(run.info.run_id)]
    assert model.num_timesteps == 64


def test_wandb(wandb, tmp_path):
    path = new(tmp_path / "run")
    logged, init = [], wandb.init

    def watched(**arguments):
        run = init(**arguments)
        log = run.log
        run.log = lambda values, **more: (logged.append((values, more)), log(values, **more))
        watched.arguments = arguments
        return run

    with mock.patch("wandb.init", watched):
        train(path, TOY, *QUICK, *MORE, "tracker=wandb")
    ident = tracked(Run.open(path), "wandb")
    assert watched.arguments["id"] == ident
    assert dict(watched.arguments["config"]) == Run.open(path).read_configuration()
    assert any("train/kl" in values for values, _ in logged)
    assert "final/mean_return" in logged[-1][0]
    assert list((path / "wandb").glob(f"offline-run-*-{ident}/*.wandb"))


def test_pictures_and_films(mlflow, wandb, tmp_path):
    from acktr.run.trackers import MLflow, Wandb

    frames = torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8)
    values = {
        "a/figure": Figure(Plot(), close=False),
        "a/picture": Image(np.zeros((3, 4, 5), np.uint8), "CHW"),
        "a/film": Video(frames, fps=10.0),
        "a/text": "words",
        "a/number": np.float32(2.0),
    }
    tracker = MLflow(tmp_path, {"n_steps": 8}, None)
    tracker.write(values, dict.fromkeys(values, ()), 5)
    tracker.close()
    there = {file.path for file in mlflow.list_artifacts(tracker.ident, "a")}
    assert there == {"a/figure-5.png", "a/picture-5.png", "a/film-5.gif"}
    data = mlflow.get_run(tracker.ident).data
    assert (data.metrics["a/number"], data.tags["a/text"]) == (2.0, "words")
    offline = Wandb(tmp_path, {"n_steps": 8}, None)
    offline.write(values, dict.fromkeys(values, ()), 5)
    offline.close()
    assert len(list((tmp_path / "wandb").rglob("media/*/a/*"))) == 3


def test_a_tracker_that_fails_is_told_once(mlflow, tmp_path):
    from acktr.run.trackers import MLflow

    tracker = MLflow(tmp_path, {}, None)
    with (
        mock.patch.object(tracker._client, "log_batch", side_effect=OSError("no network")),
        pytest.warns(UserWarning, match=r"mlflow takes nothing more \(OSError: no network\)\. Training"),
    ):
        tracker.write({"a": 1.0}, {"a": ()}, 1)
    tracker.write({"a": 1.0}, {"a": ()}, 2)
    assert mlflow.get_run(tracker.ident).data.metrics == {}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_one_that_is_not_installed(name, tmp_path, capsys):
    out = tmp_path / "run"
    with mock.patch("acktr.run.trackers.is_installed", return_value=False):
        assert main(["train", TOY, "--out", str(out), "--set", f"tracker={name}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"tracker={name} needs {name}" in error
    assert "pip install" in error
    assert not out.exists()


def test_nobody_is_logged_in(tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["train", TOY, "--out", str(tmp_path / "run"), "--set", "tracker=wandb"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wandb" in error
    assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_answer(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigurationError, match="tracker=mlflow cannot be used"):
        check_tracker("mlflow")


def test_a_name_that_is_none(tmp_path, capsys):
    assert main(["train", TOY, "--out", str(tmp_path / "run"), "--set", "tracker=wandbb"]) == 2
    assert "tracker = 'wandbb' is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tracker": "mlflow", "id": "../x"}', '{"tracker": "mlflow"}']
)
def test_a_file_that_says_nothing(text, tmp_path):
    (tmp_path / "tracker.json").write_text(text)
    assert tracked(Run(tmp_path), "mlflow") is None
