"""Several ranks: the same update as one with all samples, the same moments, one decision for all."""

import contextlib
import weakref

import numpy as np
import pytest
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from acktr import AdamCritic, Natural, NaturalCritic, distributed
from acktr.errors import ConfigurationError, DivergenceError
from acktr.kfac import curvature, likelihood
from acktr.rollout.batch import RolloutBatch
from acktr.schedules import Horizon, Linear
from tests.helpers.masked_envs import with_masks
from tests.helpers.models import POLICIES, B, Recorded, batch_of, make
from tests.helpers.processes import run_in_processes, signs_of_values
from tests.helpers.small_envs import VECTOR, small_env

CASES = {
    "running advantages": ("MlpPolicy", "Box", {"normalize_advantage": "running"}),
    "separate": ("MlpPolicy", "Box", {"critic": NaturalCritic(n_updates=2, std="adaptive")}),
    "entropy": ("MlpPolicy", "MultiDiscrete", {"ent_coef": 0.01}),
    "conjugate gradients": ("MlpPolicy", "Discrete", {"natural": Natural(cg_iterations=2)}),
    "first-order critic": ("MlpPolicy", "Discrete", {"critic": AdamCritic(n_updates=2)}),
    "shared trunk": ("CnnPolicy", "Discrete", {}),
    "normalised values": ("MlpPolicy", "Box", {"critic": NaturalCritic(normalize_targets=True)}),
    "normalised values, shared trunk": (
        "CnnPolicy",
        "Discrete",
        {"critic": NaturalCritic(normalize_targets=True)},
    ),
    "shared trunk, first-order critic": ("CnnPolicy", "Discrete", {"critic": AdamCritic()}),
    "masked": ("MlpPolicy", "MultiDiscrete", {"ent_coef": 0.01}),
    "masked, shared trunk": ("CnnPolicy", "Discrete", {}),
    "masked, conjugate gradients": ("MlpPolicy", "MultiBinary", {"natural": Natural(cg_iterations=2)}),
}


