"""Classes that settings name as ``module:Class``: imported where that is allowed, and nowhere else."""

import sys

import pytest
import yaml

from acktr.cli import main
from acktr.envs.lookup import import_module
from acktr.errors import ConfigurationError
from acktr.presets import resolve, resolve_resumed, validate
from acktr.run.experiment import Experiment

CODE = """
import os
from pathlib import Path
Path(os.environ["RAN"]).write_text("the module was imported")
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
class Wide(BaseFeaturesExtractor):
    def __init__(self, space, width=8):
        super().__init__(space, width)
        self.linear = nn.Linear(space.shape[0], width)
    def forward(self, observations):
        return self.linear(observations)
class Own(ActorCriticPolicy):
    def __init__(self, *args, colour="red", **kwargs):
        super().__init__(*args, **kwargs)
class Cube(nn.Module):
    def forward(self, x):
        return x**3
class Nothing:
    pass
number = 3
"""
EXTRACTOR = "policy_kwargs.features_extractor_class"
SMALL = ["n_envs=2", "n_steps=4", "n_timesteps=8", "eval_interval=0", "n_final_eval_episodes=0"]
SMALL += ["policy_kwargs.share_features_extractor=false"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own, and a file that is there once it has been imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "users_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    yield tmp_path / "ran"
    sys.modules.pop("users_nets", None)


def test_nothing_is_imported_that_is_not_allowed(module):
    for override in (f"{EXTRACTOR}=users_nets:Wide", "policy=users_nets:Own"):
        with pytest.raises(ConfigurationError, match="'users_nets' of the setting"):
            resolve("CartPole-v1", overrides=[override])
    assert not module.exists()


def test_classes_of_ones_own(module):
    overrides = [
        *SMALL,
        "policy=users_nets:Own",
        "policy_kwargs.colour=blue",
        f"{EXTRACTOR}=users_nets:Wide",
        "policy_kwargs.features_extractor_kwargs.width=5",
        "policy_kwargs.activation_fn=users_nets:Cube",
    ]
    configuration, _ = resolve("CartPole-v1", overrides=overrides, allow_import=True)
    assert module.exists()
    with Experiment(configuration) as experiment:
        policy = experiment.model.policy
        assert type(policy).__name__ == "Own"
        assert policy.features_extractor.features_dim == 5
        assert "Cube" in str(policy.mlp_extractor)
        experiment.model.learn(8)
    # Names, and no classes, are what is written down; what was imported need not be allowed again.
    saved = yaml.safe_load(yaml.safe_dump(configuration.model_dump(mode="json")))
    assert saved["policy"] == "users_nets:Own"
    assert validate(saved) == configuration
    sys.modules.pop("users_nets")
    with pytest.raises(ConfigurationError, match="--allow-import"):
        resolve_resumed("CartPole-v1", saved)
    assert resolve_resumed("CartPole-v1", saved, allow_import=True) == configuration


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{EXTRACTOR}=users_nets:Wild", "has no 'Wild' .* did you mean 'Wide'"),
        (f"{EXTRACTOR}=users_nets:Nothing", "derived from BaseFeaturesExtractor"),
        (f"{EXTRACTOR}=users_nets:number", "derived from BaseFeaturesExtractor"),
        (f"{EXTRACTOR}=ReLU", "derived from BaseFeaturesExtractor"),
        ("policy_kwargs.activation_fn=users_nets:Nothing", "derived from Module"),
        ("policy=users_nets:Wide", "derived from ActorCriticPolicy"),
        ("policy=no_such_module:Own", "cannot be imported .ModuleNotFoundError: No module"),
        ("policy=Own", "There is no policy 'Own'.* module:Class"),
    ],
)
def test_a_wrong_name_gets_one_sentence(module, override, message):
    with pytest.raises(ConfigurationError, match=message) as said:
        resolve("CartPole-v1", overrides=[override], allow_import=True)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("code", ["1 / 0", "raise SystemExit(3)", "def f(:", "import no_such_module"])
def test_a_module_that_fails_is_named(tmp_path, monkeypatch, code):
    (tmp_path / "users_broken.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for what in ("the environment 'users_broken:X-v0'", "the setting policy"):
        with pytest.raises(ConfigurationError, match=f"'users_broken' of {what} cannot be imported"):
            import_module("users_broken", what, allow_import=True)


# The model file says what it cannot hold.
@pytest.mark.filterwarnings("ignore:Saved without policy_kwargs.features_extractor_class")
def test_on_the_command_line(module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "CartPole-v1", "--no-progress", "--out", "run", "--set", *SMALL]
    command += [f"{EXTRACTOR}=users_nets:Wide"]
    assert main(command) == 2
    assert "--allow-import" in capsys.readouterr().err
    assert not module.exists()
    assert not (tmp_path / "run").exists()
    assert main([*command, "--allow-import"]) == 0
    assert (tmp_path / "run" / "model.zip").exists()
