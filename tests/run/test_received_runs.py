"""The configuration of a run from somebody else: nothing is imported and no file opened unasked."""

import shutil
import sys

import gymnasium as gym
import pytest
import yaml

from acktr.cli import main
from acktr.errors import CheckpointError, ConfigurationError
from acktr.presets.received import check_received
from acktr.run.directory import Run
from acktr.run.play import evaluate, record
from tests.helpers.runs import TOY

pytestmark = pytest.mark.usefixtures("no_pictures")


EVIL = """
import gymnasium as gym
import pathlib
from tests.helpers.toy_envs import Toy
pathlib.Path(__file__).with_name("ran").touch()
if "Evil-v0" not in gym.registry:
    gym.register("Evil-v0", Toy)
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A file that appears when the module ``evil`` is executed."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "modules" / "ran"
    sys.modules.pop("evil", None)
    gym.registry.pop("Evil-v0", None)


def edit(path, **changes):
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, **changes}))


COMMANDS = {
    "evaluate": ("evaluate", "RUN", "--episodes", "1"),
    "record": ("record", "RUN"),
    "plot": ("plot", "RUN", "--out", "RUN/a.png"),
    "train": ("train", TOY, "--out", "RUN", "--resume"),
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_no_command_imports_what_a_run_names(copy, evil, capsys, monkeypatch, arguments):
    monkeypatch.setattr("acktr.run.play.check_film_packages", lambda: None)
    edit(copy, env_id="evil:Evil-v0")
    code = main([argument.replace("RUN", str(copy)) for argument in arguments])
    error = capsys.readouterr().err
    assert not evil.exists()
    if arguments[0] == "plot":  # it needs nothing of the environment
        assert (code, error) == (0, "")
    else:
        assert code in (2, 4)
        assert error.count("\n") == 1
        assert "evil:Evil-v0" in error
        assert arguments[0] == "train" or "--allow-import" in error


def test_it_is_imported_where_that_is_said(copy, evil):
    edit(copy, env_id="evil:Evil-v0")
    with pytest.raises(CheckpointError, match=r"'evil' of the environment 'evil:Evil-v0' in .*config"):
        evaluate(Run.open(copy), episodes=1)
    assert not evil.exists()
    assert len(evaluate(Run.open(copy), episodes=1, allow_import=True).returns) == 1
    assert evil.exists()
    assert len(evaluate(Run.open(copy), episodes=1).returns) == 1  # its code has run already


def test_on_the_command_line(copy, evil):
    edit(copy, env_id="evil:Evil-v0")
    assert main(["evaluate", str(copy), "--episodes", "1", "--allow-import"]) == 0
    assert evil.exists()


def test_who_types_the_environment_means_it(copy, evil, capsys):
    edit(copy, env_id="evil:Evil-v0")
    shutil.rmtree(copy / "checkpoints")
    assert main(["train", "evil:Evil-v0", "--out", str(copy), "--resume", "--no-progress"]) == 4
    assert "lost its checkpoints" in capsys.readouterr().err
    assert evil.exists()


@pytest.mark.parametrize(
    "value",
    [
        "/etc/world.xml", "./world.xml", "../world.xml", "~/world.xml", "a/world.xml", "evil:Evil-v0",
        "a\\world.xml", ["a", "/etc"], {"inner": {"deep": "/etc"}},
    ],
)  # fmt: skip
def test_files_are_not_opened_unasked(value):
    settings = {"env_id": "CartPole-v1", "env_kwargs": {"xml_file": value}}
    with pytest.raises(ConfigurationError, match=r"env_kwargs\.xml_file.* in here is .*--allow-import"):
        check_received(settings, "here", allow_import=False)
    check_received(settings, "here", allow_import=True)
    check_received(settings, "here", allow_import=False, typed=settings)


def test_other_arguments_are_no_files():
    kwargs = {"xml_file": "ant.xml", "map_name": "4x4", "slippery": True, "render_mode": "rgb_array"}
    check_received({"env_id": "A-v0", "env_kwargs": kwargs}, "here", allow_import=False)


def test_files_of_a_run(copy, capsys, monkeypatch):
    monkeypatch.setattr("acktr.run.play.check_film_packages", lambda: None)
    edit(copy, env_kwargs={"xml_file": "/etc/world.xml"})
    for play in (evaluate, record):
        with pytest.raises(CheckpointError, match=r"env_kwargs\.xml_file in .* '/etc/world\.xml'"):
            play(Run.open(copy))
    resume = ["train", TOY, "--out", str(copy), "--resume", "--no-progress"]
    assert main(resume) == 2
    assert "pass --allow-import" in capsys.readouterr().err
    # Typed anew, it is known to the user; the toy environment has no such argument.
    assert main([*resume, "--set", "env_kwargs.xml_file=/etc/world.xml"]) == 2
    assert "cannot be built" in capsys.readouterr().err
