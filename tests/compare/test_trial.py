"""One training in this process: what it is made with, and what comes out."""

import json

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from acktr.compare import peer_checkpoint
from acktr.compare.curve import LearningCurve
from acktr.compare.peer_checkpoint import PeerCheckpoint, restore
from acktr.compare.peers import build_model
from acktr.compare.process import can_go_on, train, write_job
from acktr.compare.store import COLUMNS, Store, session
from acktr.compare.trial import Trial, complete_settings, settings_hash
from acktr.errors import CheckpointError, CheckpointWriteError, ConfigurationError

TOY = "tests.helpers.toy_envs:Toy-v0"
SMALL = {
    "acktr": {"n_steps": 8, "n_envs": 2},
    "a2c": {"n_steps": 16},
    "ppo": {"n_steps": 32, "batch_size": 32},
    "trpo": {"n_steps": 32, "batch_size": 32},
    "ppo_mask": {"n_steps": 32, "batch_size": 32},
    "ppo_lstm": {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"lstm_hidden_size": 8}},
}


def trial(algo="acktr", env_id=TOY, steps=200, settings=None, seed=0):
    return Trial(env_id, algo, seed, steps, algo, SMALL.get(algo, {}) if settings is None else settings)


@pytest.mark.parametrize("algo", ["acktr", "a2c", "ppo", "trpo"])
def test_train(algo, tmp_path):
    if algo == "trpo":
        pytest.importorskip("sb3_contrib")
    one = trial(algo)
    outcome = train(one, tmp_path)
    scores = outcome.scores
    assert scores["steps"] >= 200
    assert scores["episodes"] == scores["steps"] // 20 * 2 if algo == "acktr" else scores["steps"] // 10
    assert 0 <= scores["last_100_return"] <= 10
    assert scores["eval_episodes"] == 20
    assert scores["diverged"] == "no"
    assert scores["backend"] == "gymnasium"
    assert len(outcome.curve.points) == 100
    assert (tmp_path / "run" / "model.zip").exists() is (algo == "acktr")
    # What a peer cannot use costs it no time.
    assert (tmp_path / "times.csv").exists() is (algo == "acktr")
    store = Store(tmp_path / "store")
    store.add(one, outcome, complete_settings(one), session("a test"))
    (row,) = store.rows()
    assert set(row) == set(COLUMNS)
    assert row["last_100_return"] == f"{scores['last_100_return']:.6g}"


def test_a_peer_with_masks_takes_what_is_allowed(tmp_path):
    pytest.importorskip("sb3_contrib")
    env_id = "tests.helpers.masked_envs:StrictDiscrete-v0"
    scores = train(trial("ppo_mask", env_id), tmp_path).scores
    assert (scores["diverged"], scores["eval_episodes"]) == ("no", 20)
    with pytest.raises(ConfigurationError, match="Toy-v0 has no action_masks"):
        train(trial("ppo_mask"), tmp_path)


def test_acktr_goes_on_where_it_was_killed(tmp_path, monkeypatch, capsys):
    one = trial(settings={**SMALL["acktr"], "checkpoint_steps": 48})
    whole = train(one, tmp_path / "whole")
    take_time = LearningCurve._on_rollout_start

    def end(curve):
        take_time(curve)
        if curve.model.num_timesteps == 160:
            raise KeyboardInterrupt

    monkeypatch.setattr(LearningCurve, "_on_rollout_start", end)
    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path / "killed")
    monkeypatch.setattr(LearningCurve, "_on_rollout_start", take_time)
    killed = train(one, tmp_path / "killed")
    assert "Resumed at step 144" in capsys.readouterr().out
    clocks = {"seconds", "cpu_seconds", "fps"}
    assert {k: v for k, v in killed.scores.items() if k not in clocks} == {
        k: v for k, v in whole.scores.items() if k not in clocks
    }
    for name in ("steps", "mean_return"):
        assert [getattr(p, name) for p in killed.curve.points] == [
            getattr(p, name) for p in whole.curve.points
        ]
    seconds = [point.seconds for point in killed.curve.points]
    assert seconds == sorted(seconds)
    (tmp_path / "killed" / "times.csv").unlink()
    with pytest.raises(CheckpointError, match="has no time before step 208"):
        train(one, tmp_path / "killed")


