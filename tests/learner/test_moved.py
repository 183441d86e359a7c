"""Settings that have moved or are gone: refused by name, and understood in files of before."""

import copy
import json
import pickle
import shutil

import pytest
import yaml

from acktr import ACKTR, Natural, NaturalCritic
from acktr.cli import main
from acktr.errors import CheckpointError, ConfigurationError
from acktr.files.allowed import earlier_modules
from acktr.files.codec import decode
from acktr.kfac import Curvature
from acktr.learner.migrations import current_data
from acktr.learner.moved import GONE, MOVED, current_settings, new_key
from acktr.networks.policies import CnnPolicy
from acktr.presets import resolve
from acktr.presets.loader import resolve_resumed
from acktr.run.directory import Run
from acktr.run.play import evaluate
from tests.golden.make import HERE, OBSERVATIONS, build
from tests.helpers.saved_models import assert_same_state, forge, rebuilt
from tests.helpers.small_envs import small_env

PLACES = {
    "damping=0.2": r"now natural\.damping",
    "kfac_kwargs={}": r"now natural\.kfac_kwargs",
    "momentum=0.9": r"now natural\.kfac_kwargs\.momentum",
    "weight_decay=0.01": r"now natural\.kfac_kwargs\.weight_decay",
    "critic_damping=0.2": r"now critic\.damping",
    "critic_norm=euclidean": r"now critic\.kind, natural or adam",
    "n_critic_updates=3": r"now critic\.n_updates",
    "overlap=true": "overlap is gone, it changed nothing that was learned",
    "overlap=false": "overlap is gone, it changed nothing that was learned",
    "n_actor_updates=2": "n_actor_updates is gone, no task learned more",
}


@pytest.mark.parametrize("override", PLACES)
def test_they_are_refused_by_name(override, tmp_path, capsys):
    name, value = override.split("=")
    with pytest.raises(ConfigurationError, match=rf"'{name}' in --set: .*{PLACES[override]}"):
        resolve("CartPole-v1", overrides=[override])
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"default: {{{name}: {value}}}\n")
    out = tmp_path / "run"
    for given in (["--set", override], ["--preset", str(preset)]):
        assert main(["train", "CartPole-v1", "--out", str(out), *given]) == 2
        assert name in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", [*MOVED, "n_actor_updates", "overlap"])
def test_the_constructor_says_where_they_are(name):
    with pytest.raises(ConfigurationError, match=rf"^ACKTR has no {name}: {name} is ") as caught:
        ACKTR("MlpPolicy", small_env(), **{name: 2})
    says = str(caught.value)
    assert ("is gone, " in says) if name in GONE else (f"{MOVED[name][0]}=" in says)


def test_a_part_of_one_that_has_moved_has_moved_too():
    assert new_key("kfac_kwargs.stat_decay") == "natural.kfac_kwargs.stat_decay"
    assert new_key("critic_kfac_kwargs.inverse") == "critic.kfac_kwargs.inverse"
    assert new_key("policy_kwargs.net_arch") is None


# Of 0.1.0, and a value of each that is not what it is without it, or makes no difference.
DEFAULTS = {"overlap": False, "n_actor_updates": 1, "momentum": 0.0, "weight_decay": 0.0}


def test_settings_of_a_run_are_in_the_words_of_now():
    assert current_settings({"env_id": "x", **DEFAULTS}, "it") == ({"env_id": "x"}, [])
    of_before = {
        "overlap": True,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "kfac_kwargs": {"inverse": "eigen", "length_floor": 0.0},
        "critic_kfac_kwargs": None,
        "critic_norm": "gauss-newton",
        "critic_learning_rate": None,
        "n_critic_updates": 3,
    }
    before = copy.deepcopy(of_before)
    settings, told = current_settings(of_before, "it")
    assert of_before == before
    assert settings == {
        "natural": {
            "kfac_kwargs": {
                "curvature": {"inverse": "eigen"},
                "momentum": 0.9,
                "weight_decay": 0.01,
            }
        },
        "critic": {"kind": "natural", "n_updates": 3, "kfac_kwargs": {"momentum": 0.0}},
    }
    assert told == ["overlap in it is gone and was left out: it changed nothing that was learned."]
    assert current_settings(settings, "it") == (settings, [])


