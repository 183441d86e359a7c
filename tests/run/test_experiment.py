"""Whole experiments on tiny environments: what they leave, and what a saved run gives back."""

import base64
import json
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from acktr.errors import (
    CheckpointError,
    ConfigurationError,
    DamagedCheckpointError,
    DivergenceError,
)
from acktr.files.model_file import NORMALIZATION, read_component
from acktr.presets import Normalize, resolve
from acktr.run.build import choose_normalization
from acktr.run.callbacks import play
from acktr.run.directory import Run
from acktr.run.experiment import Experiment
from acktr.run.play import evaluate, load_player, record
from tests.helpers.runs import TOY
from tests.helpers.small_envs import IMAGE, MIXED, VECTOR

SMALL = (
    "n_timesteps=400",
    "n_envs=2",
    "n_steps=8",
    "eval_interval=200",
    "n_eval_episodes=2",
    "n_final_eval_episodes=3",
    "policy_kwargs.net_arch=[8]",
)


def configure(env_id=TOY, *overrides):
    return resolve(env_id, preset="classic", overrides=[*SMALL, *overrides]).configuration


def train(path, *overrides, env_id=TOY, **arguments):
    run = Run.create(env_id, path)
    with Experiment(configure(env_id, *overrides)) as experiment:
        result = experiment.train(run, **arguments)
    return run, result, experiment


