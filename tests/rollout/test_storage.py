"""The rollout storage in the place of SB3's buffer: what callbacks read and write there."""

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from acktr import ACKTR, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.rollout.later import Asked
from acktr.rollout.storage import RolloutStorage
from tests.helpers.models import make, parameters, same
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env


class At(BaseCallback):
    """Calls functions with the callback, at each step and at the end of each rollout."""

    def __init__(self, end=None, step=None, start=None):
        super().__init__()
        self.end, self.step, self.start, self.seen = end, step, start, []

    def _note(self, function):
        if function is not None:
            self.seen.append(function(self))

    def _on_rollout_start(self):
        self._note(self.start)

    def _on_step(self):
        self._note(self.step)
        return True

    def _on_rollout_end(self):
        self._note(self.end)


def both(action="Discrete", observation=VECTOR, **notes):
    """Let ACKTR and SB3's A2C learn from the same environments; return what was noted."""
    name = {VECTOR.shape: "MlpPolicy", IMAGE.shape: "CnnPolicy"}.get(
        getattr(observation, "shape", None), "MultiInputPolicy"
    )
    name = "MlpPolicy" if isinstance(observation, spaces.Discrete) else name
    seen = []
    for algorithm in (ACKTR, A2C):
        callback = At(**notes)
        env = small_env(action, observation, ends="both")
        algorithm(name, env, n_steps=6, seed=0, device="cpu").learn(24, callback)
        seen.append(callback.seen)
    return seen


def buffer(callback):
    return callback.model.rollout_buffer


