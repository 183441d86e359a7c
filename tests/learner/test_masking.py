"""Learning with masks: nothing that is forbidden is taken, nor anything learned of it."""

import warnings

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor
from torch import nn

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError, WorkerError
from acktr.rollout.batch import MaskedSamples
from acktr.run.callbacks import play
from tests.helpers.masked_envs import Strict, taken
from tests.helpers.models import POLICIES, Recorded, Trunk, make, parameters, same
from tests.helpers.small_envs import ACTIONS, MIXED, VECTOR, small_env

KINDS = ("Discrete", "MultiDiscrete", "MultiBinary")
# A place in the mask that is never allowed, and the output of the network that then says nothing.
NEVER = {"Discrete": (2, 2), "MultiDiscrete": (4, 4), "MultiBinary": (3, 1)}
DROPOUT = {"features_extractor_class": Trunk, "features_extractor_kwargs": {"noise": nn.Dropout(0.5)}}
SETTINGS = {
    "separate": {},
    "entropy": {"ent_coef": 0.1},
    "monte carlo": {
        "natural": Natural(kfac_kwargs={"curvature": {"fisher": "monte-carlo"}, "momentum": 0.9})
    },
    "sub-sampling": {"natural": Natural(sub_sampling_factor=2)},
    "conjugate gradients": {"natural": Natural(cg_iterations=2)},
    "both": {"natural": Natural(cg_iterations=2, sub_sampling_factor=2)},
    "exact scaling": {"natural": Natural(kfac_kwargs={"step_rule": {"exact_scaling": True}})},
    "adaptive damping": {"natural": Natural(kfac_kwargs={"step_rule": {"adapt_damping": True}})},
    "bf16": {"natural": Natural(precision="bf16")},
    "shared trunk": {"policy": "CnnPolicy"},
    "shared trunk, Adam": {"policy": "CnnPolicy", "critic": AdamCritic(n_updates=2, batch_size=6)},
    "Dict": {"policy": "MultiInputPolicy"},
    "dropout": {"policy_kwargs": DROPOUT, "critic": NaturalCritic(n_updates=1)},
}


def build(action="Discrete", policy="MlpPolicy", never=(), cls=ACKTR, **settings):
    observation, policy_kwargs = POLICIES[policy]
    env = small_env(action, observation, cls=Strict, never=never)
    return make(env, policy, cls, **{"policy_kwargs": policy_kwargs, **settings})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("action", KINDS)
def test_nothing_is_learned_of_what_is_never_allowed(name, action, monkeypatch):
    monkeypatch.setattr("acktr.networks.bfloat16.has_bfloat16", lambda device: True)
    place, output = NEVER[action]
    model = build(action, never=(place,), cls=Recorded, **SETTINGS[name])
    before = parameters(model)
    model.learn(64)
    for kind in ("weight", "bias"):
        old, new = before[f"action_net.{kind}"], parameters(model)[f"action_net.{kind}"]
        assert torch.equal(old[output], new[output])
        moved = [not torch.equal(old[i], new[i]) for i in range(len(old)) if i != output]
        assert all(moved)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert model.logged("kl").max() > 0
    assert model.logged("kl").min() >= 0
    assert (model.logged("forbidden") > 0).all()
    assert np.isfinite(model.logged("entropy_loss")).all()


@pytest.mark.parametrize("action", KINDS)
def test_no_forbidden_action_in_20_000_steps(action):
    """The environment raises on one, and its policy is pushed against its masks."""
    env = small_env(action, VECTOR, n_envs=16, cls=Strict)
    model = make(env, policy_kwargs={"net_arch": [8]}, n_steps=64, target_kl=0.1)
    model.learn(20_000)
    assert model.num_timesteps >= 20_000


class AtEnd(BaseCallback):
    """Looks at a rollout while the policy that collected it is there."""

    def _on_step(self):
        masks = self.locals["action_masks"]
        actions = self.locals["actions"].astype(int)
        space = self.model.action_space
        for mask, action in zip(masks, actions, strict=True):
            assert mask[taken(action, space)].all()
        self.first = self.locals["log_probs"].clone() if self.n_calls == 1 else self.first
        return True

    def _on_rollout_end(self):
        storage, model = self.model.rollout_buffer, self.model
        batch = storage.batch()
        self.masks, self.log_probs = batch.masks, torch.as_tensor(storage.log_probs.copy()).flatten()
        with torch.no_grad():
            self.again = model.outputs.evaluate(*batch.inputs)
        self.samples = list(storage.get(4))
        self.shown = storage.action_masks
        assert self.masks.gather(1, places(batch, model)).all()


