"""Rollout storage and collection, against SB3's own and against numbers worked by hand."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from acktr import ACKTR, NaturalCritic
from acktr.envs import make_vec_env
from acktr.errors import DivergenceError
from acktr.rollout import later
from acktr.rollout.batch import RolloutBatch
from acktr.rollout.storage import RolloutStorage
from tests.helpers.small_envs import ACTIONS, IMAGE, MIXED, VECTOR, small_env


def fill(storage, rewards, values, starts, last_values, last_dones):
    storage.rewards[:] = rewards
    storage.values[:] = values
    storage.episode_starts[:] = starts
    storage.compute_returns_and_advantage(torch.as_tensor(last_values), np.asarray(last_dones))
    return storage.batch()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_those_of_stable_baselines(gae_lambda, seed):
    rng = np.random.default_rng(seed)
    shape = n_steps, n_envs = 17, 5
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    starts = (rng.random(shape) < 0.2).astype(np.float32)
    last_values, last_dones = rng.normal(size=n_envs).astype(np.float32), rng.random(n_envs) < 0.5
    options = {"gae_lambda": gae_lambda, "gamma": 0.97, "n_envs": n_envs}
    theirs = RolloutBuffer(n_steps, VECTOR, ACTIONS["Discrete"], "cpu", **options)
    theirs.rewards[:], theirs.values[:], theirs.episode_starts[:] = rewards, values, starts
    theirs.compute_returns_and_advantage(torch.as_tensor(last_values), last_dones)
    ours = RolloutStorage(n_steps, VECTOR, ACTIONS["Discrete"], "cpu", **options)
    batch = fill(ours, rewards, values, starts, last_values, last_dones)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(batch.advantages.view(shape), theirs.advantages, **close)
    np.testing.assert_allclose(batch.returns.view(shape), theirs.returns, **close)


def test_k_step_returns_worked_by_hand():
    storage = RolloutStorage(3, VECTOR, ACTIONS["Discrete"], gae_lambda=1.0, gamma=0.5, n_envs=2)
    # Environment 0 goes on; the episode of environment 1 ends with its second step.
    batch = fill(
        storage,
        rewards=[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]],
        values=[[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]],
        starts=[[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]],
        last_values=[8.0, 8.0],
        last_dones=[False, False],
    )
    returns = [
        [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 1 + 0.5 * 2],
        [2 + 0.5 * (4 + 0.5 * 8), 2.0],
        [4 + 0.5 * 8, 4 + 0.5 * 8],
    ]
    assert batch.returns.view(3, 2).tolist() == returns
    assert batch.advantages.view(3, 2)[0].tolist() == [4.0 - 10.0, 2.0 - 10.0]


def test_one_step_advantages_worked_by_hand():
    storage = RolloutStorage(2, VECTOR, ACTIONS["Discrete"], gae_lambda=0.0, gamma=0.5, n_envs=1)
    batch = fill(storage, [[1.0], [2.0]], [[3.0], [5.0]], [[1.0], [0.0]], [7.0], [True])
    assert batch.advantages.tolist() == [1 + 0.5 * 5 - 3, 2 - 5]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_storage_keeps_shapes_and_types(observation, action):
    env = small_env(action, observation, n_envs=2)
    policy = {VECTOR.shape: "MlpPolicy", IMAGE.shape: "CnnPolicy"}.get(
        observation.shape, "MultiInputPolicy"
    )
    model = ACKTR(policy, env, n_steps=4, seed=0)
    model._setup_learn(8)
    model.collect_rollouts(env, model._init_callback(None), model.rollout_buffer, 4)
    batch = model.rollout_buffer.batch()
    parts = (
        (batch.observations, observation)
        if not isinstance(batch.observations, dict)
        else (batch.observations["image"], IMAGE)
    )
    assert parts[0].shape == (8, *parts[1].shape)
    assert parts[0].dtype == (torch.float32 if parts[1] is VECTOR else torch.uint8)
    assert batch.actions.shape == ((8,) if action == "Discrete" else (8, 2))
    assert batch.values.shape == batch.advantages.shape == batch.returns.shape == (8,)


def test_bytes_that_are_normalised_keep_their_fractions():
    """``VecNormalize`` leaves the space of such observations as it was: bytes."""
    env = VecNormalize(small_env(observation=spaces.Box(0, 255, (3,), np.uint8)))
    model = ACKTR("MlpPolicy", env, n_steps=4, seed=0)
    model._setup_learn(8)
    first = model._last_obs.copy()
    model.collect_rollouts(env, model._init_callback(None), model.rollout_buffer, 4)
    assert np.array_equal(model.rollout_buffer.observations[0], first)
    assert (first % 1.0).any()


class Own(ActorCriticPolicy):
    """Nothing but a class that the collector cannot know."""

    def get_distribution(self, obs):
        return super().get_distribution(obs)


ENVIRONMENTS = {
    "CartPole": lambda: make_vec_env("CartPole-v1", n_envs=3, seed=5),
    "truncated": lambda: small_env("Box", ends="truncated", seed=5),
    "terminated": lambda: small_env("MultiDiscrete", ends="terminated", seed=5),
    "both": lambda: small_env("MultiBinary", ends="both", seed=5),
    "dict": lambda: small_env("Discrete", MIXED, ends="both", seed=5),
    "pixels": lambda: small_env("Discrete", IMAGE, ends="both", seed=5),
    "normalised": lambda: VecNormalize(small_env("Box", ends="both", seed=5)),
}
CASES = [
    (name, {"dict": "MultiInputPolicy", "pixels": "CnnPolicy"}.get(name, "MlpPolicy"))
    for name in ENVIRONMENTS
]
CASES += [(name, Own) for name in ("CartPole", "truncated", "terminated", "both", "normalised")]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_rollout_is_that_of_stable_baselines(name, policy):
    n_steps = 40 if name == "CartPole" else 13

    def start():
        model = ACKTR(policy, ENVIRONMENTS[name](), n_steps=n_steps, gamma=0.9, seed=3)
        _, callback = model._setup_learn(1000)
        return model, callback

    ours, callback = start()
    theirs, their_callback = start()
    kind = DictRolloutBuffer if name == "dict" else RolloutBuffer
    buffer = kind(
        n_steps,
        theirs.observation_space,
        theirs.action_space,
        "cpu",
        gae_lambda=theirs.gae_lambda,
        gamma=theirs.gamma,
        n_envs=theirs.n_envs,
    )
    close = {"rtol": 1e-4, "atol": 1e-5}
    for _ in range(2):
        torch.manual_seed(0)
        assert ours.collect_rollouts(ours.env, callback, ours.rollout_buffer, n_steps)
        torch.manual_seed(0)
        OnPolicyAlgorithm.collect_rollouts(theirs, theirs.env, their_callback, buffer, n_steps)
        mine = ours.rollout_buffer
        if name == "dict":
            for key, stored in mine.observations.items():
                np.testing.assert_array_equal(stored, buffer.observations[key])
        else:
            np.testing.assert_array_equal(mine.observations, buffer.observations)
        np.testing.assert_array_equal(mine.actions, buffer.actions, strict=True)
        np.testing.assert_array_equal(mine.episode_starts, buffer.episode_starts)
        np.testing.assert_allclose(mine.rewards, buffer.rewards, **close)
        np.testing.assert_allclose(mine.values, buffer.values, **close)
        np.testing.assert_allclose(mine.advantages, buffer.advantages, **close)
        np.testing.assert_allclose(mine.returns, buffer.returns, **close)
        np.testing.assert_allclose(mine.log_probs, buffer.log_probs, **close)
        assert torch.equal(mine.batch().returns, torch.as_tensor(mine.returns).flatten())
        assert ours.num_timesteps == theirs.num_timesteps
        assert len(ours.ep_info_buffer) == len(theirs.ep_info_buffer)


class Names(BaseCallback):
    """Notes which local variables there are, of which type and shape."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _note(self):
        # What is computed when it is read is no tensor before.
        now = {k: later.now(v) for k, v in self.locals.items()}
        self.seen.append({k: (type(v), getattr(v, "shape", None)) for k, v in now.items()})

    def _on_step(self):
        self._note()
        return True

    def _on_rollout_end(self):
        self._note()