def test_a_first_order_critic_of_a_run_keeps_what_it_had():
    of_before = {"critic_norm": "euclidean", "critic_damping": 0.2, "vf_coef": 0.5, "critic_std": 2.0}
    settings, _ = current_settings({**of_before, "critic_learning_rate": "lin_0.1"}, "it")
    assert settings == {"critic": {"kind": "adam", "learning_rate": "lin_0.1", "std": 2.0}}


@pytest.mark.parametrize("gone", [{"n_actor_updates": 2}, {"use_sde": True}], ids=str)
def test_what_made_a_difference_is_refused_by_name(gone):
    name, value = next(iter(gone.items()))
    with pytest.raises(
        ConfigurationError, match=rf"^{name}={value} in it is gone .*go on with the acktr"
    ):
        current_settings(gone, "it")


def test_old_settings_are_resumed():
    overrides = ["natural.kfac_kwargs.momentum=0.9", "backend=gymnasium"]
    settings = resolve("CartPole-v1", overrides=overrides).configuration.model_dump()
    natural, critic = settings.pop("natural"), settings.pop("critic")
    flat = {old: {"natural": natural, "critic": critic}[g].get(k) for old, (g, k) in MOVED.items()}
    flat |= {"critic_norm": "gauss-newton", "kfac_kwargs": None, "momentum": 0.9, "weight_decay": 0.0}
    of_before, told = current_settings(
        {**settings, **flat, **DEFAULTS, "overlap": True, "momentum": 0.9}, "it"
    )
    now = resolve_resumed("CartPole-v1", of_before).algorithm_arguments()
    assert len(told) == 1
    assert now["natural"].kfac_kwargs == {"momentum": 0.9}
    assert now["critic"].kfac_kwargs == {"momentum": 0.0}


@pytest.mark.usefixtures("no_pictures")
def test_a_run_of_before_is_played_and_resumed(tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(HERE / "run-v1", path)
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "overlap": True}))
    assert len(evaluate(Run(path), 1).returns) == 1
    given = ["--out", str(path), "--resume", "--no-progress", "--steps", "4160"]
    assert main(["train", settings["env_id"], *given, "--set", "n_final_eval_episodes=0"]) == 0
    said = capsys.readouterr().err
    assert f"acktr: overlap in {path}/config.yaml is gone and was left out" in said
    assert "Resumed at step 4,096" in said
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "n_actor_updates": 2}))
    with pytest.raises(
        CheckpointError, match=r"config\.yaml cannot be used: n_actor_updates=2.*gone"
    ) as no:
        evaluate(Run(path), 1)
    assert "\n" not in str(no.value)
    assert main(["train", settings["env_id"], *given]) == CheckpointError.exit_code
    assert "n_actor_updates=2" in capsys.readouterr().err


# Model files --------------------------------------------------------------------------------


def old_model(path, trust, **values):
    """A golden model of 0.1.0, pickled or not, with other values of its attributes."""
    name = "data" if trust else "data.json"

    def change(members):
        members[name] = json.dumps({**json.loads(members[name]), **values}).encode()
        if not trust:
            files = {k: v for k, v in members.items() if k.endswith((".json", ".safetensors"))}
            members["manifest.json"] = forge(files, members["manifest.json"])

    golden = HERE / ("model-pickled.zip" if trust else "model-v1.zip")
    path.write_bytes(rebuilt(golden.read_bytes(), change).read())
    return path


