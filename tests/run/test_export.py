"""ONNX files: they answer as ``predict`` does, say what they take, and what cannot be one is refused."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from acktr import ACKTR
from acktr.envs.running import VecRunningNormalize
from acktr.errors import ConfigurationError
from acktr.run.export import compare, draw_inputs, export_model
from acktr.run.graph import ActionGraph
from tests.helpers.masked_envs import Strict
from tests.helpers.small_envs import VECTOR, Small, small_env

onnxruntime = pytest.importorskip("onnxruntime")

PICTURE = spaces.Box(0, 255, (40, 36, 3), np.uint8)  # channels last, as environments have them
FAR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
MIXED = spaces.Dict(
    {
        "action": VECTOR,  # called as the output is
        "picture": PICTURE,
        "kind": spaces.Discrete(3, start=1),
        "counts": spaces.MultiDiscrete([[2, 3]]),
        "nothing": spaces.Box(0.0, 1.0, (0,)),
        "far": FAR,
    }
)
NARROW = spaces.Box(np.array([-0.5, -2.0]), np.array([0.25, 0.125]), dtype=np.float64)
COUNTED = spaces.MultiDiscrete([2, 3], start=[1, -1])
NORMALIZED = {"norm_obs_keys": ["far"]}
CASES = {
    "numbers": ("MlpPolicy", FAR, NARROW, Small, {}),
    "pictures": ("CnnPolicy", PICTURE, spaces.Discrete(4, start=5), Small, None),
    "dict": ("MultiInputPolicy", MIXED, NARROW, Small, NORMALIZED),
    "LSTM, two layers": ("MlpLstmPolicy", FAR, NARROW, Small, {}),
    "GRU, dict, masks": ("MultiInputGruPolicy", MIXED, COUNTED, Strict, None),
    "binary, masks": ("MlpPolicy", spaces.MultiBinary(3), spaces.MultiBinary([2, 2]), Strict, None),
}


def build(policy, observation, action, cls=Small, normalize=None, **arguments):
    env = small_env(action, observation, cls=cls)
    if normalize is not None:
        env = VecRunningNormalize(env, norm_reward=False, **normalize)
        env.reset()
        for _ in range(5):
            env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    model = ACKTR(policy, env, n_steps=8, seed=0, device="cpu", **arguments)
    with torch.no_grad():
        # As it is built a policy hardly looks at its observations, and no action comes to its bounds.
        model.policy.action_net.weight.mul_(1000.0)
    return model


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", CASES)
def test_a_file_answers_as_predict_does(case, tmp_path):
    *arguments, normalize = CASES[case]
    layers = {"policy_kwargs": {"n_lstm_layers": 2}} if "two layers" in case else {}
    model = build(*arguments, normalize=normalize, **layers)
    path = tmp_path / "model.onnx"
    written = export_model(model, path, about={"env_id": "Small"})
    data = path.read_bytes()
    assert written.size == len(data)
    graph = ActionGraph(model)
    assert (graph.mask_sizes is not None) is ("masks" in case)
    difference, wrong = compare(model, graph, data, 1000, seed=1)
    assert wrong == 0.0
    assert difference <= 1e-4
    played = session(path)
    about = played.get_modelmeta().custom_metadata_map
    assert about["env_id"] == "Small"
    assert about["actions"] == "deterministic"
    said = json.loads(about["inputs"])
    assert list(said) == [x.name for x in played.get_inputs()]
    assert [x.shape for x in played.get_inputs()] == [x["shape"] for x in said.values()]
    assert list(json.loads(about["output"])) == [x.name for x in played.get_outputs()]
    assert "nothing" not in said
    assert b"/acktr/" not in data  # where the code lies on this machine
    (action,) = played.run(None, dict(zip(said, draw_inputs(graph, 1, 2), strict=True)))[0]
    assert model.action_space.contains(action)
    if arguments[2] is NARROW:
        actions, *_ = played.run(None, dict(zip(said, draw_inputs(graph, 200, 2), strict=True)))
        assert (actions.min(0) == NARROW.low).all()
        assert (actions.max(0) == NARROW.high).all()


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy"])
def test_a_memory_is_taken_from_step_to_step(policy, tmp_path):
    model = build(policy, VECTOR, NARROW)
    played = session(export_model(model, tmp_path / "model.onnx").path)
    states = {x.name: np.zeros((1, 3, 64), np.float32) for x in played.get_inputs() if "state" in x.name}
    rng, state, forgotten = np.random.default_rng(0), None, 0
    for step in range(20):
        observation = rng.uniform(-1.0, 1.0, (3, 3)).astype(np.float32)
        starts = np.array([step == 0, step % 5 == 0, False])
        given = {"observation": observation, "episode_start": starts, **states}
        action, *after = played.run(None, given)
        expected, state = model.predict(observation, state, starts, deterministic=True)
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-4)
        states = dict(zip(states, after, strict=True))
        alone, _ = model.predict(observation, deterministic=True)
        forgotten += not np.allclose(action, alone, atol=1e-3)
    assert forgotten > 10  # it matters


def test_a_gaussian_is_drawn(tmp_path):
    wide = spaces.Box(-1e3, 1e3, (2,), np.float32)
    model = build("MlpPolicy", VECTOR, wide)
    with torch.no_grad():
        model.policy.log_std.copy_(torch.tensor([0.0, 1.0]))
    written = export_model(model, tmp_path / "model.onnx", sampled=True)
    export_model(build("MlpLstmPolicy", VECTOR, wide), tmp_path / "lstm.onnx", sampled=True)
    assert written.difference is None
    assert written.metadata["actions"] == "sampled"
    observation = np.full((1, 3), 0.5, np.float32)
    mean, _ = model.predict(observation, deterministic=True)
    (actions,) = session(written.path).run(None, {"observation": observation.repeat(20_000, 0)})
    # Four standard errors of a mean and of a standard deviation.
    assert np.abs(actions.mean(0) - mean[0]) == pytest.approx(0.0, abs=4 * np.e / np.sqrt(20_000))
    assert actions.std(0) == pytest.approx([1.0, np.e], rel=4 / np.sqrt(40_000))


def test_counted_actions_are_drawn_among_those_allowed(tmp_path):
    model = build("MlpPolicy", VECTOR, COUNTED, Strict)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(torch.log(torch.tensor([0.3, 0.7, 0.2, 0.5, 0.3])))
    written = export_model(model, tmp_path / "model.onnx", sampled=True)
    n = 20_000
    masks = np.tile([True, True, True, False, True], (n, 1))
    observation = np.zeros((n, 3), np.float32)
    answers = session(written.path).run(None, {"observation": observation, "action_masks": masks})
    actions = answers[0] - COUNTED.start
    assert (actions[:, 0] == 1).mean() == pytest.approx(0.7, abs=0.015)
    assert (actions[:, 1] == 2).mean() == pytest.approx(0.6, abs=0.015)
    assert (actions[:, 1] != 1).all()


class Branches(ActorCriticPolicy):
    """Goes by what it sees."""

    def get_distribution(self, obs):
        return super().get_distribution(-obs if float(obs.sum()) > 0 else obs)


class Counts(ActorCriticPolicy):
    """Does something else each time."""

    calls = 0

    def _predict(self, observation, deterministic=False):
        Counts.calls += 1
        return super()._predict(observation * (-1.0) ** Counts.calls, deterministic)


class Lost(ActorCriticPolicy):
    """Has lost its numbers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.action_net.bias.fill_(torch.nan)