def described(value):
    if isinstance(value, dict):
        return {key: described(x) for key, x in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__, [described(x) for x in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return type(value), value.dtype, value.shape
    return value


FIELDS = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns")
FIELDS += ("episode_starts", "full", "pos", "buffer_size", "n_envs", "obs_shape", "action_dim")
FIELDS += ("gae_lambda", "device", "observation_space", "action_space")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "observation",
    [VECTOR, IMAGE, MIXED, spaces.Discrete(5)],
    ids=["vector", "image", "dict", "discrete"],
)
def test_it_has_what_that_of_stable_baselines_has(action, observation):
    def look(callback):
        b = buffer(callback)
        parts = {n: described(getattr(b, n)) for n in FIELDS if n != "gae_lambda"}
        minibatches = [described(x) for x in b.get(5)]
        whole = described(next(iter(b.get())))
        flat = described(b.swap_and_flatten(b.rewards))
        return (
            parts,
            minibatches,
            whole,
            flat,
            b.size(),
            described(b.sample(3)),
            isinstance(b, RolloutBuffer),
        )

    # get() leaves SB3's arrays flattened: what they are is read first.
    ours, theirs = both(action, observation, end=look)
    if isinstance(observation, spaces.Dict):  # SB3's is no RolloutBuffer's sampler there
        assert [x[:5] for x in ours] == [x[:5] for x in theirs]
    else:
        assert ours == theirs


@pytest.mark.parametrize("observation", [VECTOR, MIXED], ids=["vector", "dict"])
def test_minibatches_hold_every_sample_once(observation):
    def look(callback):
        b = buffer(callback)
        samples = list(b.get(5))
        returns = torch.cat([x.returns for x in samples])
        assert sorted(returns.tolist()) == sorted(b.returns.flatten().tolist())
        for x in samples:
            torch.testing.assert_close(x.returns, x.advantages + x.old_values)
            own = callback.model.policy.evaluate_actions(x.observations, x.actions.squeeze(-1))
            torch.testing.assert_close(own[0].flatten(), x.old_values)
            torch.testing.assert_close(own[1], x.old_log_prob)

    both(observation=observation, end=look)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_a_step_knows_what_has_been_so_far(policy):
    """Also where the critic is asked for the whole rollout at its end alone."""
    env = small_env(observation=VECTOR if policy == "MlpPolicy" else IMAGE)

    def look(callback):
        b, n_steps = buffer(callback), callback.locals["n_steps"]
        assert (b.pos, b.full, b.size()) == (n_steps, False, n_steps)
        names = ("values", "log_probs", "rewards", "actions", "observations", "episode_starts")
        for name in names:
            assert not getattr(b, name)[n_steps:].any(), name
        now = callback.locals
        return [np.array(getattr(b, n)[:n_steps]) for n in names[:2]], now["values"], now["log_probs"]

    model = make(env, policy, n_steps=6, critic=NaturalCritic(normalize_targets=False))
    callback = At(step=look, end=lambda c: (np.array(buffer(c).values), np.array(buffer(c).log_probs)))
    model.learn(24, callback)
    for first in (0, 7):
        *steps, (values, log_probs) = callback.seen[first : first + 7]
        assert values.all()
        assert log_probs.all()
        for n, (so_far, value, log_prob) in enumerate(steps):
            np.testing.assert_allclose(so_far[0], values[:n], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(so_far[1], log_probs[:n], rtol=1e-4, atol=1e-6)
            assert (value.shape, log_prob.shape) == ((2, 1), (2,))


def test_looking_changes_nothing_and_costs_only_those_who_look(monkeypatch):
    trained, calls = [], []
    ask = Asked.log_probs
    monkeypatch.setattr(Asked, "log_probs", lambda *args: calls.append(1) or ask(*args))

    def look(callback):
        callback.locals["values"].mean(), callback.locals["log_probs"].sum()
        return buffer(callback).log_probs.sum() + buffer(callback).values.sum()

    for callback in (None, At(step=look)):
        model = make(small_env("Box"), n_steps=6)
        model.learn(24, callback)
        trained.append(parameters(model))
        if callback is None:
            assert not calls
    assert calls
    assert same(*trained)


def test_what_is_written_is_what_is_learned_from():
    def change(callback):
        b = buffer(callback)
        b.advantages += 1.0
        b.returns[:] = 7.0
        b.values *= 0.0
        b.actions = np.zeros_like(b.actions)
        b.observations[0] = 0.5
        b.rewards += 10.0

    model = make(n_steps=6)
    before = []
    callback = At(end=lambda c: before.append(np.array(buffer(c).advantages)) or change(c))
    batches = []
    model._setup_learn(12)
    model.collect_rollouts(model.env, model._init_callback(callback), model.rollout_buffer, 6)
    batches.append(model.rollout_buffer.batch())
    batch = batches[0]
    np.testing.assert_allclose(batch.advantages.view(6, 2), before[0] + 1.0, rtol=1e-6)
    assert set(batch.returns.tolist()) == {7.0}
    assert not batch.values.any()
    assert not batch.actions.any()
    assert set(batch.observations[:2].flatten().tolist()) == {0.5}
    assert not np.array_equal(model.rollout_buffer.rewards, 0)


def test_advantages_may_be_computed_again_from_other_rewards():
    """Intrinsic rewards, added when the rollout is complete."""

    def again(callback):
        b = buffer(callback)
        before = b.returns.copy()
        b.rewards += 10.0
        b.compute_returns_and_advantage(callback.locals["values"], callback.locals["dones"])
        np.testing.assert_allclose(b.returns, b.advantages + b.values, rtol=1e-6)
        assert (b.returns > before + 9.0).all()
        return b.returns.copy()

    callback = At(end=again)
    model = make(n_steps=6)
    model.learn(12, callback)
    assert np.array_equal(model.rollout_buffer.batch().returns.view(6, 2), callback.seen[0])


def test_arrays_that_somebody_keeps_stay_what_they_were():
    names = ("observations", "actions", "values", "advantages", "returns", "rewards", "log_probs")
    callback = At(
        end=lambda c: [(getattr(buffer(c), n), np.array(getattr(buffer(c), n))) for n in names]
    )
    make(small_env("Box"), n_steps=6).learn(36, callback)
    assert len(callback.seen) == 3
    for rollout in callback.seen:
        for kept, copied in rollout:
            assert np.array_equal(kept, copied)
    assert not np.array_equal(callback.seen[0][0][0], callback.seen[1][0][0])


def test_what_nobody_asked_for_is_unknown_once_the_policy_has_learned():
    model = make(n_steps=6)
    model.learn(12)
    with pytest.raises(ConfigurationError, match="read them in _on_step or _on_rollout_end"):
        model.rollout_buffer.log_probs.mean()
    model.learn(12, At(end=lambda c: buffer(c).log_probs))
    assert model.rollout_buffer.log_probs.all()  # asked for in time


def test_what_somebody_kept_is_what_it_was_before_the_policy_learned():
    kept = []
    model = make(n_steps=6, critic=NaturalCritic(normalize_targets=False))
    note = {"step": lambda c: kept.append((c.locals["values"], c.locals["log_probs"]))}
    rollouts = At(end=lambda c: (buffer(c).values.copy(), buffer(c).log_probs.copy()), **note)
    model.learn(24, rollouts)
    seen = [x for x in rollouts.seen if x is not None]
    for (values, log_probs), steps in zip(seen, (kept[:6], kept[6:]), strict=True):
        for step, (value, log_prob) in enumerate(steps):
            np.testing.assert_allclose(value.flatten(), values[step], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(log_prob, log_probs[step], rtol=1e-4, atol=1e-6)


def test_what_nobody_keeps_is_never_computed():
    calls = []
    model = make(n_steps=6, critic=NaturalCritic(n_updates=4))
    for name in ("evaluate_actions", "predict_values"):
        ask = getattr(model.policy, name)
        setattr(model.policy, name, lambda *x, n=name, ask=ask: calls.append(n) or ask(*x))
    model.learn(36, At(step=lambda c: None))
    # Of the whole rollout, of what follows it, and of the ends that were cut; then the updates.
    assert "evaluate_actions" not in calls
    assert calls.count("predict_values") <= 3 * (3 + 4)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", [VECTOR, MIXED], ids=["vector", "dict"])
def test_the_loop_of_stable_baselines_fills_it_too(action, observation):
    stored = []
    for own in (True, False):
        name = "MlpPolicy" if observation is VECTOR else "MultiInputPolicy"
        model = ACKTR(name, small_env(action, observation, ends="both"), n_steps=6, seed=0, gamma=0.99)
        _, callback = model._setup_learn(24)
        kind = DictRolloutBuffer if observation is MIXED else RolloutBuffer
        kind = RolloutStorage if own else kind
        of = (6, model.observation_space, model.action_space, "cpu", 0.95, 0.99, 2)
        storage = kind(*of)
        for _ in range(2):
            torch.manual_seed(0)
            OnPolicyAlgorithm.collect_rollouts(model, model.env, callback, storage, 6)
        stored.append(storage)
    mine, other = stored
    for name in ("actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts"):
        np.testing.assert_allclose(getattr(mine, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    assert mine.full
    with pytest.raises(AssertionError, match="not complete"):
        next(RolloutStorage(*of).get())


def test_on_another_device_arrays_are_copies_that_say_so(monkeypatch):
    """Writing to them would be lost; setting them is not."""
    storage = RolloutStorage(3, VECTOR, ACTIONS["Box"], n_envs=2)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    storage._advantages = storage._advantages.as_subclass(Elsewhere)
    with pytest.raises(ValueError, match="read-only"):
        storage.advantages[0] = 1.0
    storage.advantages = storage.advantages + 1.0
    assert (storage.advantages == 1.0).all()


def test_counted_actions_are_of_the_type_of_their_space():
    callback = At(end=lambda c: np.bincount(buffer(c).actions.flatten(), minlength=3))
    make(n_steps=6).learn(12, callback)
    assert callback.seen[0].sum() == 12


def test_a_copy_is_its_own():
    model = make(n_steps=6)
    buffers = At(end=lambda c: (buffer(c).log_probs, pickle.dumps(buffer(c)), copy.deepcopy(buffer(c))))
    model.learn(12, buffers)
    log_probs, pickled, copied = buffers.seen[0]
    for other in (pickle.loads(pickled), copied):
        assert np.array_equal(other.log_probs, log_probs)
        other.rewards[:] = 5.0
        other.values[:] = 5.0
    assert not (model.rollout_buffer.rewards == 5.0).any()
    assert not (model.rollout_buffer.values == 5.0).any()


def test_n_steps_is_set_where_the_model_is_built():
    model = make(n_steps=6)
    model.learn(12)
    model.n_steps = 4
    with pytest.raises(ConfigurationError, match=r"n_steps is 4 now, and .* rollouts of 6"):
        model.learn(12)
