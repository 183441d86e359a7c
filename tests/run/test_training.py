"""Runs that are stopped and resumed: bit for bit the run that was not, in parameters and in tables."""

import json
import os
from importlib import metadata

import pytest
import torch

from acktr.errors import (
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigurationError,
    DamagedCheckpointError,
    DivergenceError,
)
from acktr.files.checkpoints import CheckpointStore
from acktr.presets import resolve
from acktr.run.directory import Run
from acktr.run.experiment import Experiment
from tests.helpers.runs import SMALL, TOY, new, rows, train

pytestmark = pytest.mark.usefixtures("no_pictures", "known_versions")


def assert_same_run(first, second):
    (a, one), (b, other) = first, second
    for name, tensor in a.policy.state_dict().items():
        assert torch.equal(tensor, b.policy.state_dict()[name]), name
    for name in ("progress.csv", "episodes.csv", "evaluations.csv"):
        for row, again in zip(rows(one / name), rows(other / name), strict=True):
            assert row == again
    result, again = (json.loads((path / "result.json").read_text()) for path in (one, other))
    assert {**result, "seconds": 0} == {**again, "seconds": 0}


GYM = "backend=gymnasium"
BACKGROUND = "natural.kfac_kwargs.periods={inverse_refresh: background, inverse: 3}"
STAGGERED = "natural.kfac_kwargs.periods={inverse_refresh: staggered, inverse: 3}"
CHEETAH = ("HalfCheetah-v5", "eval_interval=0", "n_final_eval_episodes=0")
# Episodes that end by time within the first rollout, so that a resumed run must know of them.
ENDING = ("gamma=auto_0.9_0.99", "env_kwargs.max_episode_steps=4")
CASES = {
    "cartpole": ("CartPole-v1", GYM, "natural.kfac_kwargs.momentum=0.9", "target_kl=lin_0.02"),
    "background": ("CartPole-v1", BACKGROUND, "critic.n_updates=3", "normalize=true"),
    "shared": ("CartPole-v1", "policy_kwargs.share_features_extractor=true", "critic.std=adaptive"),
    "normalised values": ("CartPole-v1", "critic.normalize_targets=true", "critic.std=adaptive"),
    "sub-sampling": ("CartPole-v1", "natural.sub_sampling_factor=2"),
    "cheetah": (
        *CHEETAH,
        GYM,
        BACKGROUND,
        "natural.kfac_kwargs.momentum=0.9",
        "target_kl=lin_0.02",
        *ENDING,
    ),
    "cheetah, envpool": (*CHEETAH, "backend=envpool"),
    "masks": ("tests.helpers.masked_envs:StrictDiscrete-v0", GYM),
}
MORE_CASES = {
    "staggered": (
        "CartPole-v1",
        STAGGERED,
        "natural.kl_feedback=false",
        "natural.kfac_kwargs.weight_decay=0.01",
    ),
    "adam": (
        "Pendulum-v1",
        "critic.kind=adam",
        "critic.learning_rate=lin_0.01",
        "critic.n_updates=3",
        "critic.batch_size=9",
    ),
    "measured eigenvalues": (
        "Acrobot-v1",
        "natural.kfac_kwargs={curvature: {approximation: ekfac}, periods: {inverse: 2}}",
    ),
    "exact scaling": (
        "CartPole-v1",
        "natural.kfac_kwargs.step_rule.exact_scaling=true",
        "natural.kfac_kwargs.momentum=0.9",
    ),
    "adaptive damping": ("CartPole-v1", "natural.kfac_kwargs.step_rule.adapt_damping=true"),
    "conjugate gradients": (
        "Acrobot-v1",
        "natural.cg_iterations=2",
        "natural.kfac_kwargs.curvature.inverse=eigen",
    ),
    "workers": ("CartPole-v1", "backend=subproc"),
    "masks, workers": ("tests.helpers.masked_envs:StrictMultiBinary-v0", "backend=subproc"),
    "masks of several parts": ("tests.helpers.masked_envs:StrictMultiDiscrete-v0", "ent_coef=0.01"),
    "cheetah, plain": (*CHEETAH, GYM, "natural.kfac_kwargs.momentum=0.5"),
    "cheetah, staggered": (*CHEETAH, GYM, STAGGERED),
    "cheetah, bf16": (*CHEETAH, GYM, "natural.precision=bf16", "critic.normalize_targets=true"),
    "adam, normalised values": (
        "Pendulum-v1",
        "critic.kind=adam",
        "critic.normalize_targets=true",
    ),
    "cheetah, evaluated": ("HalfCheetah-v5", GYM),
    "drawn": (
        "tests.helpers.toy_envs:Drawn-v0",
        "pixels=true",
        "n_envs=2",
        "policy_kwargs.features_extractor_class=NatureCNN",
        "policy_kwargs.features_extractor_kwargs={features_dim: 8}",
    ),
    "pixels": (
        "tests.helpers.toy_envs:ToyImage-v0",
        "policy_kwargs.features_extractor_kwargs.features_dim=8",
    ),
    "standardised images": (
        "tests.helpers.toy_envs:ToyImage-v0",
        "policy_kwargs.features_extractor_kwargs={features_dim: 8, standardize_images: true}",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, case):
    env_id, *settings = case
    if env_id.startswith("HalfCheetah"):
        pytest.importorskip("mujoco")
    if "backend=envpool" in settings:
        pytest.importorskip("envpool")
    whole, first = new(tmp_path / "whole"), new(tmp_path / "cut")
    uninterrupted, _ = train(whole, env_id, *settings)
    train(first, env_id, *settings, stop_at=7)
    resumed, told = train(first, env_id, *settings, resume=True)
    assert told[-1].endswith("exactly, environments included.")
    assert_same_run((uninterrupted, whole), (resumed, first))


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_CASES.values(), ids=MORE_CASES)
def test_so_are_more_of_them(tmp_path, case):
    test_a_resumed_run_is_the_uninterrupted_one(tmp_path, case)