@pytest.mark.parametrize("algo", ["a2c", "ppo", "trpo"])
def test_a_peer_goes_on_in_new_episodes(algo, tmp_path, monkeypatch, capsys):
    if algo == "trpo":
        pytest.importorskip("sb3_contrib")
    one = trial(algo, steps=320, settings={**SMALL[algo], "normalize": True})
    settings = complete_settings(one)
    saved, save = [], PeerCheckpoint.save

    def end(checkpoint):
        if checkpoint.model.num_timesteps < 160:
            return
        save(checkpoint)
        saved.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(peer_checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(PeerCheckpoint, "save", end)
    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path)
    killed = saved[0]
    # All that is in the file is back in a new model and a new curve.
    model, curve = build_model(algo, one.env_id, settings, one.seed), LearningCurve(320)
    restore(model, curve, tmp_path, one.seed)
    assert model.num_timesteps == 160
    for part, values in killed.model.get_parameters().items():
        torch.testing.assert_close(model.get_parameters()[part], values, rtol=0, atol=0)
    before, after = (unwrap_vec_normalize(m.get_env()) for m in (killed.model, model))
    for name in ("obs_rms", "ret_rms"):
        np.testing.assert_equal(vars(getattr(before, name)), vars(getattr(after, name)))
    assert min(after.obs_rms.count, after.ret_rms.count) > 160
    assert curve.scores() == {**killed._curve.scores(), "episodes": 16}
    assert curve.points == killed._curve.points

    monkeypatch.setattr(PeerCheckpoint, "save", save)
    outcome = train(one, tmp_path)
    assert f"{algo} goes on from step 160" in capsys.readouterr().out
    assert outcome.curve.resumed_at == [160]
    assert (outcome.scores["steps"], outcome.scores["episodes"]) == (320, 32)
    assert [point.steps for point in outcome.curve.points] == [320 * i // 100 for i in range(1, 101)]
    assert outcome.curve.points[:50] == killed._curve.points
    seconds = [point.seconds for point in outcome.curve.points]
    assert seconds == sorted(seconds)


def test_a_checkpoint_of_a_peer_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peer_checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(peer_checkpoint, "write_file", refuse)
    with pytest.raises(CheckpointWriteError, match=r"peer.pt cannot be written \(No space left"):
        train(trial("a2c"), tmp_path)


def test_what_can_be_gone_on_with(tmp_path):
    job, one = tmp_path / "trial.json", trial()
    assert not can_go_on(job, one)
    (tmp_path / "run" / "checkpoints" / "144").mkdir(parents=True)
    assert not can_go_on(job, one)
    write_job(job, one, tmp_path, (0,), "a test")
    assert can_go_on(job, one)
    assert not can_go_on(job, trial(settings={"n_steps": 4}))
    peer = trial("a2c")
    assert not can_go_on(job, peer)
    write_job(job, peer, tmp_path, (0,), "a test")
    assert not can_go_on(job, peer)
    (tmp_path / "peer.pt").touch()
    assert can_go_on(job, peer)
    job.write_text(job.read_text().replace('"code": "', '"code": "0'))
    assert not can_go_on(job, peer)


def test_acktr_that_diverges_is_an_outcome(tmp_path, capsys):
    outcome = train(trial(env_id="tests.helpers.toy_envs:Broken-v0"), tmp_path)
    assert outcome.scores["diverged"] == "yes"
    assert outcome.scores.get("eval_mean") is None
    assert "nan" in capsys.readouterr().err


def test_a_peer_that_diverges_is_an_outcome(tmp_path, capsys):
    settings = {"learning_rate": 1e30, "n_steps": 16, "max_grad_norm": 1e30}
    outcome = train(trial("a2c", "Pendulum-v1", 400, settings), tmp_path)
    assert outcome.scores["diverged"] == "yes"
    assert "Expected parameter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "none", "some"),
    [
        ("natural.corrected_learning_rate", None, 10),
        ("noise_color", 0.0, 0.5),
        ("std_scale", 1.0, "lin_1_0.5"),
    ],
)
def test_a_setting_that_came_later_leaves_older_results_what_they_are(name, none, some):
    before, after = (complete_settings(trial(settings={name: value})) for value in (none, some))
    *groups, key = name.split(".")
    of_group = after[groups[0]] if groups else after
    assert of_group.pop(key) == some
    assert before == after
    changed = complete_settings(trial(settings={name: some}))
    assert settings_hash(before) != settings_hash(changed)


def test_arguments_of_kfac_are_hashed_by_the_names_that_results_have():
    """They had no groups then."""
    groups = {"curvature": {"approximation": "ekfac", "fisher": "x"}, "periods": {"inverse": 3}}
    after = complete_settings(trial(settings={}))
    assert after["natural"]["kfac_kwargs"] == {}
    of_kfac = {"natural.kfac_kwargs": {**groups, "momentum": 0.5, "step_rule": {"exact_scaling": True}}}
    assert complete_settings(trial(settings=of_kfac))["natural"]["kfac_kwargs"] == {
        "inverse": "ekfac",
        "fisher": "x",
        "inverse_period": 3,
        "momentum": 0.5,
        "exact_scaling": True,
    }


def test_complete_settings():
    classic = "CartPole-v0"  # of the family's default section
    changes = {"target_kl": "lin_0.5", "policy_kwargs.log_std_init": -1}
    settings = complete_settings(trial(env_id=classic, settings=changes))
    assert (settings["target_kl"], settings["policy_kwargs"]) == ("lin_0.5", {"log_std_init": -1})
    assert settings["eval_interval"] == 0
    # The same settings on another task and with another seed have one name.
    name = settings_hash(complete_settings(trial(env_id="Acrobot-v1", settings={"normalize": False})))
    assert name == settings_hash(
        complete_settings(trial(env_id=classic, seed=3)) | {"n_steps": 32, "n_envs": 8}
    )
    assert name != settings_hash(complete_settings(trial(env_id=classic, settings={}, steps=300)))
    assert name == settings_hash(complete_settings(trial(env_id=classic, settings={})))
    json.dumps(complete_settings(trial("ppo")))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            trial("td3"),
            "There is no algorithm 'td3': "
            "choose from acktr, a2c, ppo, trpo, ppo_mask, ppo_lstm, sac, tqc",
        ),
        (trial(env_id="CartPol-v1"), "CartPole-v1"),
        (trial(settings={"n_step": 3}), "did you mean 'n_steps'"),
    ],
)
def test_refusals(one, message):
    with pytest.raises(ConfigurationError, match=message):
        complete_settings(one)


def test_keys_are_names_of_files():
    one = Trial("module:ALE/Pong-v5", "acktr", 0, 1, "acktr, batch 1")
    assert one.key == "module-ALE-Pong-v5_acktr--batch-1_0"