def places(batch, model):
    chosen = batch.actions.reshape(len(batch.masks), -1).numpy().astype(int)
    return torch.as_tensor(np.stack([taken(x, model.action_space) for x in chosen]))


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("action", KINDS)
def test_what_was_collected_is_what_is_learned_from(action, policy):
    model, seen = build(action, policy), AtEnd()
    model.learn(16, seen)
    torch.testing.assert_close(seen.log_probs, seen.again.log_prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.first, seen.log_probs[:2], atol=1e-6, rtol=0)
    assert seen.again.log_prob.exp().le(1 + 1e-6).all()
    width = seen.masks.shape[1]
    assert seen.shown.shape == (8, 2, width)
    np.testing.assert_array_equal(seen.shown.reshape(16, width), seen.masks.numpy())
    assert all(type(x) is MaskedSamples for x in seen.samples)
    together = torch.cat([x.action_masks for x in seen.samples])
    assert together.sum() == seen.masks.sum()
    assert seen.samples[0].action_masks.shape == (4, width)


def test_without_masks_a_rollout_has_none():
    model = make(small_env())
    model.learn(16)
    assert model.rollout_buffer.batch().masks is None
    assert model.rollout_buffer.action_masks is None


def test_masks_are_turned_off():
    model = build(use_masking=False)
    with pytest.raises(RuntimeError, match="is forbidden"):
        model.learn(200)
    assert model.rollout_buffer.action_masks is None
    with pytest.raises(RuntimeError, match="is forbidden"):
        play(model, VecMonitor(model.env), 8)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_a_wrong_switch_is_refused(value):
    with pytest.raises(ConfigurationError, match="use_masking must be True or False"):
        build(use_masking=value)


def test_masks_that_come_with_another_environment_are_used():
    model = make(small_env(), n_steps=8)
    model.learn(16)
    model.set_env(small_env(cls=Strict))
    model.learn(200, reset_num_timesteps=False)
    assert model.rollout_buffer.action_masks is not None
    model.set_env(small_env())
    model.learn(16, reset_num_timesteps=False)
    assert model.rollout_buffer.action_masks is None


def test_a_mask_that_leaves_no_action_stops_before_anything_is_learned_from_it():
    model = build()
    env = model.env.envs[1].unwrapped
    env.action_masks = lambda: np.zeros(3, bool) if env.steps == 4 else env.allowed
    before = parameters(model)
    with pytest.raises(
        WorkerError, match=r"^Environment 1 returned .* step 8 a mask that leaves no action"
    ):
        model.learn(100)
    assert same(parameters(model), before)


def test_box_actions_have_no_masks():
    class Masked(Strict):
        def __init__(self, observation_space, action_space, *args, **kwargs):
            super().__init__(observation_space, ACTIONS["Discrete"], *args, **kwargs)
            self.action_space = ACTIONS["Box"]

    with pytest.raises(ConfigurationError, match="not for a Box"):
        make(small_env("Box", cls=Masked))
    make(small_env("Box", cls=Masked), use_masking=False)


# ------------------------------------------------------------------ acting


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("action", KINDS)
def test_predictions_are_masked(action, deterministic):
    model = build(action)
    nn.init.normal_(model.policy.action_net.weight, std=100.0)
    env = model.env.envs[0].unwrapped
    for _ in range(20):
        env._draw()
        obs = model.observation_space.sample()
        one, _ = model.predict(obs, deterministic=deterministic, action_masks=env.action_masks())
        assert one.shape == model.action_space.shape
        both, _ = model.predict(
            np.stack([obs, -obs]), deterministic=deterministic, action_masks=[env.allowed] * 2
        )
        for chosen in (one, *both):
            assert env.allowed[taken(chosen, model.action_space)].all()


def test_a_dict_is_predicted_on_with_masks():
    model = build(policy="MultiInputPolicy")
    obs = MIXED.sample()
    assert model.predict(obs, action_masks=[False, True, False])[0] == 1


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ([True] * 3, "1 action masks were given for 2 observations"),
        ([[True] * 3] * 3, "3 action masks were given for 2"),
        ([[True] * 3, [False] * 3], "for observation 1, a mask that leaves no action"),
        ([True] * 4, "where 3 are needed"),
    ],
)
def test_masks_that_fit_no_prediction_are_refused(masks, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        build().predict(np.zeros((2, 3), np.float32), action_masks=masks)
    assert "\n" not in str(caught.value)


def test_evaluations_of_sb3_contrib_and_ours_take_masks():
    model = build()
    assert len(play(model, VecMonitor(model.env), 4).returns) == 4
    evaluate_policy(model, Monitor(Strict(length=5)), 3)
    callback = MaskableEvalCallback(Monitor(Strict(length=5)), n_eval_episodes=2, eval_freq=8, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
        model.learn(32, callback)
    assert callback.last_mean_reward > -np.inf


# ------------------------------------------------------------------ files


def test_a_saved_model_goes_on_with_masks(tmp_path):
    model = build()
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = ACKTR.load(tmp_path / "model", env=small_env(cls=Strict))
    assert loaded.use_masking
    assert same(parameters(loaded), parameters(model))
    loaded.learn(100)
    off = ACKTR.load(tmp_path / "model", use_masking=False)
    assert not off.use_masking
    off.save(tmp_path / "off")
    assert not ACKTR.load(tmp_path / "off").use_masking
