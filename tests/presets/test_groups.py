"""``natural`` and ``critic`` in YAML: groups of settings, where those of 0.1.0 are now."""

from dataclasses import fields

import pytest
import yaml

from acktr import AdamCritic, Natural, NaturalCritic
from acktr.cli import main
from acktr.errors import ConfigurationError
from acktr.learner.moved import GONE, MOVED
from acktr.presets import loader, resolve, resolve_resumed, validate
from acktr.schedules import Linear
from tests.helpers.runs import TOY


def groups(*overrides, preset="classic", env_id=TOY):
    """The settings that the learner is given."""
    arguments = resolve(env_id, preset=preset, overrides=overrides)[0].algorithm_arguments()
    return arguments["natural"], arguments["critic"]


def test_what_is_not_said_is_the_default():
    assert groups() == (Natural(), NaturalCritic(normalize_targets=True))
    assert groups("critic.kind=adam") == (Natural(), AdamCritic(normalize_targets=True))


def test_schedules_and_mappings_inside():
    natural, critic = groups(
        "natural.corrected_learning_rate=lin_10_2",
        "natural.kfac_kwargs.curvature.fisher=monte-carlo",
        "natural.kfac_kwargs.curvature.stat_decay=0.9",
        "critic.learning_rate=lin_0.5",
    )
    kfac_kwargs = {"curvature": {"fisher": "monte-carlo", "stat_decay": 0.9}}
    assert natural == Natural(corrected_learning_rate=Linear(10, 2), kfac_kwargs=kfac_kwargs)
    assert critic == NaturalCritic(learning_rate=Linear(0.5), normalize_targets=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ("critic.kind=adam", "critic.learning_rate=0.01"),
        ("critic.learning_rate=0.01", "critic.kind=adam"),  # in any order
        ("critic={kind: adam, learning_rate: 0.01, n_updates: 4}",),
    ],
)
def test_another_kind_of_critic_keeps_what_both_have(overrides):
    """Of the preset's ``{damping: 0.1, n_updates: 4}`` for MuJoCo."""
    _, critic = groups(*overrides, preset="mujoco")
    assert critic == AdamCritic(learning_rate=0.01, n_updates=4, normalize_targets=False)


def test_the_learning_rate_of_one_kind_is_not_that_of_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("default: {n_timesteps: 9, critic: {learning_rate: 0.7, batch_size: 8}}\n")
    _, critic = groups("critic.kind=adam", preset=str(path))
    assert critic == AdamCritic(batch_size=8, normalize_targets=True)


def test_a_section_changes_what_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "default: {n_timesteps: 9, natural: {damping: 0.5, kfac_kwargs: {momentum: 0.9}}}\n"
        f"{TOY}:\n  natural: {{kfac_kwargs: {{curvature: {{fisher: monte-carlo}}}}}}\n"
        "  critic: {kind: adam}\n"
    )
    natural, critic = groups("natural.cg_iterations=2", preset=str(path))
    kfac_kwargs = {"momentum": 0.9, "curvature": {"fisher": "monte-carlo"}}
    assert natural == Natural(damping=0.5, cg_iterations=2, kfac_kwargs=kfac_kwargs)
    assert isinstance(critic, AdamCritic)


@pytest.mark.parametrize("section", ["default", "atari", "pixels"])
def test_the_published_algorithm_is_a_preset(section):
    settings = loader._merge(*(loader._load_family("paper").get(n, {}) for n in ("default", section)))
    arguments = validate({**settings, "env_id": TOY, "preset": "paper"}).algorithm_arguments()
    natural, critic = arguments["natural"], arguments["critic"]
    assert not natural.kl_feedback
    assert natural.kfac_kwargs["curvature"]["fisher"] == "monte-carlo"
    assert (critic.normalize_targets, critic.n_updates) == (False, None if section == "atari" else 25)
    assert arguments["learning_rate"] == Linear(0.25)