@pytest.mark.parametrize("env_id", ["CartPole-v1", TOY])
def test_a_run_that_dies_between_checkpoints(tmp_path, monkeypatch, env_id):
    """What it wrote after its last checkpoint is dropped, and made again."""
    whole, cut = new(tmp_path / "whole"), new(tmp_path / "cut")
    uninterrupted, _ = train(whole, env_id)
    monkeypatch.setattr("acktr.run.saver.Saver._on_step", lambda saver: saver.n_calls < 156 or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(cut, env_id)
    monkeypatch.undo()
    assert rows(cut / "progress.csv")
    assert env_id != TOY or rows(cut / "episodes.csv")[-1]["steps"] == "300"
    resumed, told = train(cut, env_id, resume=True)
    assert "Resumed at step 288" in told[-1]
    assert_same_run((uninterrupted, whole), (resumed, cut))


def test_a_stop_inside_an_evaluation(tmp_path):
    whole, cut = new(tmp_path / "whole"), new(tmp_path / "cut")
    uninterrupted, _ = train(whole, "CartPole-v1", "checkpoint_steps=null")
    configuration = resolve("CartPole-v1", overrides=[*SMALL, "checkpoint_steps=null"]).configuration
    with Experiment(configuration) as experiment:
        step, stopped = experiment.eval_env.step_async, []
        experiment.eval_env.step_async = lambda actions: (stopped.append(1), step(actions))
        experiment.train(Run(cut), should_stop=lambda: len(stopped) > 5)
    (path,) = CheckpointStore(cut / "checkpoints").paths()
    assert path.name == "step-000000000128"  # before the rollout in which it fell
    resumed, _ = train(cut, "CartPole-v1", "checkpoint_steps=null", resume=True)
    assert_same_run((uninterrupted, whole), (resumed, cut))


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    path = new(tmp_path / "run")
    train(path, "CartPole-v1", "target_kl=0.01")
    model, _ = train(path, "CartPole-v1", "target_kl=0.01", "n_timesteps=640", resume=True)
    assert model.num_timesteps == 640
    longer = new(tmp_path / "longer")
    other, _ = train(longer, "CartPole-v1", "target_kl=0.01", "n_timesteps=640")
    assert_same_run((other, longer), (model, path))
    steps = [row["steps"] for row in rows(path / "evaluations.csv")]
    assert steps == ["160", "320", "480", "640", "640"]


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path):
    whole, cut = new(tmp_path / "whole"), new(tmp_path / "cut")
    uninterrupted, _ = train(whole, "CartPole-v1")
    train(cut, "CartPole-v1", stop_at=7)
    *_, newest = CheckpointStore(cut / "checkpoints").paths()
    (newest / "policy.safetensors").write_bytes(b"")
    resumed, told = train(cut, "CartPole-v1", resume=True)
    assert told[0].startswith(f"Skipped: policy.safetensors of {newest} has 0 bytes")
    assert "Resumed at step 192" in told[1]
    assert_same_run((uninterrupted, whole), (resumed, cut))
    assert (cut / "checkpoints" / f"unusable-{newest.name}").is_dir()


def test_without_a_valid_checkpoint_nothing_begins(tmp_path):
    path = new(tmp_path)
    train(path, TOY)
    for checkpoint in CheckpointStore(path / "checkpoints").paths():
        (checkpoint / "manifest.json").unlink()
    before = (path / "episodes.csv").read_bytes()
    with pytest.raises(DamagedCheckpointError, match="None of the 3 checkpoints"):
        train(path, TOY, resume=True)
    assert (path / "episodes.csv").read_bytes() == before


