"""Options that are gone: refused by name where they are given, understood in files of before."""

import copy
import shutil

import pytest
import torch
import yaml
from acktr.gone import renewed
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn
from torch.distributions import Normal

from acktr import ACKTR
from acktr.cli import main
from acktr.errors import CheckpointError, ConfigurationError
from acktr.kfac import KFAC
from acktr.presets import resolve, resolve_resumed
from acktr.run.directory import Run
from acktr.run.experiment import evaluate
from tests.checkpoint.models import assert_same_state, build
from tests.golden.make import HERE
from tests.small_envs import small_env

DEFAULTS = {"overlap": False, "n_actor_updates": 1, "momentum": 0.0, "weight_decay": 0.0}
GIVEN = {
    "overlap=true": "it is gone, because",
    "overlap=false": "it is gone, because",
    "n_actor_updates=2": "it is gone, because",
    "momentum=0.9": r"now kfac_kwargs=\{'momentum': \.\.\.\}",
    "weight_decay=0.01": r"now kfac_kwargs=\{'weight_decay': \.\.\.\}",
}


@pytest.mark.parametrize("override", GIVEN)
def test_they_are_refused_by_name(override, tmp_path, capsys):
    name, value = override.split("=")
    with pytest.raises(ConfigurationError, match=rf"'{name}' in --set: .*{GIVEN[override]}"):
        resolve("CartPole-v1", overrides=[override])
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"default: {{{name}: {value}}}\n")
    out = tmp_path / "run"
    for given in (["--set", override], ["--preset", str(preset)]):
        assert main(["train", "CartPole-v1", "--out", str(out), *given]) == 2
        assert name in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["n_actor_updates", "momentum", "weight_decay"])
def test_the_constructor_says_what_takes_their_place(name):
    ACKTR("MlpPolicy", small_env(), **{name: DEFAULTS[name]})  # which is what it does
    with pytest.raises(ConfigurationError, match=rf"^ACKTR has no {name}: it is "):
        ACKTR("MlpPolicy", small_env(), **{name: 2})


def test_settings_of_a_run_are_in_the_words_of_now():
    told = []
    assert renewed({"env_id": "x", **DEFAULTS}, told.append) == {"env_id": "x"}
    assert told == []
    of_before = {
        "overlap": True,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "kfac_kwargs": {"inverse": "eigen", "length_floor": 0.0},
        "critic_kfac_kwargs": None,
    }
    assert renewed(of_before, told.append) == {
        "kfac_kwargs": {"inverse": "eigen", "momentum": 0.9, "weight_decay": 0.01},
        "critic_kfac_kwargs": {"momentum": 0.0},
    }
    assert told == ["overlap is gone, and made no difference to what is learned: ignored."]


def test_old_settings_are_resumed():
    saved = resolve("CartPole-v1", overrides=["kfac_kwargs.momentum=0.9", "backend=gymnasium"])
    settings = saved.configuration.model_dump()
    of_before = {**settings, **DEFAULTS, "overlap": True, "kfac_kwargs": None, "momentum": 0.9}
    now = resolve_resumed("CartPole-v1", of_before).algorithm_arguments()
    assert now["kfac_kwargs"] == {"momentum": 0.9}
    assert now["critic_kfac_kwargs"] == {"momentum": 0.0}
    with pytest.raises(ConfigurationError, match=r"'n_actor_updates'.*gone"):
        resolve_resumed("CartPole-v1", {**of_before, "n_actor_updates": 2})


def test_a_run_of_before_is_played_and_resumed(tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(HERE / "run-v1", path)
    assert len(evaluate(Run(path), 1).returns) == 1
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "overlap": True}))
    given = ["--out", str(path), "--resume", "--no-progress", "--steps", "4608"]
    assert main(["train", settings["env_id"], *given, "--set", "n_final_eval_episodes=0"]) == 0
    said = capsys.readouterr().err
    assert "acktr: overlap is gone, and made no difference" in said
    assert "Resumed at step 4,096" in said
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "n_actor_updates": 2}))
    with pytest.raises(CheckpointError, match=r"'n_actor_updates'.*gone"):
        evaluate(Run(path), 1)


@pytest.mark.parametrize("trust", [False, True])
def test_model_files_of_before(trust, tmp_path):
    """In both formats; momentum was the actor's alone."""
    model = build(
        kfac_kwargs={"momentum": 0.5, "weight_decay": 0.01}, critic_kfac_kwargs={"momentum": 0.0}
    ).learn(32)
    old = copy.copy(model)
    vars(old).update(momentum=0.5, weight_decay=0.01, kfac_kwargs={}, critic_kfac_kwargs={})
    save = BaseAlgorithm.save if trust else ACKTR.save
    old.n_actor_updates = 1
    save(old, tmp_path / "one")
    loaded = ACKTR.load(tmp_path / "one", env=model.env, device="cpu", trust=trust)
    assert_same_state(loaded, model)
    assert not {"momentum", "weight_decay", "n_actor_updates"} & vars(loaded).keys()
    for optimizer, momentum in ((loaded.kfac, 0.5), (loaded.critic_optimizer, 0.0)):
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["weight_decay"]) == (momentum, 0.01)
    old.n_actor_updates = 2
    save(old, tmp_path / "two")
    with pytest.warns(UserWarning, match="trained with n_actor_updates=2, which is gone"):
        loaded = ACKTR.load(tmp_path / "two", env=model.env, device="cpu", trust=trust)
    assert_same_state(loaded, model)


def test_states_of_kfac_with_a_floor_of_lengths():
    net = nn.Linear(3, 2)
    kfac = KFAC(net)
    with kfac.capture():
        out = net(torch.randn(5, 3))
    kfac.update_curvature(Normal(out, 1.0))
    out.sum().backward()
    kfac.step()
    state = copy.deepcopy(kfac.state_dict())
    state["param_groups"][0].update(length_floor=0.0, lengths=torch.zeros(2))
    other = KFAC(net)
    other.load_state_dict(state)
    assert other.param_groups[0].keys() == kfac.param_groups[0].keys()
    state["param_groups"][0]["length_floor"] = 0.5
    with pytest.raises(ValueError, match=r"length_floor 0\.5, which is gone"):
        KFAC(net).load_state_dict(state)
