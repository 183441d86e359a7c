"""A resumed run is called exact only where settings, machine and code are those of its checkpoint."""

import re
import sys

import gymnasium as gym
import pytest
import yaml

from acktr.cli import main
from acktr.envs.code import environment_code
from acktr.errors import CheckpointMismatchError
from acktr.presets import resolve
from tests.helpers.runs import QUICK, TOY, content, new, train

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 0.5),
        ("seed", 7),
        ("natural.damping", 0.3),
        ("n_steps", 8),
        ("n_envs", 3),
        ("env_kwargs", {"max_episode_steps": 3}),
        ("normalize", {"norm_obs": False, "norm_reward": True}),
        ("eval_interval", 32),
    ],
)
def test_an_edited_configuration_is_refused(copy, capsys, key, value):
    path = copy / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    group, _, name = key.rpartition(".")
    part = settings[group] if group else settings
    was, part[name] = part[name], value
    path.write_text(yaml.safe_dump(settings))
    before = content(copy)
    assert main(["train", TOY, "--out", str(copy), "--resume", "--no-progress"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "made with other settings" in error
    assert key in error
    if not isinstance(value, dict):
        assert f"{key} is {value!r} and was {was!r}" in error
    assert content(copy) == before


def test_through_the_interface_of_python_too(copy):
    with pytest.raises(CheckpointMismatchError, match=re.escape("n_envs is 4 and was 2")):
        train(copy, TOY, *QUICK, "n_envs=4", resume=True)


def test_what_may_change_does(copy):
    changes = ("keep_last=1", "on_checkpoint_error=continue", "checkpoint_interval=9")
    _, told = train(copy, TOY, *QUICK, *changes, resume=True)
    assert told[-1].endswith("exactly, environments included.")


def test_schedules_that_end_elsewhere_are_named(copy):
    _, told = train(copy, TOY, *QUICK, "n_timesteps=192", resume=True)
    assert "not bit for bit: " in told[-1]
    assert "ended at step 160 and end at 192 now" in told[-1]


def test_another_machine_is_named(copy, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 17)
    _, told = train(copy, TOY, *QUICK, resume=True)
    assert "not bit for bit: the number of torch's threads was 1 and is 17." in told[-1]


# The code of an environment ----------------------------------------------------------------------

ENVIRONMENT = """
import gymnasium as gym
from gymnasium.wrappers import TransformReward
from tests.helpers.toy_envs import Toy
import {name}_helper as helper

class Mine(Toy):
    def __init__(self, render_mode=None, world=None, **kwargs):
        super().__init__(render_mode)

    def step(self, action):
        from sys import path
        return super().step(action)

def make(**kwargs):
    return TransformReward(Mine(**kwargs), helper.scale)

gym.register("Mine-v0", make)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An environment of two modules and a file; the name of the first, and their folder."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(ENVIRONMENT.format(name=name))
    (tmp_path / "code" / f"{name}_helper.py").write_text("def scale(r):\n    return r\n")
    (tmp_path / "code" / "world.xml").write_text("<a/>")
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield name, tmp_path / "code"
    for module in (name, f"{name}_helper"):
        sys.modules.pop(module, None)
    gym.registry.pop("Mine-v0", None)


@pytest.mark.parametrize("changed", ["nothing", "{}.py", "{}_helper.py", "world.xml"])
def test_another_code_of_the_environment_is_named(tmp_path, mine, changed):
    name, folder = mine
    settings = (*QUICK, f"env_kwargs.world={folder / 'world.xml'}")
    train(new(tmp_path / "run"), f"{name}:Mine-v0", *settings, stop_at=2)
    if changed != "nothing":
        path = folder / changed.format(name)
        path.write_text(path.read_text() + "\n")
    _, told = train(tmp_path / "run", f"{name}:Mine-v0", *settings, resume=True)
    if changed == "nothing":
        assert told[-1].endswith("exactly, environments included.")
    else:
        shown = path if changed == "world.xml" else changed.format(name).removesuffix(".py")
        assert f"the environment's code is not as it was ({shown})" in told[-1]


def test_what_makes_an_environment(mine):
    name, folder = mine
    resolve(f"{name}:Mine-v0")
    code = environment_code(f"{name}:Mine-v0", {"a": [{"b": str(folder / "world.xml")}, 1]})
    expected = {
        name,
        f"{name}_helper",
        "tests.helpers.toy_envs",
        "tests.helpers",
        "tests",
        str(folder / "world.xml"),
    }
    assert set(code) == expected
    # What has a version that is compared anyway is left out.
    assert environment_code("CartPole-v1", {}) == {}


def test_an_installed_package_has_its_version(monkeypatch):
    pytest.importorskip("ale_py")
    from importlib.metadata import version

    assert environment_code("ALE/Pong-v5", {}) == {"ale_py": version("ale-py")}