def test_another_architecture_is_refused_before_anything_changes(tmp_path):
    path = new(tmp_path)
    train(path, TOY)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointMismatchError, match=r"policy_net\.0\.weight is \(8, 3\) in the file"):
        train(path, TOY, "policy_kwargs.net_arch=[9]", resume=True)
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    before.pop(path / "run.lock")
    after.pop(path / "run.lock")
    assert before == after


def test_environments_that_cannot_be_captured_begin_anew(tmp_path):
    path = new(tmp_path)
    settings = ("env_kwargs={keeps: true}", "normalize=true")
    train(path, "tests.helpers.toy_envs:Opaque-v0", *settings, stop_at=4)
    model, told = train(path, "tests.helpers.toy_envs:Opaque-v0", *settings, resume=True)
    assert "same learner state, but not bit for bit: the environments begin anew" in told[-1]
    assert "Opaque.engine is a builtins.object" in told[-1]
    assert model.num_timesteps == 480
    assert model.get_vec_normalize_env().obs_rms.count > 400  # statistics are kept


def test_other_versions_are_named(tmp_path, monkeypatch):
    path = new(tmp_path)
    train(path, TOY, stop_at=4)
    monkeypatch.setattr("acktr.run.training.versions", lambda: {"torch": "9.9"})
    _, told = train(path, TOY, resume=True)
    # What is installed: a CUDA build says 2.13.0 there, and 2.13.0+cu130 of itself.
    assert f"torch was {metadata.version('torch')} and is 9.9" in told[-1]


@pytest.mark.parametrize("reaction", ["stop", "continue"])
def test_a_full_disk(tmp_path, monkeypatch, reaction):
    path = new(tmp_path)
    save, calls = CheckpointStore.save, []

    def full(self, steps, files):
        calls.append(steps)
        if len(calls) == 2:
            raise CheckpointWriteError("No room.")
        return save(self, steps, files)

    monkeypatch.setattr(CheckpointStore, "save", full)
    settings = ("keep_last=9", f"on_checkpoint_error={reaction}")
    if reaction == "stop":
        with pytest.raises(CheckpointWriteError, match="No room"):
            train(path, TOY, *settings)
        kept = [96]
    else:
        with pytest.warns(UserWarning, match=r"No room\. Training goes on\."):
            train(path, TOY, *settings)
        kept = [step for step in calls if step != calls[1]]
        assert calls[1] < calls[2]
    names = [p.name for p in CheckpointStore(path / "checkpoints").paths()]
    assert names == [f"step-{steps:012d}" for steps in kept]
    monkeypatch.undo()
    train(path, TOY, resume=True)


def test_divergence_keeps_the_last_checkpoint(tmp_path):
    path = new(tmp_path)
    with pytest.raises(DivergenceError):
        train(path, "tests.helpers.toy_envs:Broken-v0", "checkpoint_steps=32", "eval_interval=0")
    checkpoint, skipped = CheckpointStore(path / "checkpoints").newest()
    assert (checkpoint.steps, skipped) == (32, [])


def test_one_seed_twice_with_background_inverses(tmp_path):
    first, second = (
        train(new(tmp_path / str(i)), "CartPole-v1", BACKGROUND)[0].policy.state_dict() for i in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_never_share_a_directory(tmp_path):
    run = Run.create("x", tmp_path)
    with (
        run.lock(),
        pytest.raises(ConfigurationError, match=rf"in use: process {os.getpid()} on .*--out"),
    ):
        train(tmp_path, TOY)
    train(tmp_path, TOY)
    with pytest.raises(ConfigurationError, match="already holds a run"):
        train(tmp_path, TOY)
    with run.lock(), pytest.raises(ConfigurationError, match="in use"):
        train(tmp_path, TOY, resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    path = new(tmp_path)
    train(path, TOY, stop_at=0)
    assert not (path / "checkpoints").exists()
    model, told = train(path, TOY, resume=True)
    assert told == [f"{path} has no checkpoint yet: training begins anew."]
    assert model.num_timesteps == 480


def test_another_number_of_processes_goes_on_with_the_same_learner(tmp_path, monkeypatch):
    path = new(tmp_path)
    train(path, TOY, stop_at=4)
    newest = CheckpointStore.newest

    def two(self):
        checkpoint, skipped = newest(self)
        checkpoint.components["rank-1"] = {}
        return checkpoint, skipped

    monkeypatch.setattr(CheckpointStore, "newest", two)
    model, told = train(path, TOY, resume=True)
    assert "not bit for bit: it was made by 2 processes and this is 1" in told[0]
    assert model.num_timesteps == 480