@pytest.mark.parametrize("kind", ["natural", "adam"])
def test_a_written_configuration_is_read_as_it_was(kind):
    overrides = [
        f"critic.kind={kind}",
        "critic.learning_rate=late_1_0.5",
        "natural.kfac_kwargs.momentum=0.9",
    ]
    configuration, _ = resolve(TOY, preset="mujoco", overrides=overrides)
    saved = yaml.safe_load(yaml.safe_dump(configuration.model_dump(mode="json")))
    assert validate(saved) == configuration
    assert resolve_resumed(TOY, saved) == configuration


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("natural.dampin=1", "Unknown setting 'dampin' in natural: did you mean 'damping'?"),
        ("critic.n_update=1", "Unknown setting 'n_update' in critic: did you mean 'n_updates'?"),
        ("natural.momentum=1", "in natural: it is now natural.kfac_kwargs.momentum."),
        ("critic.n_critic_updates=1", "in critic: it is now critic.n_updates."),
        (
            "critic={kind: adam, damping: 1}",
            "critic.damping is no setting of the critic of kind adam: leave",
        ),
        ("critic.kind=euclidean", "critic.kind = 'euclidean' is not valid: it must be natural or adam."),
        ("critic.kind=[adam]", "critic.kind = ['adam'] is not valid: it must be natural or adam."),
        ("critic.kind.adam=1", "critic.kind = {'adam': 1} is not valid: it must be natural or adam."),
        ("critic=adam", "critic = 'adam' is not valid: it must be a mapping of settings."),
        ("natural=", "natural = None is not valid: it must be a mapping of settings."),
        ("natural.damping=-1", "natural.damping must be finite, 0 or more, got -1.0."),
        ("natural.damping=[1]", "it must be finite, 0 or more"),
        ("natural.precision=fp16", "natural.precision must be one of fp32, bf16, got 'fp16'."),
        ("critic.std=wide", "critic.std must be positive, or 'adaptive', got 'wide'."),
        ("critic.learning_rate=linear", "critic.learning_rate must be a number, a callable, 'lin_A_B'"),
        ("natural.corrected_learning_rate=lin_x", "natural.corrected_learning_rate must be a number"),
        ("natural.kfac_kwargs=3", "natural.kfac_kwargs = 3 is not valid"),
        ("natural.kfac_kwargs.damping=3", "natural.kfac_kwargs must not hold damping"),
        ("critic.kfac_kwargs.cg_iterations=3", "critic.kfac_kwargs must not hold cg_iterations"),
    ],
)
def test_what_is_wrong_in_a_group_is_named(override, message):
    with pytest.raises(ConfigurationError) as said:
        resolve(TOY, preset="classic", overrides=[override])
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_dotted_keys_reach_into_no_critic_that_is_none(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("default: {n_timesteps: 9, critic: adam}\n")
    for key in ("critic.kind=adam", "critic.std=2"):
        with pytest.raises(ConfigurationError, match=r"critic is 'adam', not a mapping"):
            resolve(TOY, preset=str(path), overrides=[key])


# What 0.1.0 had -----------------------------------------------------------------------------

NOW = {
    **{name: ".".join(place) for name, place in MOVED.items()},
    "critic_norm": "critic.kind, natural or adam",
}


@pytest.mark.parametrize("name", NOW)
def test_what_has_moved_is_refused_with_its_place(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "CartPole-v1", "--set", f"{name}=1"]) == 2
    said = f"acktr: Unknown setting {name!r} in --set: it is now {NOW[name]}.\n"
    assert capsys.readouterr() == ("", said)
    (tmp_path / "mine.yaml").write_text(f"default: {{n_timesteps: 8, {name}: 1}}\n")
    assert main(["train", "CartPole-v1", "--preset", "mine.yaml"]) == 2
    said = f"acktr: Unknown setting {name!r} in mine.yaml, section default: it is now {NOW[name]}.\n"
    assert capsys.readouterr() == ("", said)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_new_place_is_one():
    names = {
        "natural": {field.name for field in fields(Natural)},
        "critic": {"kind", *(field.name for field in fields(NaturalCritic))},
    }
    assert [key for group, key in MOVED.values() if key.split(".")[0] not in names[group]] == []


@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_is_refused_with_why(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "CartPole-v1", "--set", f"{name}=1"]) == 2
    assert (
        f"Unknown setting {name!r} in --set: {name} is gone, {GONE[name][1]}." in capsys.readouterr().err
    )
