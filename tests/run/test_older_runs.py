"""Runs of 0.1.0, whose settings lay flat: played, plotted and resumed, or refused by name."""

import json
import shutil

import pytest
import yaml

from acktr.cli import main
from acktr.errors import CheckpointError
from acktr.learner.moved import current_settings
from acktr.presets import resolve_resumed, validate
from acktr.run.directory import Run
from acktr.run.play import evaluate
from tests.golden.make import HERE
from tests.helpers.runs import content

pytestmark = pytest.mark.usefixtures("no_pictures", "known_versions")


@pytest.fixture
def old(tmp_path):
    """As ``acktr train Pendulum-v1 --steps 4096`` of 0.1.0 left it, with critic_damping=0.2."""
    return shutil.copytree(HERE / "run-v1", tmp_path / "run")


def edit(path, **changes):
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, **changes}))


def resume(path, *overrides, steps="4224"):
    arguments = ["train", "Pendulum-v1", "--out", str(path), "--resume", "--no-progress"]
    quick = ("n_final_eval_episodes=0", *overrides)
    return main([*arguments, "--steps", steps, *(x for pair in quick for x in ("--set", pair))])


def test_it_goes_on_with_its_settings_and_keeps_them_in_the_words_of_now(old, capsys):
    assert resume(old) == 0
    said = capsys.readouterr().err
    assert "acktr: Resumed at step 4,096 from " in said
    assert said.count("\n") == 1  # nothing that is gone made a difference
    settings = yaml.safe_load((old / "config.yaml").read_text())
    assert (settings["natural"]["damping"], settings["critic"]["damping"]) == (0.1, 0.2)
    assert settings["critic"]["kind"] == "natural"
    assert not {"damping", "critic_damping", "overlap", "n_actor_updates"} & settings.keys()
    assert json.loads((old / "result.json").read_text())["steps"] == 4224
    # Again, now with settings and a checkpoint of this version.
    assert resume(old, steps="4352") == 0
    assert "Resumed at step 4,224" in capsys.readouterr().err


def test_it_is_played_and_plotted(old, tmp_path, capsys):
    assert len(evaluate(Run(old), 2).returns) == 2
    assert main(["plot", str(old), "--out", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_gone_and_made_no_difference_is_told(old, capsys):
    edit(old, overlap=True)
    assert len(evaluate(Run(old), 1).returns) == 1
    assert resume(old) == 0
    first, _ = capsys.readouterr().err.split("\n", 1)
    where = old / "config.yaml"
    assert (
        first
        == f"acktr: overlap in {where} is gone and was left out: it changed nothing that was learned."
    )
    assert resume(old, steps="4352") == 0
    assert "overlap" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("n_actor_updates", 3), ("use_sde", True)])
def test_what_is_gone_and_made_one_is_refused(old, capsys, name, value):
    edit(old, **{name: value})
    before = content(old)
    for command in ("evaluate", "record"):
        assert main([command, str(old)]) == 4
        assert_refused(capsys, f"{name}={value!r} in {old / 'config.yaml'} is gone (")
    assert resume(old) == 4
    assert_refused(capsys, f"{name}={value!r} in {old / 'config.yaml'} is gone (")
    assert content(old) == before


def assert_refused(capsys, message):
    out, error = capsys.readouterr()
    assert message in error
    assert error.startswith("acktr: ")
    assert (out, error.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("natural.damping=0.3", "natural.damping is 0.3 and was 0.1"),
        ("critic.damping=0.1", "critic.damping is 0.1 and was 0.2"),
        (
            "natural.kfac_kwargs.curvature.fisher=monte-carlo",
            "natural.kfac_kwargs is {'curvature': {'fisher': 'monte-carlo'}} and",
        ),
        ("normalize.norm_obs=true", "normalize.norm_obs is True and was False"),
        ("n_steps=8", "n_steps is 8 and was 16"),
        ("critic.kind=adam", "critic.kind is 'adam' and was 'natural'; critic.learning_rate is 0.001"),
        ("damping=0.3", "Unknown setting 'damping' in --set: it is now natural.damping."),
        ("critic_norm=euclidean", "'critic_norm' in --set: it is now critic.kind, natural or adam."),
    ],
)
def test_other_settings_are_named_with_dots(old, capsys, override, message):
    before = content(old)
    assert resume(old, override) == 2
    assert_refused(capsys, message)
    assert content(old) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damping": 0.3}, "natural.damping is 0.3 and was 0.1"),
        ({"critic_damping": 0.4}, "critic.damping is 0.4 and was 0.2"),
        ({"momentum": 0.5}, "natural.kfac_kwargs is {'momentum': 0.5} and was {}"),
    ],
)
def test_a_checkpoint_of_other_settings_than_the_file_has(old, capsys, changes, message):
    edit(old, **changes)
    assert resume(old) == 4
    assert_refused(capsys, message)


