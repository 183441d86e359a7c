"""Runs on the Hub: they go up and come down through its real client, and nothing bad is kept."""

import json
import pickle
import re
import shutil
import zipfile
from unittest import mock

import pytest
import yaml

from acktr.cli import main
from acktr.presets import resolve
from acktr.run.directory import Run
from acktr.run.hub import _LIMITS, pull
from acktr.run.play import evaluate
from tests.helpers.hub import TOKEN, serving
from tests.helpers.runs import TOY, content

constants = pytest.importorskip("huggingface_hub.constants")
REPO = "someone/toy"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "".join(template[1:])
        )
        # Its storage of large files has an API of its own; the one before it is always there.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def shared(hub, copy):
    """The Hub with a run on it."""
    assert main(["push", str(copy), REPO]) == 0
    return hub


def fails(capsys, code, *arguments):
    """Return the one sentence with which a command fails."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("acktr: ")
    return error


def test_there_and_back(hub, copy, tmp_path, capsys, monkeypatch):
    (copy / "episode.mp4").write_bytes(b"a film")
    (copy / "learning_curve.png").write_bytes(b"a picture")
    (copy / "secret.txt").write_text("not to be shared")
    assert main(["push", str(copy), REPO, "--private"]) == 0
    assert capsys.readouterr().out == f"{hub.address}/{REPO}\n"
    assert hub.public == {REPO: False}
    assert len(hub.commits) == 1
    assert "secret.txt" not in hub.repos[REPO]
    assert "checkpoints" not in str(hub.repos[REPO].keys())
    assert "command" not in json.loads(hub.repos[REPO]["versions.json"])

    monkeypatch.chdir(tmp_path)
    assert main(["pull", REPO]) == 0
    assert capsys.readouterr().out == "runs/toy\n"
    there, here = content(tmp_path / "runs" / "toy"), content(copy)
    assert {str(name) for name in there} == set(_LIMITS) & {str(name) for name in here}
    del there[next(name for name in there if name.name == "versions.json")]
    assert all(here[name] == data for name, data in there.items())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy"]  # and nothing beside

    pulled = Run.open(tmp_path / "runs" / "toy")
    assert evaluate(pulled, 1, allow_import=True) == evaluate(Run.open(copy), 1, allow_import=True)


def test_it_is_played_and_exported(shared, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert main(["pull", REPO, "--out", "here"]) == 0
    assert main(["evaluate", "here", "--episodes", "1"]) == 0
    assert main(["export", "here", "policy.onnx"]) == 0
    assert main(["plot", "here"]) == 0
    assert "over 1 episodes" in capsys.readouterr().out


def test_the_card(hub, copy, tmp_path):
    result = json.loads((copy / "result.json").read_text())
    result["evaluation"] = {"mean_return": 7.25, "std_return": 0.5, "episodes": 3}
    (copy / "result.json").write_text(json.dumps(result))
    (copy / "learning_curve.png").write_bytes(b"a picture")
    assert main(["push", str(copy), REPO]) == 0
    text = hub.repos[REPO]["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "acktr"
    assert {"reinforcement-learning", TOY} <= set(about["tags"])
    (entry,) = about["model-index"]
    assert entry["name"] == "toy"
    (metric,) = entry["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("mean_reward", "7.25 +/- 0.50")
    assert "| return, deterministic policy | 7.2 ± 0.5, 3 episodes |" in body
    assert "![Return over steps](learning_curve.png)" in body
    assert (copy / "config.yaml").read_text().strip() in body
    # The line that trains it again has all settings of the run.
    line = re.search(r"\$ acktr train (\S+) --preset (toy/config.yaml)", body)
    assert line[1] == TOY
    again = resolve(TOY, preset=str(copy / "config.yaml")).configuration
    settings = Run.open(copy).read_configuration()
    assert {**again.model_dump(mode="json"), "preset": ""} == {**settings, "preset": ""}


def test_what_an_earlier_run_has_left_is_replaced(shared, copy):
    shared.repos[REPO]["notes.txt"] = b"somebody's own"
    shared.repos[REPO]["replay.mp4"] = b"the film of another run"
    assert main(["push", str(copy), REPO]) == 0
    assert shared.repos[REPO]["notes.txt"] == b"somebody's own"
    assert "replay.mp4" not in shared.repos[REPO]


def test_what_is_private_is_not_published(shared, copy, capsys):
    before = dict(shared.repos[REPO])
    assert "is public" in fails(capsys, 2, "push", str(copy), REPO, "--private")
    assert shared.repos[REPO] == before


def test_a_run_that_is_not_to_be_pushed(hub, copy, tmp_path, capsys):
    (tmp_path / "key").write_text("secret")
    (copy / "episode.mp4").symlink_to(tmp_path / "key")
    assert "is a link, and what it leads to" in fails(capsys, 4, "push", str(copy), REPO)
    (copy / "episode.mp4").unlink()
    (copy / "model.zip").write_bytes((copy / "model.zip").read_bytes()[:-100])
    assert "model.zip is no readable zip" in fails(capsys, 4, "push", str(copy), REPO)
    (copy / "model.zip").unlink()
    assert "has no model.zip" in fails(capsys, 4, "push", str(copy), REPO)
    assert "holds no run" in fails(capsys, 4, "push", str(tmp_path), REPO)
    assert hub.repos == {}


@pytest.mark.parametrize("repo", ["toy", "a/b/c", "../toy", "some one/toy", "someone/", "", "a--b/c..d"])
def test_a_name_that_is_none(repo, hub, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    for command in (["pull", repo], ["push", str(copy), repo]):
        assert "is no name of a repository" in fails(capsys, 2, *command)
    assert set(tmp_path.iterdir()) == before


def test_who_is_not_logged_in(hub, copy, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "without a token" in fails(capsys, 2, "push", str(copy), REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "log in with `hf auth login`" in fails(capsys, 2, "push", str(copy), REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "your token does not allow it" in fails(capsys, 2, "push", str(copy), "other/toy")
    assert hub.repos == {}


def test_no_network(hub, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    before = set(tmp_path.iterdir())
    out = tmp_path / "far" / "away"
    assert "http://127.0.0.1:9" in fails(capsys, 2, "pull", REPO, "--out", str(out))
    assert "could not be pushed" in fails(capsys, 2, "push", str(copy), REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in fails(capsys, 2, "pull", REPO, "--out", str(out))
    assert set(tmp_path.iterdir()) == before


def test_the_package_is_missing(copy, capsys):
    with mock.patch("acktr.run.hub.is_installed", return_value=False):
        for command in (["pull", REPO], ["push", str(copy), REPO]):
            assert 'pip install "acktr[hub]"' in fails(capsys, 2, *command)


def test_a_hub_that_breaks_off(shared, copy, tmp_path, capsys):
    shared.refuses["/commit/"] = 403
    before = dict(shared.repos[REPO])
    assert "does not allow it" in fails(capsys, 2, "push", str(copy), REPO)
    assert shared.repos[REPO] == before
    shared.refuses = {"/paths-info/": 500}
    assert "could not be pulled" in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def evil(folder):
    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    return pickle.dumps(Evil())


def pickled_zip(folder):
    path = folder / "foreign.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", evil(folder))
        archive.writestr("policy.pth", evil(folder))
    data = path.read_bytes()
    path.unlink()
    return data


SETTINGS = "env_id: CartPole-v1\nn_timesteps: 100\npreset: classic\n"
# Files that are changed in the repository, None where one is gone; what is said, and the exit code.
BAD = {
    "no model": ({"model.zip": None}, "model.zip missing", 4),
    "a pickle alone": (
        {"model.zip": None, "config.yaml": None, "policy.pkl": evil},
        "'policy.pkl', which may have to be unpickled",
        4,
    ),
    "a model of pickles": ({"model.zip": pickled_zip}, "whose pickles may run any code", 4),
    "a best model of pickles": ({"best_model.zip": pickled_zip}, "best_model.zip is a file of", 4),
    "a page in the place of a model": ({"model.zip": b"<html>"}, f"{REPO}/model.zip is no readable", 4),
    "no configuration": ({"config.yaml": None}, "config.yaml missing", 4),
    "a configuration of another format": ({"config.yaml": b"- a\n- b\n"}, "env_id is missing", 4),
    "rl_zoo3's": ({"config.yaml": b"!!python/tuple [1]"}, "cannot be read", 4),
    "unknown settings": ({"config.yaml": f"{SETTINGS}n_epochs: 4\n".encode()}, "n_epochs", 4),
    "a later configuration": ({"config.yaml": b"env_id: A\n"}, "'preset' is missing", 4),
    "a configuration of lists in lists": ({"config.yaml": b"[" * 5000}, "cannot be read", 4),
    "a configuration of bytes": ({"config.yaml": bytes(range(256))}, "cannot be read", 4),
    "an empty model": ({"model.zip": b""}, "model.zip is no readable zip", 4),
    "a large configuration": ({"config.yaml": b" " * (2**20 + 1)}, "more than the 1,048,576", 4),
}


@pytest.mark.parametrize(("changes", "message", "code"), BAD.values(), ids=BAD)
def test_bad_repositories(changes, message, code, shared, tmp_path, capsys):
    for name, data in changes.items():
        shared.repos[REPO].pop(name, None)
        if data is not None:
            shared.repos[REPO][name] = data(tmp_path) if callable(data) else data
    before = set(tmp_path.iterdir())
    error = fails(capsys, code, "pull", REPO, "--out", str(tmp_path / "far" / "run"))
    assert message in error
    assert str(tmp_path) not in error  # where it was looked at is nobody's concern
    assert set(tmp_path.iterdir()) == before


def test_figures_that_are_none_are_left_out(shared, tmp_path, capsys):
    """Lists in lists are refused by Python's JSON with an error of their own."""
    for name in ("result.json", "versions.json"):
        shared.repos[REPO][name] = b"[" * 100_000
    out = tmp_path / "pulled"
    assert main(["pull", REPO, "--out", str(out)]) == 0
    assert main(["push", str(out), REPO]) == 0
    assert shared.repos[REPO]["versions.json"] == b"{}\n"
    assert "| return, deterministic policy" not in shared.repos[REPO]["README.md"].decode()