@pytest.mark.parametrize("trust", [False, True])
def test_model_files_of_before(trust, tmp_path):
    """In both formats; momentum was the actor's alone, and what was learned is what was learned."""
    env = build().env
    path = old_model(tmp_path / "one.zip", trust, n_actor_updates=1, weight_decay=0.01)
    one = ACKTR.load(path, env=env, device="cpu", trust=trust)
    assert not {*MOVED, *GONE} & (vars(one).keys() - one.house)
    assert one.natural.kfac_kwargs == {"momentum": 0.5, "weight_decay": 0.01}
    assert one.critic.kfac_kwargs == {"momentum": 0.0}
    path = old_model(tmp_path / "three.zip", trust, n_actor_updates=3, weight_decay=0.01)
    with pytest.warns(
        UserWarning, match=r"three\.zip was trained with n_actor_updates=3, which is gone"
    ):
        three = ACKTR.load(path, env=env, device="cpu", trust=trust)
    assert_same_state(three, one)
    assert not hasattr(three, "n_actor_updates")
    three.learn(16, reset_num_timesteps=False).save(tmp_path / "again")
    again = ACKTR.load(tmp_path / "again", env=env, device="cpu")  # which warns no more
    assert_same_state(again, three)
    assert again.predict(OBSERVATIONS, deterministic=True)[0].tolist()


def test_settings_that_no_model_has_are_refused_in_one_sentence(tmp_path):
    for trust in (False, True):
        path = old_model(tmp_path / "odd.zip", trust, damping=-1.0)
        with pytest.raises((CheckpointError, ConfigurationError), match=r"natural\.damping") as caught:
            ACKTR.load(path, device="cpu", trust=trust)
        assert "\n" not in str(caught.value)


# KFAC's arguments, which have groups now ---------------------------------------------------

FLAT = {"inverse": "ekfac", "stat_decay": 0.9, "momentum": 0.5}
IN_GROUPS = {"curvature": {"approximation": "ekfac", "stat_decay": 0.9}, "momentum": 0.5}


@pytest.mark.parametrize("kind", [Natural, NaturalCritic])
def test_flat_arguments_of_kfac_are_taken_with_a_warning(kind):
    with pytest.warns(FutureWarning, match=r"stat_decay is now curvature=Curvature\(stat_decay=\.\.\."):
        settings = kind(kfac_kwargs=FLAT)
    assert settings == kind(kfac_kwargs=IN_GROUPS)
    groups = {"curvature": Curvature(approximation="ekfac", stat_decay=0.9), "momentum": 0.5}
    assert settings == kind(kfac_kwargs=groups)


def test_flat_arguments_of_kfac_in_a_preset_are_taken_with_a_warning(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "default: {n_timesteps: 8, natural: {kfac_kwargs: {inverse: ekfac, stat_decay: 0.9}}}\n"
    )
    with pytest.warns(FutureWarning, match=r"natural\.kfac_kwargs: inverse is now curvature="):
        configuration, _ = resolve(
            "CartPole-v1",
            preset=str(tmp_path / "mine.yaml"),
            overrides=["natural.kfac_kwargs.momentum=0.5"],
        )
    assert configuration.natural.kfac_kwargs == IN_GROUPS


def test_flat_arguments_of_kfac_in_files_are_read_silently():
    flat = {"env_id": "x", "natural": {"kfac_kwargs": FLAT}, "critic": {"kind": "natural"}}
    settings, told = current_settings(flat, "it")
    assert (settings["natural"]["kfac_kwargs"], told) == (IN_GROUPS, [])
    saved = {"$": "settings", "name": "Natural", "values": {"kfac_kwargs": FLAT}}
    assert decode(saved, {}) == Natural(kfac_kwargs=IN_GROUPS)
    pickled = Natural()
    object.__setattr__(pickled, "kfac_kwargs", dict(FLAT))  # as unpickling does, without a check
    data = current_data({"natural": pickled, "parts": {"noise": {}}}, "it")
    assert data["natural"] == Natural(kfac_kwargs=IN_GROUPS)


@pytest.mark.parametrize("group", ["curvature", "periods", "step_rule"])
def test_a_group_that_is_no_mapping_is_refused(group):
    with pytest.raises(ConfigurationError, match=rf"natural\.kfac_kwargs: {group} must be a mapping"):
        Natural(kfac_kwargs={group: 3})


def test_pickles_name_classes_where_they_were():
    of_before = b"cacktr.policies\nCnnPolicy\n."
    with earlier_modules():
        assert pickle.loads(of_before) is CnnPolicy
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(of_before)