@pytest.mark.parametrize("action", ACTIONS)
def test_callbacks_find_the_local_variables_of_stable_baselines(action):
    ours, theirs = Names(), Names()
    ACKTR("MlpPolicy", small_env(action), n_steps=4, seed=0).learn(8, ours)
    A2C("MlpPolicy", small_env(action), n_steps=4, seed=0).learn(8, theirs)
    # What a loop of theirs over the environments leaves behind.
    absent = {"idx", "done", "terminal_obs", "terminal_value"}
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        assert other.keys() - mine.keys() <= absent
        for name in mine.keys() & other.keys() - {"self", "rollout_buffer"}:
            assert mine[name] == other[name], name


def test_n_steps_counts_as_in_stable_baselines():
    class Count(Names):
        def _note(self):
            self.seen.append(self.locals["n_steps"])

    for algorithm in (ACKTR, A2C):
        count = Count()
        algorithm("MlpPolicy", small_env(), n_steps=3, seed=0).learn(6, count)
        assert count.seen == [0, 1, 2, 3]


@pytest.mark.parametrize("observation", [VECTOR, MIXED], ids=["vector", "dict"])
def test_other_memory_than_a_cpus_is_written_by_torch(observation):
    storages = []
    for direct in (True, False):
        env = small_env("Box", observation, ends="both")
        policy = "MlpPolicy" if observation is VECTOR else "MultiInputPolicy"
        model = ACKTR(policy, env, n_steps=6, seed=0, device="cpu")
        storage = model.rollout_buffer
        if not direct:
            for slots in (*storage._slots.values(), storage._action_slots):
                slots._array = None
        _, callback = model._setup_learn(12)
        model.collect_rollouts(env, callback, storage, 6)
        storages.append(storage.batch())
    mine, other = storages
    assert torch.equal(mine.actions, other.actions)
    assert torch.equal(mine.returns, other.returns)
    pairs = [(mine.observations, other.observations)]
    if observation is MIXED:
        pairs = [(x, other.observations[key]) for key, x in mine.observations.items()]
    assert all(torch.equal(*pair) for pair in pairs)