def update(rank, size, names):
    """Three updates on this rank's part of one batch, for each case, in float64."""
    likelihood.random_signs = curvature.random_signs = signs_of_values
    torch.Tensor.float = torch.Tensor.double  # SB3 turns observations into float32
    found = {}
    for name in names:
        policy, action, options = CASES[name]
        observation, policy_kwargs = POLICIES[policy]
        env = small_env(action, observation)
        model = make(env, policy, policy_kwargs=policy_kwargs, **options)
        model.policy.double()
        model.policy.features_extractor.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        model.action_space.seed(0)
        batch = batch_of(model)
        if name.startswith("masked"):
            batch = with_masks(batch, model.action_space)
        part = slice(rank * B // size, (rank + 1) * B // size)
        own = RolloutBatch(*(None if x is None else x[part] for x in batch))
        model.rollout_buffer.batch = lambda own=own: own
        model._setup_learn(1000)
        for _ in range(3):
            model.train()
        found[name] = (
            [p.detach() for p in (*model.policy.parameters(), *model.policy.buffers())],
            model.parts.trust_region.scale,
            model.parts.value_scale.bellman_std,
        )
    return found


@pytest.fixture(scope="module")
def updated():
    return {size: run_in_processes(size, update, list(CASES)) for size in (1, 2, 4)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_ranks_with_parts_of_a_batch_make_the_update_of_one_with_all_of_it(name, size, updated):
    parameters, kl_scale, bellman_std = updated[1][0][name]
    for rank in updated[size]:
        own, own_scale, own_std = rank[name]
        torch.testing.assert_close(own, parameters, atol=1e-10, rtol=0)
        assert own_scale == pytest.approx(kl_scale, abs=1e-10)
        assert own_std == pytest.approx(bellman_std, abs=1e-10)


def normalizing():
    return VecNormalize(small_env("Discrete", VECTOR))


def learn_and_merge(rank, size):
    """Whole rollouts of environments that differ, then the moments and parameters of each rank."""
    model = make(small_env("Discrete", VECTOR), "MlpPolicy", seed=0)
    env = normalizing()
    env.obs_rms.mean[:] = rank  # as after a reset of its own: the first rank's count
    model.set_env(env)
    model.learn(64 * size)
    seen = env.obs_rms.mean.tolist(), env.obs_rms.count, float(env.ret_rms.var)
    return seen, [p.detach() for p in model.policy.parameters()], model.num_timesteps


def test_ranks_learn_together():
    (seen, parameters, steps), (seen_too, parameters_too, steps_too) = run_in_processes(
        2, learn_and_merge
    )
    assert seen == seen_too
    torch.testing.assert_close(parameters, parameters_too, atol=0, rtol=0)
    assert steps == steps_too >= 128


def merge(rank, size):
    rng = np.random.default_rng(rank)
    env = normalizing()
    shared = distributed.SharedMoments(env)
    batches = []
    for _ in range(3):
        batches.append(rng.normal(5.0 * rank, 1.0 + rank, (7, *VECTOR.shape)))
        env.obs_rms.update(batches[-1])
        env.ret_rms.update(batches[-1][:, 0])
        distributed.vote(distributed.GO_ON, (), shared)
    env_moments = [(m.mean.tolist(), m.var.tolist(), m.count) for m in (env.obs_rms, env.ret_rms)]
    return env_moments, [torch.from_numpy(x) for x in batches]


def test_moments_are_those_of_all_that_was_seen():
    ranks = run_in_processes(3, merge)
    assert ranks[0][0] == ranks[1][0] == ranks[2][0]
    everything = np.concatenate([x.numpy() for _, batches in ranks for x in batches])
    expected = RunningMeanStd(shape=VECTOR.shape)
    expected.update(everything)
    mean, var, count = ranks[0][0][0]
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-10)
    np.testing.assert_allclose(var, expected.var, rtol=1e-10)
    assert count == pytest.approx(expected.count)


def decide(rank, size):
    said = [distributed.vote(distributed.STOP if rank else distributed.GO_ON, (rank > 0, False))]
    try:
        distributed.vote(distributed.FAILED if rank else distributed.GO_ON, (False, False))
    except DivergenceError as error:
        said.append(str(error))
    moments = distributed.moments(torch.arange(4.0) + 10 * rank)()
    try:
        distributed.check_same([torch.ones(3)])
        distributed.check_same([torch.ones(3) + rank])
    except DivergenceError as error:
        said.append(str(error))
    flags = distributed.any_of(bool(rank), not rank, False)
    return said, moments, flags, distributed.any_of(rank > 1)


def test_one_decision_for_all():
    (first, a, *flags), (second, b, *flags_too) = run_in_processes(2, decide)
    assert flags == flags_too == [(True, True, False), (False,)]
    assert first[0] == second[0] == (distributed.STOP, (True, False))
    assert first[1].startswith("Rank 1 of 2 failed")
    assert len(second) == 2  # who fails hears of it from its own error
    assert "different parameters" in first[2] == second[1]
    both = torch.cat([torch.arange(4.0), torch.arange(4.0) + 10])
    torch.testing.assert_close([a, b], [(both.mean(), both.std())] * 2)


def see_endings(rank, size):
    model = make(
        small_env(ends=("truncated", "terminated")[rank]), cls=Recorded, gamma=Horizon(0.9, 0.99)
    )
    model.learn(4 * 16 * size)
    return model.logged("gamma").tolist()


def test_an_episode_that_ends_early_on_one_rank_keeps_the_horizon_of_all():
    first, second = run_in_processes(2, see_endings)
    np.testing.assert_allclose(first, 1 - 0.1 * 0.1 ** np.array([0, 0.25, 0.5, 0.75]))
    assert first == second


def fade(rank, size):
    env = small_env("Box")
    model = make(
        env,
        cls=Recorded,
        std_scale=Linear(1, 0.5),
        learning_rate=1e-9,
        policy_kwargs={"log_std_init": 0.0},
    )
    model.learn(2 * 16 * size)
    return model.logged("std").tolist()


def test_noise_fades_with_the_steps_of_all_ranks():
    first, second = run_in_processes(2, fade)
    np.testing.assert_allclose(first, [0.75, 0.5], rtol=1e-5)
    assert first == second


def fail(rank, size):
    """One rank's environment returns a NaN; the other stops too, before the update."""
    model = make(small_env("Discrete", VECTOR), "MlpPolicy")
    env = model.env.envs[0]
    if rank:
        step = env.step
        env.step = lambda action: (step(action)[0], float("nan"), *step(action)[2:])
    before = [p.detach().clone() for p in model.policy.parameters()]
    try:
        model.learn(1000)
    except DivergenceError as error:
        message = str(error)
    same = all(map(torch.equal, before, model.policy.parameters()))
    return message, same


def test_a_failure_of_one_rank_ends_all_before_the_update():
    (first, same), (second, same_too) = run_in_processes(2, fail)
    assert first.startswith("Rank 1 of 2 failed")
    assert second.startswith("A reward that is not finite")
    assert same
    assert same_too


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not distributed.start()
    assert (distributed.rank(), distributed.size(), distributed.group()) == (0, 1, None)
    assert distributed.own_seed(3, 8) == 3
    with distributed.joined():
        assert distributed.size() == 1


@pytest.mark.parametrize("error", [None, DivergenceError("stop")], ids=["done", "failed"])
def test_nothing_of_a_group_outlives_it(monkeypatch, error):
    """Its threads would abort a process whose interpreter shuts down under them."""
    launcher = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with contextlib.suppress(DivergenceError), distributed.joined("cpu"):
        group = weakref.ref(distributed.group())
        model = make()
        model.learn(16)
        if error is not None:
            raise error
    assert model.num_timesteps == 16
    assert group() is None
    assert distributed.group() is None
    with pytest.raises(RuntimeError, match="was destroyed"):
        model.kfac._comm.group  # noqa: B018  # a property that raises


def test_a_restart_does_not_hear_what_was_said_before(monkeypatch):
    """What a killed rank has left with the launcher must not be taken for an answer."""
    server, stores = torch.distributed.HashStore(), []
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: server)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda _, store, **__: stores.append(store)
    )
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "cheetah"}
    for attempt in ("0", "1", "1"):
        for name, value in {**launcher, "TORCHELASTIC_RESTART_COUNT": attempt}.items():
            monkeypatch.setenv(name, value)
        assert distributed.start("cpu")
        assert distributed.restarted() == (attempt == "1")
    stores[0].set("said", "0")
    assert not stores[1].check(["said"])
    stores[1].set("said", "1")
    assert stores[2].get("said") == b"1"


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), (distributed.TIMEOUT_VARIABLE, "soon")]
)
def test_wrong_variables_of_a_launcher_are_named(name, value, monkeypatch):
    for key, good in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"start with torchrun") as error:
        distributed.start()
    assert value in str(error.value)