def parameters(experiment):
    return torch.nn.utils.parameters_to_vector(experiment.model.policy.parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained"), "normalize=true")


def test_run_directory_is_complete(trained):
    run, result, _ = trained
    assert {
        "config.yaml",
        "versions.json",
        "progress.csv",
        "episodes.csv",
        "evaluations.csv",
        "evaluations.npz",
        "model.zip",
        "best_model.zip",
        "result.json",
        "learning_curve.png",
    } <= {path.name for path in run.path.iterdir()}
    assert not list(run.path.glob(".*")), "no temporary file is left"
    assert json.loads((run.path / "result.json").read_text())["steps"] == result.steps == 400
    # What "auto" stood for is written down.
    configuration = run.read_configuration()
    assert configuration["policy"] == "MlpPolicy"
    assert configuration["backend"] == "gymnasium"
    assert configuration["n_steps"] == 8


def test_score_is_that_of_the_episode_table(trained):
    run, result, _ = trained
    episodes = run.episodes()
    assert result.episodes == len(episodes["return"]) == 40
    assert result.last_100_return == pytest.approx(episodes["return"][-100:].mean())
    # Undiscounted and unnormalised, at the step that ended the episode.
    assert set(episodes["length"]) == {10}
    assert set(episodes["return"]) <= set(range(11))
    np.testing.assert_array_equal(episodes["steps"], np.repeat(np.arange(20, 401, 20), 2))


def test_evaluations_during_training_and_at_its_end(trained):
    run, result, _ = trained
    evaluations = run.evaluations()
    np.testing.assert_array_equal(evaluations["steps"], [200, 400, 400])
    np.testing.assert_array_equal(evaluations["episodes"], [2, 2, 3])
    assert result.evaluation["mean_return"] == evaluations["mean_return"][-1]
    progress = (run.path / "progress.csv").read_text().splitlines()
    assert "train/kl" in progress[0]


def test_evaluating_the_saved_run_plays_the_trained_policy(trained):
    run, _, experiment = trained
    first, again = (evaluate(run, episodes=4) for _ in range(2))
    assert first == again
    assert first.lengths == [10] * 4
    observations = torch.rand(32, 3)
    with torch.no_grad():
        expected = experiment.model.policy.get_distribution(observations).mode()
    model, env = load_player(run, False, n_envs=1)
    with torch.no_grad():
        actual = model.policy.get_distribution(observations).mode()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    training = experiment.model.get_vec_normalize_env()
    assert isinstance(env, VecNormalize)
    assert not env.training
    np.testing.assert_array_equal(env.obs_rms.mean, training.obs_rms.mean)


def test_one_seed_gives_one_result(tmp_path):
    first, again, other = (
        train(tmp_path / str(index), f"seed={seed}") for index, seed in enumerate((1, 1, 2))
    )
    torch.testing.assert_close(parameters(first[2]), parameters(again[2]), rtol=0, atol=0)
    assert not torch.equal(parameters(first[2]), parameters(other[2]))
    for name in ("steps", "return", "env"):
        np.testing.assert_array_equal(first[0].episodes()[name], again[0].episodes()[name])


def test_evaluations_leave_training_as_it_is(tmp_path):
    with_evaluations = train(tmp_path / "with")
    without = train(tmp_path / "without", "eval_interval=0", "n_final_eval_episodes=0")
    torch.testing.assert_close(parameters(with_evaluations[2]), parameters(without[2]), rtol=0, atol=0)
    assert without[1].evaluation is None
    with pytest.raises(CheckpointError, match=r"no best_model\.zip: no evaluation was made"):
        evaluate(without[0], best=True)


def test_stopping_leaves_a_usable_model(tmp_path):
    calls = iter(range(1000))
    run, result, _ = train(tmp_path, should_stop=lambda: next(calls) > 10)
    assert result.interrupted
    assert result.steps < 400
    assert result.evaluation is None
    assert len(evaluate(run, episodes=1).returns) == 1


def test_stopping_inside_an_evaluation(tmp_path):
    # The 100th step of the two environments, in the 13th rollout, is followed by the first evaluation.
    calls = iter(range(1000))
    run, result, _ = train(tmp_path, should_stop=lambda: next(calls) > 15)
    assert result.interrupted
    assert result.steps == 200
    assert len(run.evaluations()["steps"]) == 0
    assert run.model_path().is_file()


@pytest.mark.parametrize("where", ["reward", "observation", "terminal"])
def test_divergence_keeps_the_model_before_it(tmp_path, where):
    env_id = "tests.helpers.toy_envs:Broken-v0"
    run = Run.create(env_id, tmp_path)
    overrides = (f"env_kwargs.where={where}", "normalize=true", "eval_interval=0")
    with Experiment(configure(env_id, *overrides)) as experiment:
        with pytest.raises(DivergenceError, match=r"Environment 0 .* is in .*model\.zip"):
            experiment.train(run)
        assert torch.isfinite(parameters(experiment)).all()
    statistics = read_component(run.model_path(), NORMALIZATION)
    assert np.isfinite(statistics["observations"]["mean"]).all()
    assert np.isfinite([statistics["returns"][name] for name in ("mean", "var", "count")]).all()


def test_hostile_model_file_is_not_executed(tmp_path, trained):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    run, _, _ = trained
    hostile = Run.create(TOY, tmp_path)
    (tmp_path / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    payload = base64.b64encode(cloudpickle.dumps(Payload())).decode()
    data = json.dumps({"policy_class": {":type:": "Payload", ":serialized:": payload}})
    with (
        zipfile.ZipFile(run.model_path()) as good,
        zipfile.ZipFile(hostile.model_path(), "w") as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, data if name == "data.json" else good.read(name))
    with pytest.raises(DamagedCheckpointError, match=r"data\.json"):
        evaluate(hostile, episodes=1)


@pytest.mark.parametrize("damage", ["truncated", "text", "absent", "other shapes", "configuration"])
def test_damaged_run_is_refused(tmp_path, trained, damage):
    run, _, _ = trained
    damaged = Run.create(TOY, tmp_path)
    for path in run.path.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model = damaged.model_path()
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:1000])
    elif damage == "text":
        model.write_text("not a model")
    elif damage == "absent":
        model.unlink()
    else:
        text = (tmp_path / "config.yaml").read_text()
        old, new = ("- 8", "- 9") if damage == "other shapes" else ("n_steps", "n_step")
        assert old in text
        (tmp_path / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(CheckpointError):
        evaluate(damaged, episodes=1)


NONE = ("ModuleList", "GLU", "CrossEntropyLoss", "Module", "Linear")
WIDTHS = ("[0]", "[-1]", "['a']", "[8, ~]", "[1.5]", "[true]", "{pi: 8}", "{xx: [8]}", "5", "[[8]]")


@pytest.mark.parametrize(
    ("env_id", "overrides", "message"),
    [
        ("tests.helpers.toy_envs:ToyDict-v0", ["policy=MlpPolicy"], "use --set policy=MultiInputPolicy"),
        (TOY, ["policy=CnnPolicy"], "use --set policy=MlpPolicy"),
        (TOY, ["policy=MultiInputPolicy"], "use --set policy=MlpPolicy"),
        ("FrozenLake-v1", ["normalize=true"], "use --set normalize.norm_obs=false"),
        (TOY, ["n_steps=0"], "n_steps"),
        (TOY, ["natural.damping=-1"], "natural.damping"),
        (TOY, ["target_kl=-1"], "target_kl"),
        (TOY, ["policy_kwargs.optimizer_class=Adam"], "optimizer_class"),
        (TOY, ["policy_kwargs.net_arch=abc"], "net_arch in policy_kwargs must be a list of positive"),
        *((TOY, [f"policy_kwargs.activation_fn={name}"], "cannot be built for") for name in NONE),
        (TOY, ["device=tpu9"], "There is no device 'tpu9' here"),
    ],
)
def test_bad_configuration_gets_one_sentence(env_id, overrides, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        Experiment(configure(env_id, *overrides)).close()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("widths", WIDTHS)
def test_layers_have_units(widths):
    with pytest.raises(ConfigurationError, match="net_arch in policy_kwargs must"):
        Experiment(configure(TOY, f"policy_kwargs.net_arch={widths}")).close()


def test_policy_is_chosen_by_the_observations(tmp_path):
    run, _, _ = train(tmp_path, env_id="tests.helpers.toy_envs:ToyDict-v0")
    assert run.read_configuration()["policy"] == "MultiInputPolicy"
    assert len(evaluate(run, episodes=2).returns) == 2


@pytest.mark.parametrize(
    ("space", "settings", "norm_obs", "keys"),
    [
        (VECTOR, {}, True, None),
        (spaces.Box(0, 255, (128,), np.uint8), {}, True, None),
        (IMAGE, {}, False, None),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), {}, True, None),  # too small for convolutions
        (spaces.Discrete(3), {}, False, None),
        (MIXED, {}, True, ["vector"]),
        (spaces.Dict({"image": IMAGE, "count": spaces.Discrete(3)}), {}, False, []),
        (spaces.Dict({"a": VECTOR, "b": VECTOR}), {"norm_obs_keys": ["a"]}, True, ["a"]),
        (VECTOR, {"norm_obs": False}, False, None),
        (IMAGE, {"norm_obs": True}, True, None),
    ],
)
def test_what_is_normalised_by_itself(space, settings, norm_obs, keys):
    chosen = choose_normalization(Normalize(**{"norm_obs": "auto", **settings}), space)
    assert (chosen.norm_obs, chosen.norm_obs_keys, chosen.norm_reward) == (norm_obs, keys, True)