def test_only_a_cut_by_time_is_bootstrapped():
    rewards = {}
    for ends in ("truncated", "terminated"):
        env = small_env("Discrete", n_envs=1, length=4, ends=ends)
        critic = NaturalCritic(normalize_targets=False)
        model = ACKTR("MlpPolicy", env, n_steps=4, gamma=0.5, critic=critic, seed=0)
        with torch.no_grad():  # V = 3 everywhere
            model.policy.value_net.weight.zero_()
            model.policy.value_net.bias.fill_(3.0)
        _, callback = model._setup_learn(4)
        model.collect_rollouts(env, callback, model.rollout_buffer, 4)
        rewards[ends] = model.rollout_buffer.rewards.flatten()
    difference = rewards["truncated"] - rewards["terminated"]
    assert difference.tolist() == [0.0, 0.0, 0.0, 0.5 * 3.0]


def test_actions_outside_the_bounds_are_clipped_for_the_environment_only():
    seen = []
    env = small_env("Box", n_envs=1)
    step = env.envs[0].step
    env.envs[0].step = lambda action: (seen.append(action.copy()), step(action))[1]
    model = ACKTR("MlpPolicy", env, n_steps=30, seed=0, policy_kwargs={"log_std_init": 0.0})
    _, callback = model._setup_learn(30)
    model.collect_rollouts(env, callback, model.rollout_buffer, 30)
    stored = model.rollout_buffer.actions[:, 0]
    assert np.abs(stored).max() > 1.0
    np.testing.assert_array_equal(np.clip(stored, -1, 1), seen)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("bad", ["reward", "observation"])