@pytest.mark.parametrize(
    ("policy", "sampled", "message"),
    [
        (Branches, False, "Branches does something that ONNX cannot"),
        (Counts, False, "The graph of Counts answers otherwise than predict, or NaN, for "),
        (Lost, False, r"Lost does not act on observations of its space \(ValueError: .* invalid values"),
        (Counts, True, "Counts draws its actions in a way of its own"),
    ],
)
def test_a_policy_that_cannot_be_one_is_refused(policy, sampled, message, tmp_path, capfd):
    model = build(policy, VECTOR, NARROW)
    Counts.calls = 0
    with pytest.raises(ConfigurationError, match=message) as caught:
        export_model(model, tmp_path / "model.onnx", sampled=sampled)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said(tmp_path):
    model = build("MlpPolicy", VECTOR, NARROW)
    with pytest.raises(ConfigurationError, match=r"model\.zip is not an \.onnx file"):
        export_model(model, tmp_path / "model.zip")
    with (
        mock.patch("acktr.run.export.is_installed", lambda package: package != "onnxscript"),
        pytest.raises(ConfigurationError, match=r'onnxscript.*pip install "acktr\[onnx\]"'),
    ):
        export_model(model, tmp_path / "model.onnx")
    model.env = None
    with pytest.raises(ConfigurationError, match="has no environments"):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    model = build("MlpPolicy", VECTOR, NARROW)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        export_model(model, tmp_path / "file" / "model.onnx")