def test_other_files_stay_where_they_are(shared, tmp_path):
    for name in ("../evil", "/etc/evil", "checkpoints/step-1/manifest.json", "policy.pkl", "a.py"):
        shared.repos[REPO][name] = evil(tmp_path)
    run = pull(REPO, tmp_path / "pulled")
    assert {str(name) for name in content(run.path)} <= set(_LIMITS)
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "ran").exists()


def test_sizes_that_are_lied_about(shared, tmp_path, capsys):
    shared.repos[REPO]["result.json"] = b" " * (2**20 + 1)
    shared.lies["result.json"] = 10
    error = fails(capsys, 4, "pull", REPO, "--out", str(tmp_path / "x"))
    assert "result.json of someone/toy has 1,048,577 bytes" in error
    assert not (tmp_path / "x").exists()


def test_a_download_that_breaks_off(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    shared.cut.add("model.zip")
    before = set(tmp_path.iterdir())
    assert "could not be pulled" in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "x"))
    assert set(tmp_path.iterdir()) == before
    shared.cut.clear()
    assert main(["pull", REPO, "--out", str(tmp_path / "x")]) == 0


def test_ctrl_c_leaves_nothing(shared, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    monkeypatch.setattr("acktr.run.hub._check_run", interrupted)
    assert main(["pull", REPO, "--out", str(tmp_path / "far" / "run")]) == 130
    assert set(tmp_path.iterdir()) == before


def test_a_place_that_is_taken(shared, copy, tmp_path, capsys):
    before = content(copy)
    assert "exists already" in fails(capsys, 2, "pull", REPO, "--out", str(copy))
    assert content(copy) == before
    (tmp_path / "file").write_text("mine")
    assert "exists already" in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "file"))
    assert "cannot be made" in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main(["pull", REPO, "--out", str(tmp_path / "empty")]) == 0


def test_no_such_repository(hub, tmp_path, capsys):
    error = fails(capsys, 2, "pull", "someone/else", "--out", str(tmp_path / "x"))
    assert "There is no repository someone/else" in error


def test_a_run_of_an_earlier_layout(hub, tmp_path):
    run = shutil.copytree("tests/golden/run-v1", tmp_path / "old")
    assert main(["push", str(run), REPO]) == 0
    assert main(["pull", REPO, "--out", str(tmp_path / "new")]) == 0
    assert (
        Run.open(tmp_path / "new").normalization_path().exists() == (run / "vecnormalize.json").exists()
    )
