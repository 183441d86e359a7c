"""Files of every version of the format that is read: they give what they gave when they were made."""

import json
import shutil

import numpy as np
import pytest
import torch

from acktr import ACKTR, AdamCritic, Natural
from acktr.cli import main
from acktr.envs import make_vec_env
from acktr.envs.state import NotCapturable
from acktr.files.bundle import MIGRATIONS, VERSION
from acktr.files.checkpoints import CheckpointStore
from acktr.learner.critic import CriticUpdate, NaturalCriticUpdate
from acktr.presets.schema import complete
from acktr.run.directory import Run
from acktr.run.play import evaluate
from acktr.run.state import capture_learner, restore_learner, trees
from acktr.schedules import Horizon, Late, Linear, TraceDecay
from tests.golden.make import HERE, answers, build
from tests.helpers.models import same
from tests.helpers.saved_models import assert_same_state

VERSIONS = [*MIGRATIONS, VERSION]


def assert_answers(model, version):
    wanted = json.loads((HERE / f"answers-v{version}.json").read_text())
    found = answers(model)
    assert found.pop("values") == pytest.approx(wanted.pop("values"), rel=1e-5)
    assert found == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model(version):
    model = ACKTR.load(HERE / f"model-v{version}.zip", env=build().env)
    assert_answers(model, version)
    model.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint(version):
    checkpoint, _ = CheckpointStore(HERE / f"checkpoints-v{version}").newest()
    model = build()
    assert restore_learner(model, checkpoint.components, "golden") == []
    assert_answers(model, version)
    model.learn(16, reset_num_timesteps=False)
    components, reasons = capture_learner(model)
    assert reasons == []
    assert trees(components)["learner"]["num_timesteps"] == 80


def test_what_is_left_of_a_state_that_does_not_fit(monkeypatch):
    checkpoint, _ = CheckpointStore(HERE / f"checkpoints-v{VERSION}").newest()
    model = build()

    def refuse(env, state):
        raise NotCapturable("another version")

    monkeypatch.setattr("acktr.run.state.restore", refuse)
    problems = restore_learner(model, checkpoint.components, "golden")
    assert problems == ["their state does not fit here (another version)"]
    assert_answers(model, VERSION)
    assert torch.equal(torch.get_rng_state(), checkpoint.components["rank-0"]["random"]["torch"])


# Version 1, of 0.1.0 ------------------------------------------------------------------------


def test_a_model_of_strings_that_are_objects_now():
    env = make_vec_env("Pendulum-v1", 2, backend="gymnasium", seed=0)
    model = ACKTR.load(HERE / "model-v1-strings.zip", env=env, device="cpu")
    assert model.learning_rate == Linear(0.5)
    assert model.gamma == Horizon(0.9, 0.99)
    assert model.gae_lambda == TraceDecay(0.95, 0.9)
    assert model.target_kl == Linear(0.02, 0.01)
    assert model.std_scale == Late(1, 0.5)
    assert model.natural == Natural(
        damping=0.2,
        corrected_learning_rate=10,
        kfac_kwargs={"curvature": {"stat_decay": 0.9}, "momentum": 0.5, "weight_decay": 0.001},
    )
    assert model.critic == AdamCritic(
        learning_rate=Linear(0.001), n_updates=3, batch_size=8, std="adaptive", normalize_targets=True
    )
    wanted = json.loads((HERE / "answers-v1-strings.json").read_text())
    assert_state(model, wanted["loaded"])
    torch.manual_seed(0)
    model.learn(32, reset_num_timesteps=False)
    assert_state(model, wanted["learned"])


def assert_state(model, wanted):
    parts = model.parts
    with torch.no_grad():
        observations = torch.as_tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
        values = model.policy.predict_values(observations).flatten().tolist()
    found = {
        "values": values,
        "log_std": model.policy.log_std.tolist(),
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "kl_scale": parts.trust_region.scale,
        "kl_rescales": parts.trust_region.rescales,
        "bellman_std": parts.value_scale.bellman_std,
        "noise_scale": parts.noise.scale,
        "advantage_variance": parts.advantage_scale.variance,
        "advantage_count": parts.advantage_scale.count,
    }
    assert found.keys() == wanted.keys()
    for name in found:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_a_model_that_was_pickled():
    """It has learned what that of version 2 has, and learns the same from there."""
    learned = []
    for name, trust in (("model-pickled.zip", True), ("model-v2.zip", False)):
        model = ACKTR.load(HERE / name, env=build().env, device="cpu", trust=trust)
        assert_answers(model, 2)
        torch.manual_seed(0)
        learned.append(model.learn(16, reset_num_timesteps=False))
    assert_same_state(*learned)
    assert same(*(model.state_dict()["parts"] for model in learned))


def test_a_run_plays_the_same():
    returns = evaluate(Run(HERE / "run-v1"), 4).returns
    assert (np.mean(returns), np.std(returns)) == pytest.approx((-1150.5, 41.1), abs=0.05)
    assert (min(returns), max(returns)) == pytest.approx((-1193.2, -1087.1), abs=0.05)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_the_same(tmp_path, capsys, monkeypatch):
    """The four episodes that 0.1.0 itself went on with, when told the same."""
    # The updates of its critic had a curvature each, and were four.
    monkeypatch.setattr(NaturalCriticUpdate, "fit", CriticUpdate.fit)
    monkeypatch.setattr(NaturalCriticUpdate, "usual_n_updates", 4)
    path = shutil.copytree(HERE / "run-v1", tmp_path / "run")
    given = ["--out", str(path), "--resume", "--no-progress", "--steps", "4864"]
    assert main(["train", "Pendulum-v1", *given, "--set", "n_final_eval_episodes=0"]) == 0
    said = capsys.readouterr().err
    assert "acktr: Resumed at step 4,096 from " in said
    assert "target_kl ended at step 4,096 and end at 4,864 now" in said
    episodes = Run(path).episodes()
    assert len(episodes["return"]) == 24
    wanted = [-1156.413067, -1003.388306, -1144.100529, -1189.410595]
    assert episodes["return"][20:] == pytest.approx(wanted, rel=1e-3)
    before, now = (complete(Run(p).read_configuration()) for p in (HERE / "run-v1", path))
    assert now == before.model_copy(update={"n_timesteps": 4864, "n_final_eval_episodes": 0})
