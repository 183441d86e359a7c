"""Learning with a memory: gradients, steps, files, ranks, and a task that needs it."""

import io
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError
from acktr.networks.recurrent import Memory, Sequences
from tests.helpers.models import same
from tests.helpers.small_envs import small_env

SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
T, N = 8, 2


def make(policy="MlpLstmPolicy", action="Discrete", **kwargs):
    own = {**SMALL, **kwargs.pop("policy_kwargs", {})}
    kwargs = {"n_steps": T, "seed": 0, "device": "cpu", **kwargs}
    return ACKTR(policy, small_env(action, n_envs=N, ends="both"), policy_kwargs=own, **kwargs)


def sequences(model, generator):
    """A rollout with resets inside, in float64."""
    starts = torch.tensor([[False, True], [False, False], [True, False], [False, True]] * 2)
    memory = Memory(
        *(
            tuple(torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in states)
            for states in model.policy.empty_memory(N)
        )
    )
    obs = torch.randn(T * N, 3, generator=generator, dtype=torch.float64)
    return Sequences(obs, starts, memory)


def episodes(told):
    """The same rollout as sequences of one episode each, and where they are."""
    for env in range(N):
        cuts = sorted({0, T, *told.starts[:, env].nonzero().flatten().tolist()})
        for begin, end in itertools.pairwise(cuts):
            rows = torch.arange(begin, end) * N + env
            memory = Memory(*(tuple(s[:, env : env + 1] for s in states) for states in told.memory))
            starts = torch.zeros(end - begin, 1, dtype=torch.bool)
            starts[0] = told.starts[begin, env]
            yield rows, Sequences(told.observations[rows], starts, memory)