@pytest.mark.parametrize(
    ("env_id", "overrides", "policy"),
    [
        (TOY, [], "MlpPolicy"),
        ("tests.helpers.toy_envs:ToyDict-v0", [], "MultiInputPolicy"),
        ("FrozenLake-v1", [], "MlpPolicy"),
        ("tests.helpers.toy_envs:ToyBytes-v0", [], "MlpPolicy"),
        ("tests.helpers.toy_envs:ToyImage-v0", ["env_kwargs.side=9"], "MlpPolicy"),
        ("tests.helpers.toy_envs:ToyImage-v0", ["n_envs=2", "critic.n_updates=2"], "CnnPolicy"),
    ],
)
def test_what_belongs_to_no_family_learns_and_plays(tmp_path, env_id, overrides, policy):
    options = {"n_timesteps": 64, "n_steps": 8, "n_eval_episodes": 1, "n_final_eval_episodes": 1}
    run = Run.create(env_id, tmp_path)
    with Experiment(resolve(env_id, overrides=overrides, options=options).configuration) as experiment:
        experiment.train(run)
    assert run.read_configuration()["policy"] == policy
    assert read_component(run.model_path(), NORMALIZATION)["settings"]["norm_reward"]
    assert len(evaluate(run, episodes=1).returns) == 1


def test_an_evaluation_ends_where_episodes_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr("acktr.envs.lookup.MAX_EVALUATION_STEPS", 30)
    run, result, _ = train(tmp_path, env_id="tests.helpers.toy_envs:Endless-v0")
    assert result.evaluation["mean_length"] == 30
    assert (tmp_path / "episodes.csv").read_text().count("\n") == 1  # training has no limit
    assert evaluate(run, episodes=2).lengths == [30, 30]
    limited = configure("tests.helpers.toy_envs:Endless-v0", "env_kwargs.max_episode_steps=20")
    with Experiment(limited) as experiment:
        assert play(experiment.model, experiment.eval_env, 1).lengths == [20]


def test_evaluation_needs_an_episode(trained):
    with pytest.raises(ConfigurationError, match="episodes is 0"):
        evaluate(trained[0], episodes=0)


def test_recording(tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    run, _, _ = train(tmp_path / "run", "n_timesteps=32", env_id="CartPole-v1")
    path, evaluation = record(run, tmp_path / "films" / "a.mp4")
    assert path.stat().st_size > 1000
    assert len(evaluation.returns) == 1
    with pytest.raises(ConfigurationError, match=r"a\.gif is not an \.mp4 file"):
        record(run, tmp_path / "a.gif")


def test_recording_says_why_it_is_impossible(tmp_path, trained, monkeypatch):
    pytest.importorskip("moviepy")
    # The toy environment cannot draw itself.
    with pytest.raises(ConfigurationError, match="cannot be rendered here"):
        record(trained[0], tmp_path / "a.mp4")
    monkeypatch.setattr("acktr.envs.video.is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=r'pip install "acktr\[video\]"'):
        record(trained[0], tmp_path / "a.mp4")
