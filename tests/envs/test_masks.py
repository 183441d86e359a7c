"""Masks as environments give them: through all that wraps them, and refused where they are none."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from acktr.envs import make_vec_env
from acktr.envs.make import try_environment
from acktr.envs.masks import ActionMasks, check_given, draw_allowed, has_masks
from acktr.errors import ConfigurationError, WorkerError
from tests.helpers.masked_envs import Strict
from tests.helpers.small_envs import ACTIONS, VECTOR, Small, small_env

STRICT = "tests.helpers.masked_envs:StrictMultiDiscrete-v0"


class Given(Small):
    """Has whatever mask it is given."""

    def __init__(self, action_space, mask):
        super().__init__(VECTOR, action_space)
        self.mask = mask

    def action_masks(self):
        if isinstance(self.mask, Exception):
            raise self.mask
        return self.mask


def masks_of(env):
    return ActionMasks(env, env.action_space)(0)


def space_of(action):
    return ACTIONS[action] if isinstance(action, str) else action


def given(mask, action="Discrete", fine=None):
    """Two environments, the second with a mask of its own."""
    space = space_of(action)
    fine = np.ones_like(mask) if fine is None else fine
    return DummyVecEnv([lambda: Given(space, fine), lambda: Given(space, mask)])


def wrapped(make):
    return make(
        [lambda: Monitor(gym.wrappers.TimeLimit(Strict(action_space=ACTIONS["Discrete"]), 9))] * 2
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: wrapped(DummyVecEnv),
        lambda: VecNormalize(VecFrameStack(wrapped(DummyVecEnv), 2)),
        lambda: DummyVecEnv(
            [lambda: ActionMasker(Small(VECTOR, ACTIONS["Discrete"]), lambda env: [1, 0, 1])]
        ),
        lambda: make_vec_env(STRICT, 2, seed=0, frame_stack=2),
    ],
    ids=["dummy", "wrappers", "ActionMasker", "own"],
)
def test_masks_are_found_through_wrappers(build):
    env = build()
    env.seed(0)
    env.reset()
    assert has_masks(env)
    masks = masks_of(env)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, get_action_masks(env))
    env.close()


@pytest.mark.parametrize("own", [True, False], ids=["WorkerVecEnv", "SubprocVecEnv"])
def test_masks_come_from_other_processes(own):
    here = make_vec_env(STRICT, 2, seed=0)
    if own:
        env = make_vec_env(STRICT, 2, seed=0, backend="subproc")
    else:
        env = SubprocVecEnv([lambda: Strict(action_space=ACTIONS["MultiDiscrete"], length=7)] * 2)
        env.seed(0)
    here.reset()
    env.reset()
    assert has_masks(env)
    np.testing.assert_array_equal(masks_of(env), masks_of(here))
    env.close()


class Together(gym.vector.VectorEnv):
    """All environments in one object, which gives all masks at once."""

    def __init__(self, num_envs, max_episode_steps=None):
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = VECTOR, spaces.Discrete(4)
        self.observation_space = batch_space(VECTOR, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((self.num_envs, 3), np.float32), {}

    def action_masks(self):
        return np.eye(self.num_envs, 4, dtype=np.int8)


class TogetherWithout(Together):
    action_masks = None


def test_environments_that_are_made_together_give_theirs_together():
    for name, cls in (("MaskedTogether-v0", Together), ("UnmaskedTogether-v0", TogetherWithout)):
        gym.register(name, entry_point=None, vector_entry_point=cls)
    try:
        env, without = (make_vec_env(f"{x}Together-v0", 3) for x in ("Masked", "Unmasked"))
    finally:
        for name in ("MaskedTogether-v0", "UnmaskedTogether-v0"):
            gym.registry.pop(name)
    np.testing.assert_array_equal(masks_of(env), np.eye(3, 4, dtype=bool))
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], np.eye(3, 4)[2])
    assert is_masking_supported(env)
    assert not has_masks(without)
    with pytest.raises(AttributeError, match="no method 'action_masks'"):
        without.env_method("action_masks")


def test_who_has_none_is_not_asked():
    assert not has_masks(None)
    assert not has_masks(small_env())


class YesToAll(DummyVecEnv):
    def has_attr(self, attr_name):
        return True


class Raises(DummyVecEnv):
    def has_attr(self, attr_name):
        raise RuntimeError("what?")


@pytest.mark.parametrize("cls", [YesToAll, Raises])
def test_an_environment_that_does_not_say_is_taken_without_masks(cls):
    assert not has_masks(cls([lambda: Small(VECTOR, ACTIONS["Discrete"])]))


@pytest.mark.parametrize(
    ("action", "mask"),
    [
        ("Discrete", [True, False, True]),
        ("Discrete", np.array([1, 0, 1], np.int8)),
        ("Discrete", np.array([1.0, 0.0, 1.0])),
        (spaces.Discrete(3, start=-5), np.array([[True, False, True]])),
        ("MultiDiscrete", [True, False, True, False, True]),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), [1, 0, 0, 0, 1, 0, 1, 1, 1]),
        ("MultiBinary", [[True, False], [True, True]]),
        (spaces.MultiBinary((2, 2)), [1, 0, 0, 1, 1, 1, 0, 1]),
    ],
)
def test_what_a_mask_may_be(action, mask):
    flat = np.array(mask).astype(bool).ravel()
    np.testing.assert_array_equal(masks_of(given(mask, action))[1], flat)
    np.testing.assert_array_equal(check_given(mask, space_of(action))[0], flat)


BAD = {
    "nothing": ("Discrete", [False] * 3, "a mask that leaves no action"),
    "no part": ("MultiDiscrete", [True, True, 0, 0, 0], "leaves no action for part 1 of its actions"),
    "no bit": ("MultiBinary", [0, 0, 1, 1], "leaves no action for part 0 of its actions"),
    "short": ("Discrete", [True, True], r"of the shape \(2,\), where 3 are needed, one for each action"),
    "long": (
        "MultiDiscrete",
        np.ones(6, bool),
        r"of the shape \(6,\), where 5 are needed, one for each value",
    ),
    "half": ("MultiBinary", np.ones(2, bool), "where 4 are needed, two for each part"),
    "logits": ("Discrete", np.array([0.0, -1e8, 0.0]), "a mask of float64 with other values than True"),
    "counts": ("Discrete", np.array([2, 0, 1]), "a mask of int64 with other values"),
    "words": ("Discrete", ["yes", "no", "no"], "with other values than True and False"),
    "ragged": ("MultiDiscrete", [[True, True], [True] * 3], "arrays of different lengths"),
    "None": ("Discrete", None, r"of the shape \(\), where 3 are needed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mask_that_is_none_is_refused_in_one_sentence(name):
    action, mask, says = BAD[name]
    width = {"Discrete": 3, "MultiDiscrete": 5, "MultiBinary": 4}[action]
    env = given(mask, action, fine=np.ones(width, bool))
    with pytest.raises(WorkerError, match=says) as caught:
        ActionMasks(env, env.action_space)(4096)
    assert str(caught.value).startswith("Environment 1 returned from action_masks() at step 4,096 ")
    assert "\n" not in str(caught.value)
    if mask is not None:
        with pytest.raises(
            ConfigurationError, match=r"^action_masks of predict holds, for observation 0"
        ):
            check_given(mask, ACTIONS[action])


def test_what_an_environment_raises_is_told_with_its_number():
    env = given(KeyError("rules"), fine=np.ones(3, bool))
    with pytest.raises(
        WorkerError, match=r"action_masks\(\) of environment 1 raised KeyError at step 7"
    ):
        ActionMasks(env, env.action_space)(7)


@pytest.mark.parametrize(
    "action",
    ["Discrete", "MultiDiscrete", "MultiBinary", spaces.MultiDiscrete([[2, 3]], start=[[4, 5]])],
)
def test_what_is_drawn_for_a_try_is_allowed(action):
    env = DummyVecEnv([lambda: Strict(action_space=space_of(action)) for _ in range(2)])
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = draw_allowed(env, rng)
        assert all(space_of(action).contains(x) for x in actions)
        env.step(actions)
    assert draw_allowed(small_env("Box"), rng).shape == (2, 2)


def test_an_environment_that_forbids_is_tried_with_what_is_allowed():
    try_environment(STRICT)


def test_actions_that_no_mask_is_for_are_refused():
    with pytest.raises(ConfigurationError, match=r"not for a Box: .*use_masking=False\.$") as caught:
        ActionMasks(given(np.ones(2, bool), "Box"), ACTIONS["Box"])
    assert "\n" not in str(caught.value)
