"""``acktr sweep``: the Zoo searches, `acktr train` takes what is found, wrong input leaves nothing."""

import json
import subprocess
import sys

import pytest

from acktr.cli import main
from acktr.envs.lookup import is_installed
from acktr.presets import resolve

# Imported, the Zoo would change gymnasium's TimeLimit for all tests of this process.
pytestmark = pytest.mark.skipif(not is_installed("rl_zoo3"), reason="rl_zoo3 is not installed")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Nope-v0"], "There is no environment 'Nope-v0'"),
        (["ALE/Pong-v5"], "use `acktr train`"),
        (["CartPole-v1", "--trials", "0"], "--trials must be at least 1, not 0."),
        (["CartPole-v1", "--steps", "-5"], "--steps must be at least 1, not -5."),
        (["CartPole-v1", "--seed", "x"], "--seed must be a whole number"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    arguments, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_study_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "study.log").write_text("my notes")
    assert main(["sweep", "CartPole-v1", "--out", str(tmp_path)]) == 2
    assert "is no study that Optuna can read" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "is no study that Optuna can read" in capsys.readouterr().err
    assert (tmp_path / "study.log").read_text() == "my notes"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_search_goes_on_and_says_what_to_train_with(tmp_path):
    found = []
    for trials in ("2", "3"):
        command = [sys.executable, "-W", "ignore", "-m", "acktr", "sweep", "CartPole-v1"]
        command += ["--trials", trials, "--steps", "600", "--out", str(tmp_path / "found")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    drawn = {
        (line["trial_id"], line["param_name"]): line["param_value_internal"]
        for line in map(json.loads, (tmp_path / "found" / "study.log").read_text().splitlines())
        if "param_name" in line
    }
    assert len(drawn) == 15
    assert len({drawn[trial, "target_kl"] for trial in range(3)}) == 3  # it drew nothing again
    (line,) = [x for x in found[1].splitlines() if x.startswith("acktr train CartPole-v1 --set ")]
    configuration = resolve("CartPole-v1", overrides=line.split(" --set ")[1].split()).configuration
    assert configuration.natural.damping == pytest.approx(
        drawn[int(found[1].split("by trial ")[1].split()[0]), "damping"]
    )
    assert (tmp_path / "found" / "importance.png").stat().st_size > 5000
    assert (tmp_path / "found" / "report.html").stat().st_size > 100_000