def test_a_value_that_is_not_finite_stops_before_any_parameter_changes(bad, normalised):
    env = small_env("Box", n_envs=3)
    broken = env.envs[1]
    broken.bad, broken.bad_step = bad, 13
    if normalised:
        env = VecNormalize(env)
    model = ACKTR("MlpPolicy", env, n_steps=8, seed=0)
    model.learn(24)
    before = {name: p.clone() for name, p in model.policy.state_dict().items()}
    factors = {
        name: [x.clone() for x in pair] for name, pair in model.policy.optimizer.factors().items()
    }
    with pytest.raises(DivergenceError, match=f"{bad}.*environment 1 at step 36") as caught:
        model.learn(24, reset_num_timesteps=False)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    for name, p in model.policy.state_dict().items():
        assert torch.equal(p, before[name]), name
    for name, pair in model.policy.optimizer.factors().items():
        assert all(map(torch.equal, pair, factors[name]))


def test_infinity_is_not_finite_either():
    env = small_env("Discrete", n_envs=2)
    step = env.envs[1].step
    env.envs[1].step = lambda action: (step(action)[0], float("inf"), False, False, {})
    with pytest.raises(DivergenceError, match=r"reward.*environment 1 at step 0"):
        ACKTR("MlpPolicy", env, n_steps=8, seed=0).learn(16)


@pytest.mark.parametrize("std", [1.0, "adaptive"])
def test_the_last_observation_of_a_cut_episode_is_watched_too(std):
    env = small_env("Discrete", n_envs=2, length=5)
    env.envs[1].bad, env.envs[1].bad_step = "observation", 6  # where its first episode is cut
    model = ACKTR("MlpPolicy", env, n_steps=8, critic=NaturalCritic(std=std), seed=0)
    before = [p.clone() for p in model.policy.parameters()]
    with pytest.raises(DivergenceError, match=r"observation.*environment 1 at step 10"):
        model.learn(16)
    assert all(map(torch.equal, before, model.policy.parameters()))


def numbered(n):
    """A batch whose every part says which sample it belongs to."""
    numbers = torch.arange(float(n))
    observations = {"image": numbers.view(n, 1, 1), "vector": numbers.view(n, 1)}
    return RolloutBatch(observations, numbers, numbers, numbers, numbers, masks=numbers)


def consistent(batch):
    images, vectors = batch.observations["image"], batch.observations["vector"]
    return all(torch.equal(x.flatten(), batch.returns) for x in (images, vectors, *batch[1:]))


def test_minibatches_go_through_all_samples_before_one_comes_again():
    chosen, parts = zip(*numbered(10).minibatches(4, 6), strict=True)
    assert all(torch.equal(c.float(), part.returns) for c, part in zip(chosen, parts, strict=True))
    assert [len(part.returns) for part in parts] == [4, 4, 2, 4, 4, 2]
    for half in (parts[:3], parts[3:]):
        seen = torch.cat([part.returns for part in half])
        assert torch.equal(seen.sort().values, torch.arange(10.0))
    assert all(map(consistent, parts))
    assert not torch.equal(parts[0].returns, parts[3].returns)


def test_without_a_size_every_minibatch_is_the_whole_batch():
    batch = numbered(5)
    assert all(part is batch for _, part in batch.minibatches(None, 3))


@pytest.mark.parametrize(("factor", "size"), [(1, 10), (3, 3), (100, 1)])
def test_a_sample_is_a_part_without_repetition(factor, size):
    part = numbered(10).sample(factor)
    assert len(part.returns) == len(part.returns.unique()) == size
    assert consistent(part)
