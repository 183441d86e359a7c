"""Spaces: translated where only their form differs from SB3's, else refused before anything is built."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR
from acktr.cli import main
from acktr.envs import make_vec_env
from acktr.errors import ConfigurationError
from acktr.networks.policies import PaperCNN
from tests.helpers.small_envs import Small

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
TWO = spaces.Discrete(2)
LEARNING = {"n_steps": 8, "seed": 0}


class Strict(Small):
    """Refuses actions outside of its space, and remembers how many it got."""

    def __init__(self, observation=VECTOR, action=TWO):
        super().__init__(observation, action)

    def step(self, action):
        # What an environment gets is an array, or a number for spaces of no shape.
        assert self.action_space.contains(np.asarray(action)), (action, self.action_space)
        assert np.asarray(action).dtype == self.action_space.dtype
        return super().step(0)


class Told(Strict):
    """Pays for an action that its observation tells; both count from elsewhere than 0."""

    def __init__(self):
        super().__init__(spaces.Discrete(3, start=-1), spaces.Discrete(3, start=5))

    def reset(self, **kwargs):
        self.told, info = super().reset(**kwargs)
        return self.told, info

    def step(self, action):
        paid = float(action == self.told + 6)
        self.told, _, *rest = super().step(action)
        return self.told, paid, *rest


ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Discrete of one": spaces.Discrete(1),
    "Discrete from 1": spaces.Discrete(3, start=1),
    "Discrete from -7": spaces.Discrete(2, start=-7),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiDiscrete from elsewhere": spaces.MultiDiscrete([3, 2], start=[1, -5]),
    "MultiDiscrete of two axes": spaces.MultiDiscrete([[3, 3], [2, 2]]),
    "MultiDiscrete of two axes from elsewhere": spaces.MultiDiscrete(
        [[3, 3], [2, 2]], start=[[1, 2], [3, 4]]
    ),
    "MultiDiscrete of bytes": spaces.MultiDiscrete([200, 200], dtype=np.uint8),
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary of two axes": spaces.MultiBinary([2, 3]),
    "Box": spaces.Box(-0.1, 0.1, (2,), np.float32),
    "Box of two axes": spaces.Box(-1, 1, (2, 3), np.float32),
    "Box of no axis": spaces.Box(-0.1, 0.1, (), np.float32),
    "Box of doubles": spaces.Box(-0.1, 0.3, (2,), np.float64),
    "Box of halves": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "Box of one point": spaces.Box(0.1, 0.1, (2,), np.float64),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_lie_in_their_space(name):
    model = ACKTR("MlpPolicy", Strict(action=ACTIONS[name]), **LEARNING)
    model.learn(16)
    assert model.action_space == ACTIONS[name]
    evaluate_policy(model, model.env, 2, deterministic=False)  # Strict looks at its actions
    for deterministic in (False, True):
        single, _ = model.predict(model.env.reset()[0], deterministic=deterministic)
        batch, _ = model.predict(np.stack([VECTOR.sample()] * 5), deterministic=deterministic)
        for action in (single, *batch):
            assert ACTIONS[name].contains(np.asarray(action))


@pytest.mark.parametrize("name", ACTIONS)
def test_a_model_of_any_actions_comes_back(name, tmp_path):
    env = Strict(action=ACTIONS[name])
    model = ACKTR("MlpPolicy", env, **LEARNING).learn(16)
    model.save(tmp_path / "model")
    obs = np.stack([VECTOR.sample()] * 5)
    expected, _ = model.predict(obs, deterministic=True)
    for given in (None, env):
        loaded = ACKTR.load(tmp_path / "model", env=given)
        assert loaded.action_space == ACTIONS[name]
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


OBSERVATIONS = {
    "Discrete from 1": spaces.Discrete(5, start=1),
    "Discrete from -2": spaces.Discrete(5, start=-2),
    "MultiDiscrete from elsewhere": spaces.MultiDiscrete([3, 4], start=[1, -2]),
    "MultiDiscrete of two axes": spaces.MultiDiscrete([[3, 4], [2, 2]], start=[[0, 1], [2, 3]]),
    "MultiDiscrete of bytes": spaces.MultiDiscrete([200, 200], dtype=np.uint8),
    "MultiBinary of two axes": spaces.MultiBinary([3, 3]),
    "Box of no axis": spaces.Box(-1, 1, (), np.float32),
    "Box of two axes": spaces.Box(-1, 1, (2, 2), np.float32),
    "Box of doubles": spaces.Box(-1, 1, (2,), np.float64),
    "Box of small integers": spaces.Box(-100, 100, (4,), np.int8),
    "Box of bools": spaces.Box(0, 1, (4,), np.bool_),
    "Dict": spaces.Dict(
        {
            "scalar": spaces.Box(-1, 1, (), np.float64),
            "empty": spaces.Box(-1, 1, (0,), np.float32),
            "count": spaces.Discrete(3, start=1),
            "counts": spaces.MultiDiscrete([[2, 3]], start=[[1, 1]]),
            "bits": spaces.MultiBinary([2, 2]),
        }
    ),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_of_other_forms_are_translated(name, tmp_path):
    space = OBSERVATIONS[name]
    policy = "MultiInputPolicy" if name == "Dict" else "MlpPolicy"
    model = ACKTR(policy, DummyVecEnv([lambda: Strict(space)] * 2), **LEARNING)
    model.learn(32)
    # As the environment returns it, alone and in a batch.
    assert model.observation_space == space
    single, _ = model.predict(model.env.envs[0].reset()[0])
    batch, _ = model.predict(model.env.reset())
    assert single.shape == ()
    assert batch.shape == (2,)
    model.save(tmp_path / "model")
    assert ACKTR.load(tmp_path / "model").observation_space == space


def test_every_observation_keeps_its_meaning(tmp_path):
    model = ACKTR("MlpPolicy", DummyVecEnv([Told] * 4), learning_rate=10.0, **LEARNING).learn(1600)
    said = [int(model.predict(np.array(told), deterministic=True)[0]) for told in (-1, 0, 1)]
    assert said == [5, 6, 7]
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model")
    assert [int(loaded.predict(told, deterministic=True)[0]) for told in (-1, 0, 1)] == said
    assert evaluate_policy(loaded, Monitor(Told()), 2)[0] == 5.0
    assert ACKTR.load(tmp_path / "model", DummyVecEnv([Told])).learn(8).action_space.start == 5


IMAGES = {
    "small": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "small, channels first": spaces.Box(0, 255, (3, 10, 10), np.uint8),
    "of floats": spaces.Box(0, 1, (40, 44, 3), np.float32),
    "of floats, channels first": spaces.Box(0, 1, (3, 40, 44), np.float32),
    "of bools": spaces.Box(0, 1, (10, 10, 4), np.bool_),
    "of 0 and 1": spaces.Box(0, 1, (40, 40, 3), np.uint8),
    "grey": spaces.Box(0, 255, (36, 40), np.uint8),
    "grey and small": spaces.Box(0, 1, (5, 4), np.float32),
    "as deep as it is wide": spaces.Box(0, 1, (10, 10, 10), np.bool_),
    "long": spaces.Box(0, 255, (4, 100, 3), np.uint8),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_cnn_reads_images_of_any_kind_and_size(name):
    model = ACKTR("CnnPolicy", DummyVecEnv([lambda: Strict(IMAGES[name])]), n_steps=4).learn(4)
    assert model.predict(IMAGES[name].sample())[0].shape == ()


def test_channels_are_found():
    for shape, plain in (((40, 44, 3), (3, 40, 44)), ((3, 40, 44),) * 2, ((9, 8), (1, 9, 8))):
        model = ACKTR("CnnPolicy", Strict(spaces.Box(0, 1, shape, np.float32)))
        assert model.policy.observation_space.shape == plain
        image = model.observation_space.sample()
        expected = np.moveaxis(image, -1, 0) if shape[-1] == 3 else image.reshape(plain)
        np.testing.assert_array_equal(model.adapter.observations(image), expected)


def test_small_images_of_a_dict_get_a_network_that_fits():
    parts = {"image": IMAGES["small"], "direction": spaces.Discrete(4)}
    model = ACKTR("MultiInputPolicy", Strict(spaces.Dict(parts)), n_steps=4).learn(4)
    assert model.policy.features_extractor.features_dim == 256 + 4


class Unflattened(spaces.Space):
    """A space of somebody's own, such as MiniGrid's of missions."""


REFUSED = {
    "text": (spaces.Text(5), TWO, "Text observation space: wrap it with gymnasium's FlattenObs"),
    "tuple": (spaces.Tuple([VECTOR]), TWO, "has a Tuple observation space"),
    "one of": (spaces.OneOf([VECTOR, TWO]), TWO, "has a OneOf observation space"),
    "sequence": (spaces.Sequence(VECTOR), TWO, "Sequence observation space: wrap it with a wrapper"),
    "graph": (spaces.Graph(VECTOR, TWO), TWO, "has a Graph observation space"),
    "own": (Unflattened(), TWO, "has a Unflattened observation space"),
    "empty": (spaces.Box(-1, 1, (0,)), TWO, "nothing to observe"),
    "empty axis": (spaces.Box(-1, 1, (3, 0)), TWO, "nothing to observe"),
    "no key": (spaces.Dict({}), TWO, "nothing to observe"),
    "empty keys": (spaces.Dict({"a": spaces.Box(-1, 1, (0,))}), TWO, "nothing to observe"),
    "nested": (spaces.Dict({"a": spaces.Dict({"b": VECTOR})}), TWO, "a Dict under .* key 'a'.*Flatten"),
    "text in a Dict": (spaces.Dict({"a": spaces.Text(5), "b": VECTOR}), TWO, "FilterObservation"),
    "own in a Dict": (spaces.Dict({"a": Unflattened(), "b": VECTOR}), TWO, "FilterObservation.$"),
    "two orders": (
        spaces.Dict({"a": spaces.Box(0, 255, (3, 40, 40), np.uint8), "b": IMAGES["small"]}),
        TWO,
        "channels first and others with channels last",
    ),
    "integers": (VECTOR, spaces.Box(-5, 5, (2,), np.int64), "needs floating-point actions"),
    "bools": (VECTOR, spaces.Box(0, 1, (2,), np.bool_), "needs floating-point actions"),
    "unbounded": (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), "unbounded actions"),
    "half bounded": (VECTOR, spaces.Box(0, np.inf, (2,)), "unbounded actions"),
    "no action": (VECTOR, spaces.Box(-1, 1, (0,)), "nothing to decide"),
    "no actions": (VECTOR, spaces.MultiDiscrete([]), "nothing to decide"),
    "Dict of actions": (VECTOR, spaces.Dict({"a": TWO}), "Dict action space"),
    "Tuple of actions": (VECTOR, spaces.Tuple([TWO, TWO]), "Tuple action space"),
    "text of actions": (VECTOR, spaces.Text(5), "Text action space"),
}


@pytest.fixture
def registered():
    """Register an environment of given spaces for the test alone."""

    def register(*pair):
        gym.register("Strict-v0", lambda: Strict(*pair), disable_env_checker=True)
        return "Strict-v0"

    yield register
    gym.registry.pop("Strict-v0", None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_everywhere_alike(
    name, registered, tmp_path, monkeypatch, capsys
):
    observation, action, message = REFUSED[name]
    with pytest.raises(ConfigurationError, match=message) as said:
        ACKTR("MultiInputPolicy", Strict(observation, action))
    assert "\n" not in str(said.value)
    env_id = registered(observation, action)
    with pytest.raises(ConfigurationError, match=f"Strict-v0 .*{message}"):
        ACKTR("MultiInputPolicy", env_id)
    for backend in ("gymnasium", "subproc"):
        with pytest.raises(ConfigurationError, match=f"Strict-v0 .*{message}"):
            make_vec_env(env_id, 2, backend=backend)
    monkeypatch.chdir(tmp_path)
    assert main(["train", env_id]) == 2
    assert capsys.readouterr().err.startswith("acktr: Strict-v0 has")
    assert not list(tmp_path.iterdir())


def test_a_model_takes_no_other_environment_in():
    model = ACKTR("MlpPolicy", Strict())
    with pytest.raises(ConfigurationError, match="Text observation space"):
        model.set_env(Strict(spaces.Text(5)))
    with pytest.raises(ConfigurationError, match="gymnasium's SyncVectorEnv: use acktr"):
        model.set_env(gym.vector.SyncVectorEnv([Strict]))


DICT = spaces.Dict({"a": VECTOR})
SMALL_DICT = spaces.Dict({"a": IMAGES["small"]})
EXTRACTOR = "features_extractor_class"


@pytest.mark.parametrize(
    ("policy", "kwargs", "space", "message"),
    [
        ("MlpPolicy", {}, DICT, "a Dict, which MlpPolicy cannot read.*'MultiInputPolicy'"),
        ("CnnPolicy", {}, DICT, "a CNN reads images.*'MultiInputPolicy'"),
        ("CnnPolicy", {}, VECTOR, r"Box of shape \(3,\).* images.*'MlpPolicy'"),
        ("CnnPolicy", {}, TWO, "a Discrete.* images.*'MlpPolicy'"),
        ("CnnPolicy", {}, spaces.Box(0, 255, (2, 40, 40, 3), np.uint8), "a CNN reads images"),
        ("MultiInputPolicy", {}, VECTOR, "MultiInputPolicy cannot read.*'MlpPolicy'"),
        ("MultiInputPolicy", {}, spaces.Dict({"a.b": VECTOR}), "the observation key 'a.b'"),
        ("MultiInputPolicy", {}, spaces.Dict({"items": VECTOR}), "the observation key 'items'"),
        ("CnnPolicy", {EXTRACTOR: NatureCNN}, IMAGES["small"], "NatureCNN .*36 x 36.*CnnPolicy"),
        ("CnnPolicy", {EXTRACTOR: PaperCNN}, IMAGES["small"], "PaperCNN .*36 x 36.*CnnPolicy"),
        ("MlpPolicy", {EXTRACTOR: PaperCNN}, IMAGES["small"], "36 x 36.*policy=CnnPolicy.*module:Class"),
        (
            "CnnPolicy",
            {EXTRACTOR: NatureCNN},
            spaces.Box(0, 1, (10, 10, 4)),
            "NatureCNN needs .*36 x 36",
        ),
        ("CnnPolicy", {EXTRACTOR: PaperCNN}, IMAGES["of bools"], "PaperCNN .*36 x 36"),
        ("CnnPolicy", {EXTRACTOR: NatureCNN}, IMAGES["of floats"], "bytes from 0 to 255"),
        (ActorCriticPolicy, {}, DICT, "ActorCriticPolicy cannot read.*'MultiInputPolicy'"),
        (ActorCriticCnnPolicy, {}, IMAGES["small"], "36 x 36"),
        (MultiInputActorCriticPolicy, {}, SMALL_DICT, "key 'a', and CombinedExtractor .*36 x 36"),
        ("MultiInputPolicy", {EXTRACTOR: CombinedExtractor}, SMALL_DICT, "CombinedExtractor .*36 x 36"),
    ],
)
def test_a_policy_that_cannot_read_the_observations_is_refused(policy, kwargs, space, message):
    with pytest.raises(ConfigurationError, match=message) as said:
        ACKTR(policy, Strict(space), policy_kwargs=kwargs)
    assert "\n" not in str(said.value)


def test_extractors_of_ones_own_read_what_they_will():
    class Own(ActorCriticPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, features_extractor_class=CombinedExtractor)

    ACKTR(Own, Strict(DICT), n_steps=4).learn(4)
    ACKTR(ActorCriticPolicy, Strict(DICT), policy_kwargs={EXTRACTOR: CombinedExtractor})


def test_what_has_no_axis_is_not_stacked(registered):
    for space in (spaces.Discrete(3), spaces.Box(-1, 1, ()), spaces.Dict({"a": TWO})):
        with pytest.raises(ConfigurationError, match="cannot be stacked: leave out frame_stack"):
            make_vec_env(registered(space), frame_stack=2)
        gym.registry.pop("Strict-v0")
