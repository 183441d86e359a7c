"""A model and the normalisation statistics that belong to it are one file, of one moment."""

import json

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from acktr import ACKTR
from acktr.errors import CheckpointWriteError, DamagedCheckpointError
from acktr.files import durable
from acktr.files.model_file import NORMALIZATION, read_component
from acktr.run.directory import Run
from tests.helpers.small_envs import small_env


def normalized(seed=0):
    return ACKTR("MlpPolicy", VecNormalize(small_env()), n_steps=8, seed=seed)


@pytest.fixture
def saved(tmp_path):
    """A run directory with a model, the model, and its statistics then."""
    run, model = Run(tmp_path), normalized().learn(32)
    run.save_model(model)
    return run, model, model.get_env().obs_rms.copy()


def test_statistics_lie_in_the_file_of_the_model(saved):
    run, model, statistics = saved
    assert [path.name for path in run.path.iterdir()] == ["model.zip"]
    other = normalized(1)
    run.load_model(other)
    for env in (other.get_env(), VecNormalize(small_env())):
        run.load_normalization(env)
        np.testing.assert_array_equal(env.obs_rms.mean, statistics.mean)
        np.testing.assert_array_equal(env.obs_rms.var, statistics.var)
    # ACKTR itself reads such a file like any other.
    np.testing.assert_array_equal(parameters(ACKTR.load(run.model_path())), parameters(model))
    np.testing.assert_array_equal(parameters(other), parameters(model))


def parameters(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


@pytest.mark.parametrize("best", [False, True])
def test_a_save_that_fails_leaves_model_and_statistics_of_one_moment(tmp_path, monkeypatch, best):
    run, model = Run(tmp_path), normalized().learn(32)
    run.save_model(model, best)
    before, mean = parameters(model), model.get_env().obs_rms.mean.copy()
    model.learn(32, reset_num_timesteps=False)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "replace", full)
    with pytest.raises(CheckpointWriteError, match=r"model\.zip could not be written"):
        run.save_model(model, best)
    monkeypatch.undo()
    other = normalized(1)
    run.load_model(other, best)
    np.testing.assert_array_equal(parameters(other), before)
    np.testing.assert_array_equal(other.get_env().obs_rms.mean, mean)
    assert len(list(run.path.iterdir())) == 1


def test_statistics_of_another_moment_are_not_taken(saved):
    run, _, statistics = saved
    other = {"mean": [9.0] * 3, "var": [9.0] * 3, "count": 9.0}
    content = {"returns": {"mean": 0.0, "var": 1.0, "count": 1.0}, "observations": other}
    run.normalization_path().write_text(json.dumps(content))
    env = VecNormalize(small_env())
    run.load_normalization(env)
    np.testing.assert_array_equal(env.obs_rms.mean, statistics.mean)


def test_an_older_run_has_them_beside_its_model(tmp_path):
    run, model = Run(tmp_path), normalized().learn(32)
    content = json.dumps(
        {
            "returns": {"mean": 0.0, "var": 1.0, "count": 1.0},
            "observations": {"mean": [9.0] * 3, "var": [9.0] * 3, "count": 9.0},
        }
    )
    model.save(run.model_path())
    assert read_component(run.model_path(), NORMALIZATION) is None
    run.normalization_path().write_text(content)
    other = normalized(1)
    run.load_model(other)
    assert other.get_env().obs_rms.mean.tolist() == [9.0] * 3
    run.save_model(model)
    assert not run.normalization_path().exists()  # they are of an earlier model


@pytest.mark.parametrize("damage", ["absent", "nan", "negative", "shape", "bit"])
def test_statistics_that_cannot_be_used_are_refused(tmp_path, saved, damage):
    run, model, _ = saved
    env = model.get_env()
    if damage == "absent":
        model.save(run.model_path())
    elif damage == "bit":
        data = run.model_path().read_bytes()
        place = data.index(b'"observations"')
        run.model_path().write_bytes(data[:place] + b'"observatiens"' + data[place + 14 :])
    else:
        if damage == "shape":
            env.obs_rms.mean = np.zeros(4)
        else:
            env.obs_rms.var[0] = np.nan if damage == "nan" else -1.0
        run.save_model(model)
    with pytest.raises(DamagedCheckpointError, match="normali") as caught:
        run.load_normalization(VecNormalize(small_env()))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_file(tmp_path):
    with pytest.raises(DamagedCheckpointError, match=r"model\.zip cannot be opened"):
        Run(tmp_path).load_model(normalized())