@pytest.mark.parametrize("own", [{}, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy"])
def test_the_gradient_of_a_rollout_is_that_of_its_episodes_one_by_one(policy, own, monkeypatch):
    model = make(policy, critic=NaturalCritic(normalize_targets=False), policy_kwargs=own)
    model.policy.double()
    monkeypatch.setattr(model.policy, "_features", lambda obs, _: obs)  # SB3 makes them float32
    generator = torch.Generator().manual_seed(0)
    told = sequences(model, generator)
    actions = torch.randint(0, 3, (T * N,), generator=generator)
    weights = torch.randn(2, T * N, generator=generator, dtype=torch.float64)

    def gradient(parts):
        model.policy.zero_grad()
        for rows, part in parts:
            values, log_prob, _ = model.policy.evaluate_actions(part, actions[rows])
            loss = weights[0, rows] @ log_prob + weights[1, rows] @ values.flatten().square()
            loss.backward()
        return {name: p.grad.clone() for name, p in model.policy.named_parameters()}

    whole = gradient([(torch.arange(T * N), told)])
    apart = gradient(episodes(told))
    for name, grad in whole.items():
        assert grad.abs().max() > 0, name
        assert (grad - apart[name]).abs().max() < 1e-10, name


@pytest.mark.parametrize(
    ("policy", "kwargs"),
    [
        ("MlpLstmPolicy", {}),
        ("MlpGruPolicy", {"policy_kwargs": SHARED}),
        ("MlpLstmPolicy", {"policy_kwargs": {"enable_critic_lstm": False}}),
        ("MlpGruPolicy", {"critic": AdamCritic()}),
        (
            "MlpLstmPolicy",
            {
                "natural": Natural(kfac_kwargs={"curvature": {"approximation": "ekfac"}}),
                "noise_color": 0.5,
            },
        ),
        ("MlpGruPolicy", {"natural": Natural(kfac_kwargs={"curvature": {"recurrent": "diagonal"}})}),
        ("MlpLstmPolicy", {"policy_kwargs": {"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}}}),
    ],
    ids=["apart", "shared", "critic without", "Adam", "EKFAC", "diagonal", "two layers"],
)
def test_everything_learns_and_the_step_keeps_to_its_bound(policy, kwargs):
    model = make(policy, "Box", **kwargs)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(6 * T * N)
    assert [n for n, p in model.policy.named_parameters() if torch.equal(p, before[n])] == []
    assert 0 < model.logger.name_to_value["train/kl"] < 0.1
    assert model.outputs.shared == (kwargs.get("policy_kwargs") == SHARED)


@pytest.mark.parametrize(
    ("policy", "gates", "widths"),
    [
        (
            "MlpGruPolicy",
            3,
            {"weight_ih_l0": 3, "weight_hh_l0": 6, "weight_ih_l1": 6, "weight_hh_l1": 6},
        ),
        ("MlpLstmPolicy", 4, {"weight_l0": 3 + 6, "weight_l1": 6 + 6}),
    ],
)
def test_every_weight_of_the_memory_has_a_kronecker_block(policy, gates, widths):
    model = make(policy, policy_kwargs={"n_lstm_layers": 2}).learn(T * N)
    for kfac, memory in ((model.kfac, "lstm_actor"), (model.critic_optimizer, "lstm_critic")):
        for name, width in widths.items():
            A, S = kfac.factors()[f"{memory}.{name}"]
            assert A.shape == (width + 1, width + 1)  # and the bias
            assert S.shape == (gates * 6, gates * 6)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy"])
def test_a_file_has_the_policy_and_what_it_remembers(policy):
    model = make(policy).learn(3 * T * N)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = ACKTR.load(file, env=model.env, device="cpu", force_reset=False)
    assert type(loaded.policy) is type(model.policy)
    assert same(loaded._last_lstm_states, model._last_lstm_states)
    obs, state, other = model._last_obs, None, None
    for start in (True, False, False):
        starts = np.full(N, start)
        action, state = model.predict(obs, state, starts, deterministic=True)
        again, other = loaded.predict(obs, other, starts, deterministic=True)
        assert np.array_equal(action, again)
        assert all(map(np.array_equal, state, other))


def test_predict_takes_its_state_as_that_of_sb3_contrib_does():
    model = make()
    obs = np.ones((2, 3), np.float32)
    actions, state = model.predict(obs, deterministic=True)
    assert actions.shape == (2,)
    assert [s.shape for s in state] == [(1, 2, 6)] * 2
    _, later = model.predict(obs, state, np.array([False, True]), deterministic=True)
    assert not np.array_equal(later[0][:, 0], state[0][:, 0])  # it has seen them twice
    np.testing.assert_array_equal(later[0][:, 1], state[0][:, 1])  # and this one once
    action, state = model.predict(obs[0])
    assert action.shape == ()
    for wrong in (state, "x", 3, (1, 2), ("a", "b"), np.zeros(3)):
        with pytest.raises(ConfigurationError, match="state must be 2 arrays"):
            model.predict(obs, wrong)
    with pytest.raises(ConfigurationError, match="a flag for each of 2 environments, got 5"):
        model.predict(obs, None, np.zeros(5))


class Picky(FlattenExtractor):
    """Takes what environments show, and nothing made up."""

    def forward(self, observations):
        if (observations.abs() > 1).any() or not observations.any():
            raise ValueError("no observation of mine")
        return super().forward(observations)


@pytest.mark.parametrize("own", [{}, SHARED, {"enable_critic_lstm": False}], ids=str)
def test_a_memory_learns_where_no_observation_can_be_made_up(own, monkeypatch):
    made_up = [torch.full((2, 3), 5.0)]
    monkeypatch.setattr("acktr.networks.outputs.example_observations", lambda policy: iter(made_up * 9))
    kwargs = {"policy_kwargs": {**own, "features_extractor_class": Picky}}
    model = make("MlpGruPolicy", **kwargs)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(2 * T * N)
    assert [n for n, p in model.policy.named_parameters() if torch.equal(p, before[n])] == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"critic": NaturalCritic(batch_size=4)}, "critic.batch_size is 4"),
        ({"critic": AdamCritic(batch_size=4)}, "critic.batch_size is 4"),
        ({"natural": Natural(sub_sampling_factor=2)}, "natural.sub_sampling_factor is 2"),
        ({"natural": Natural(cg_iterations=2)}, "natural.cg_iterations needs the exact Fisher"),
        ({"critic": NaturalCritic(cg_iterations=2)}, "critic.cg_iterations needs the exact Fisher"),
        (
            {"natural": Natural(kfac_kwargs={"step_rule": {"exact_scaling": True}})},
            "natural.kfac_kwargs with exact_scaling needs the exact Fisher",
        ),
        (
            {"natural": Natural(kfac_kwargs={"curvature": {"recurrent": "lgm-1"}})},
            "sees whole sequences of MlpLstm",
        ),
        (
            {"natural": Natural(kfac_kwargs={"curvature": {"layers": {"lstm_actor": "diagonal"}}})},
            "approximation='diagonal', which would be of single steps",
        ),
        ({"natural": Natural(cuda_graphs=True)}, "natural.cuda_graphs=True is not possible"),
        ({"policy_kwargs": {"shared_lstm": True}}, "set one of them to False"),
        ({"policy_kwargs": {"lstm_hidden_size": 0}}, "lstm_hidden_size must be a whole number"),
        ({"policy_kwargs": {"lstm_kwargs": {"proj_size": 2}}}, "bias and dropout, not proj_size"),
        ({"policy_kwargs": {"lstm_kwargs": {"bias": "no"}}}, "bias in lstm_kwargs must be True or"),
        ({"policy_kwargs": {"lstm_kwargs": "dropout"}}, "lstm_kwargs must be a mapping"),
        ({"policy_kwargs": {"lstm_kwargs": {"num_layers": 2}}}, "are lstm_hidden_size and"),
        ({"policy_kwargs": {"lstm_kwargs": {1: 2}}}, "may have bias and dropout, not"),
        ({"policy_kwargs": {"shared_lstm": "no"}}, "shared_lstm must be True or False, got 'no'"),
        (
            {"policy_kwargs": {**SHARED, "share_features_extractor": False}},
            "needs a shared features extractor",
        ),
    ],
)
def test_what_does_not_go_with_memory_is_refused(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**kwargs)


# A task that needs it ----------------------------------------------------------------------------


class Corridor(gym.Env):
    """The first of its cells shows where to turn in the last (a T-maze of one's own accord walked)."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    length = 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.sign = 0, int(self.np_random.integers(2))
        return np.array([2.0 * self.sign - 1.0, 0.0], np.float32), {}

    def step(self, action):
        self.place += 1
        at_end = self.place > self.length
        obs = np.array([0.0, self.place / self.length if not at_end else 0.0], np.float32)
        return obs, float(at_end and action == self.sign), at_end, False, {}


def solve(policy, steps, **policy_kwargs):
    env = DummyVecEnv([Corridor] * 8)
    env.seed(0)
    model = ACKTR(
        policy, env, n_steps=64, seed=0, gamma=0.98, target_kl=0.03, ent_coef=0.01, device="cpu",
        policy_kwargs={"net_arch": [16], **policy_kwargs},
    )  # fmt: skip
    model.learn(steps)
    mean, _ = evaluate_policy(model, env, 40, warn=False)
    return mean


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy"])
def test_a_corridor_that_needs_memory_is_solved_by_those_who_have_it(policy):
    assert solve(policy, 12_000, lstm_hidden_size=16) > 0.95


@pytest.mark.slow
def test_without_memory_one_can_but_guess():
    assert solve("MlpPolicy", 12_000) < 0.8
