"""Environments of other packages: what registers them, what is not installed, and one's own module."""

import importlib
import importlib.metadata
import sys

import gymnasium as gym
import pytest

from acktr import ACKTR
from acktr.cli import main
from acktr.envs import lookup
from acktr.errors import ConfigurationError

REGISTERED_ON_IMPORT = {
    "dm_control/finger-spin-v0": ("shimmy", "acktr[general]"),
    "MiniGrid-Empty-8x8-v0": ("minigrid", "minigrid"),
    "BabyAI-GoTo-v0": ("minigrid", "minigrid"),
    "MinAtar/Breakout-v1": ("minatar", "minatar"),
    "FetchReachDense-v4": ("gymnasium_robotics", "gymnasium-robotics"),
    "HandManipulateEgg-v1": ("gymnasium_robotics", "gymnasium-robotics"),
    "AdroitHandDoor-v1": ("gymnasium_robotics", "gymnasium-robotics"),
    "PointMaze_UMaze-v3": ("gymnasium_robotics", "gymnasium-robotics"),
    "FrankaKitchen-v1": ("gymnasium_robotics", "gymnasium-robotics"),
    "highway-fast-v0": ("highway_env", "highway-env"),
    "Meta-World/MT1": ("metaworld", "metaworld"),
    "PandaReach-v3": ("panda_gym", "panda-gym"),
}


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed; nothing of it is imported."""

    def say(*modules):
        monkeypatch.setattr(lookup, "is_installed", lambda module: module in modules)
        for module in {module for module, _ in REGISTERED_ON_IMPORT.values()}:
            monkeypatch.delitem(sys.modules, module, raising=False)

    for env_id in [env_id for env_id in gym.registry if lookup._importer(env_id) is not None]:
        monkeypatch.delitem(gym.registry, env_id)
    return say


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of the user's own that can be imported, and forget what it registers."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield write
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)


def refusal(env_id):
    with pytest.raises(ConfigurationError) as caught:
        lookup.find_spec(env_id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("env_id", REGISTERED_ON_IMPORT)
def test_what_registers_an_id_is_named(env_id, installed):
    module, requirement = REGISTERED_ON_IMPORT[env_id]
    installed(module, "dm_control")
    assert refusal(env_id).endswith(f"is registered when {module} is imported: give {module}:{env_id}.")
    installed()
    for given in (env_id, f"{module}:{env_id}"):
        assert f'run `pip install "{requirement}"`, and give {module}:{env_id}.' in refusal(given)


def test_a_part_of_a_package_may_be_missing(installed):
    installed("shimmy")
    assert "v0 needs dm_control, which is not installed" in refusal("shimmy:dm_control/finger-spin-v0")


def test_nothing_is_written(installed, tmp_path, monkeypatch, capsys):
    installed()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "MiniGrid-Empty-8x8-v0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_id_of_that_form_may_be_somebody_elses(own):
    own("my_roads", "import gymnasium as gym\ngym.register('merge-own-v0', 'my_roads:Merge')\n")
    assert lookup.find_spec("my_roads:merge-own-v0").id == "merge-own-v0"
    assert lookup.find_spec("merge-own-v0").id == "merge-own-v0"


def entry_points(*values):
    points = [importlib.metadata.EntryPoint("x", value, "gymnasium.envs") for value in values]
    return lambda group: importlib.metadata.EntryPoints(points).select(group=group)


CALLED = """
import gymnasium as gym
def register_envs():
    gym.register("Called-v0", "my_games:Game")
def fail():
    raise LookupError("no games")
"""


def test_what_gymnasium_called_once_is_called(own, monkeypatch):
    own("my_games", CALLED)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", entry_points("other:x", "my_games:register_envs")
    )
    assert lookup.find_spec("my_games:Called-v0").id == "Called-v0"
    monkeypatch.setattr("importlib.metadata.entry_points", entry_points("my_games:fail"))
    assert "my_games:fail cannot register the environments" in refusal("my_games:Other-v9")


def test_a_class_is_no_id(own):
    own("my_classes", "class Balance:\n    pass\n")
    assert 'as in gymnasium.register("Balance-v0", Balance)' in refusal("my_classes:Balance")
    assert "no environment 'Nowhere-at-all' in my_classes: check the id, or" in refusal(
        "my_classes:Nowhere-at-all"
    )


def test_a_module_of_this_directory_is_not_looked_for_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "check its name, install or mend it." in refusal("my_lost_module:Balance-v0")
    (tmp_path / "my_lost_module.py").write_text("")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert "lies in this directory, where Python does not look unless PYTHONPATH=." in refusal(
        "my_lost_module:Balance-v0"
    )


def test_a_model_says_the_same_of_an_id(installed):
    installed("minigrid")
    with pytest.raises(ConfigurationError, match="is registered when minigrid is imported"):
        ACKTR("MlpPolicy", "MiniGrid-Empty-8x8-v0")
    with pytest.raises(ConfigurationError, match=r"nearest are HalfCheetah-v5"):
        ACKTR("MlpPolicy", "HalfChetah-v5")
