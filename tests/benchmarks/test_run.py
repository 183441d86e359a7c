"""The runner of suites: what is chosen, what is refused, and that every suite can run."""

import pytest

from acktr.compare import runner
from acktr.compare.trial import complete_settings, settings_hash
from acktr.errors import ConfigurationError
from acktr.presets import resolve
from benchmarks import run, suites, tasks
from benchmarks.suites import Suite


def _installed(env_id):
    try:
        tasks.check_installed(env_id)
    except ConfigurationError:  # dm_control is for Python 3.12 and older
        return False
    return True


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_has_settings_that_are_accepted(name):
    trials = suites.load(name).trials()
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in {(trial.env_id, trial.label): trial for trial in trials}.values():
        if _installed(trial.env_id):
            complete_settings(trial)


def test_one_preset_for_all_of_mujoco():
    trials = suites.load("mujoco").trials()
    assert len(trials) == 9 * 5 * 5
    hashes = {settings_hash(complete_settings(trial)) for trial in trials if trial.algo == "acktr"}
    assert len(hashes) == 1


def test_the_general_suite_gives_all_the_same_environments():
    suite = suites.load("general")
    assert (len(suite.held_out), len(suite.envs)) == (12, 23)
    for trial in suite.trials():
        if trial.label == "acktr preset" or not _installed(trial.env_id):
            continue
        settings = complete_settings(trial)
        assert settings["n_envs"] == (9 if "spread" in trial.env_id else 8)
        normalize = settings["normalize"]
        assert (normalize["norm_obs"] if trial.algo == "acktr" else normalize) == "auto"
        if "minatar" in trial.env_id:
            extractor = settings["policy_kwargs"]["features_extractor_class"]
            assert extractor == "benchmarks.tasks:MinAtarCNN"


def test_on_the_other_tasks_of_general_acktr_train_takes_the_defaults():
    suite = suites.load("general")
    own = suite.algorithms["acktr preset"].envs
    for env_id in filter(_installed, suite.envs):
        chosen, _ = resolve(env_id, allow_import=True)
        defaults, _ = resolve(env_id, preset="defaults", allow_import=True)
        same = chosen.model_copy(update={"n_timesteps": defaults.n_timesteps}) == defaults
        assert same == (env_id not in own), env_id


def test_held_out_tasks_are_tasks():
    with pytest.raises(ValueError, match="held_out names Ant-v5, which is not among envs"):
        Suite(
            title="One task",
            about="",
            steps=1000,
            seeds=[0],
            envs=["Hopper-v5"],
            held_out=["Ant-v5"],
            algorithms={"acktr": {}},
        )


def test_first_seeds_come_first():
    seeds = [trial.seed for trial in suites.load("mujoco").trials()]
    assert seeds == sorted(seeds)


def test_tuning_has_seeds_of_its_own():
    assert min(trial.seed for trial in suites.load("ablations").trials()) >= 100


def test_steps_of_each_task(tmp_path, monkeypatch):
    steps = {(trial.env_id, trial.n_timesteps) for trial in suites.load("speed_options").trials()}
    assert steps == {("HalfCheetah-v5", 1_000_000), ("CartPole-v1", 100_000)}
    text = (suites.ROOT / "speed_options.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(text.replace(", CartPole-v1: 100000", ""))
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"steps does not name CartPole-v1, which all off learns"
    ):
        suites.load("odd")


def test_a_task_may_have_settings_of_its_own():
    suite = Suite(
        title="Two tasks",
        about="",
        steps=1000,
        seeds=[0],
        envs=["Hopper-v5", "CartPole-v1"],
        algorithms={
            "acktr": {
                "set": {"gamma": 0.9, "n_steps": 8},
                "set_on": {"Hopper-v5": {"gamma": 0.99}},
            }
        },
    )
    settings = {trial.env_id: trial.settings for trial in suite.trials()}
    assert settings["Hopper-v5"] == {"gamma": 0.99, "n_steps": 8}
    assert settings["CartPole-v1"] == {"gamma": 0.9, "n_steps": 8}


def test_settings_of_a_suite_are_those_that_acktr_begins_with():
    suite = Suite(
        title="Common settings",
        about="",
        steps=1000,
        seeds=[0],
        envs=["Hopper-v5"],
        set={"gamma": 0.9, "n_steps": 8},
        algorithms={"acktr": {}, "long": {"algo": "acktr", "set": {"n_steps": 16}}, "ppo": {}},
    )
    settings = {trial.label: trial.settings for trial in suite.trials()}
    assert settings == {
        "acktr": {"gamma": 0.9, "n_steps": 8}, "long": {"gamma": 0.9, "n_steps": 16}, "ppo": {},
    }  # fmt: skip


def test_settings_of_a_task_that_is_not_learned_are_refused():
    with pytest.raises(ValueError, match="set_on names Ant-v5, which acktr does not learn"):
        Suite(
            title="One task",
            about="",
            steps=1000,
            seeds=[0],
            envs=["Hopper-v5"],
            algorithms={"acktr": {"set_on": {"Ant-v5": {"gamma": 0.99}}}},
        )


def test_only():
    trials = suites.load("mujoco").trials()
    chosen = run.choose(trials, ["algo=trpo,ppo", "seed=1", "env=Hopper-v5"])
    assert [(trial.label, trial.env_id, trial.seed) for trial in chosen] == [
        ("trpo", "Hopper-v5", 1), ("ppo", "Hopper-v5", 1), ("ppo defaults", "Hopper-v5", 1)
    ]  # fmt: skip
    for text, message in (
        ("algo", "is not of the form KEY=VALUE"),
        ("steps=3", "KEY one of env, label, algo, seed"),
        ("algo=sac", "No run of the suite has algo=sac: choose from a2c, acktr, ppo, trpo"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            run.choose(trials, [text])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mujocco"], "There is no suite 'mujocco': choose from ablations"),
        (["mujoco", "--only", "seed=99"], "seed=99"),
        (["mujoco", "--jobs", "0"], "--jobs is 0"),
        (["mujoco", "--out", "pyproject.toml"], "pyproject.toml cannot be written"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert run.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_list_and_failure(tmp_path, capsys, monkeypatch):
    arguments = ["mujoco", "--only", "env=Hopper-v5", "seed=0", "algo=a2c", "--out", str(tmp_path)]
    assert run.main([*arguments, "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "to do     Hopper-v5                  a2c                      seed 0", "1 to do"
    ]  # fmt: skip
    monkeypatch.setattr(runner, "_PROGRAM", ("false",))
    assert run.main(arguments) == 1
    assert "failed: a2c on Hopper-v5, seed 0: it ended with code 1" in capsys.readouterr().err


def test_a_suite_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    (tmp_path / "odd.yaml").write_text("steps: many\n")
    with pytest.raises(ConfigurationError, match=r"odd\.yaml is not a suite"):
        suites.load("odd")