# What 0.1.0 had, and what that is now --------------------------------------------------------

FIRST_ORDER = {"critic_norm": "euclidean", "critic_damping": 0.2, "critic_trust_region": None}


@pytest.mark.parametrize(
    ("flat", "natural", "critic"),
    [
        ({"damping": 0.3, "precision": "bf16"}, {"damping": 0.3, "precision": "bf16"}, {}),
        ({"corrected_learning_rate": "lin_10"}, {"corrected_learning_rate": "lin_10"}, {}),
        ({"vf_coef": 0.25, "critic_std": "adaptive"}, {}, {"vf_coef": 0.25, "std": "adaptive"}),
        ({"critic_learning_rate": None}, {}, {"learning_rate": 0.3}),
        (
            {"critic_norm": "gauss-newton", "n_critic_updates": 2},
            {},
            {"kind": "natural", "n_updates": 2},
        ),
        (
            {**FIRST_ORDER, "critic_learning_rate": None, "critic_batch_size": 8},
            {},
            {"kind": "adam", "learning_rate": 0.001, "batch_size": 8},
        ),
        ({**FIRST_ORDER, "critic_learning_rate": "lin_0.1"}, {}, {"learning_rate": "lin_0.1"}),
        # Momentum was the actor's alone, and weight decay that of both.
        ({"momentum": 0.9}, {"kfac_kwargs": {"momentum": 0.9}}, {"kfac_kwargs": {"momentum": 0.0}}),
        ({"weight_decay": 0.1}, {"kfac_kwargs": {"weight_decay": 0.1}}, {"kfac_kwargs": {}}),
        ({"momentum": 0.0, "weight_decay": 0.0}, {"kfac_kwargs": {}}, {"kfac_kwargs": {}}),
        (
            {"kfac_kwargs": {"inverse": "eigen", "length_floor": 0.0}, "critic_kfac_kwargs": None},
            {"kfac_kwargs": {"curvature": {"inverse": "eigen"}}},
            {"kfac_kwargs": {}},
        ),
        (
            {"cg_iterations": 3, "critic_kfac_kwargs": {"cg_iterations": 2, "stat_decay": 0.9}},
            {"cg_iterations": 3},
            {"cg_iterations": 2, "kfac_kwargs": {"curvature": {"stat_decay": 0.9}}},
        ),
    ],
)
def test_flat_settings_become_groups(old, flat, natural, critic):
    edit(old, **flat)
    settings = Run(old).read_configuration()
    configuration = validate(settings)
    for group, expected in ((configuration.natural, natural), (configuration.critic, critic)):
        assert {name: getattr(group, name) for name in expected} == expected
    assert resolve_resumed("Pendulum-v1", settings) == configuration


def test_settings_of_now_stay_as_they_are():
    settings = {"env_id": "x", "natural": {"damping": 0.3}, "critic": {"kind": "adam"}, "n_steps": 3}
    assert current_settings(settings, "here") == (settings, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"kfac_kwargs": 3},
        {"critic_kfac_kwargs": ["momentum"]},
        {"critic_norm": ["euclidean"]},
        {"damping": "high"},
        {"natural": 3, "damping": 0.1},
        {"critic": "adam"},
    ],
)
def test_settings_that_are_none_are_refused(old, changes):
    edit(old, **changes)
    with pytest.raises(CheckpointError, match=r"config\.yaml cannot be used: ") as said:
        evaluate(Run(old), 1)
    assert "\n" not in str(said.value)
