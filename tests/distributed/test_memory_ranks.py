"""Several ranks with policies that remember: each keeps its own states, all take the same step."""

import pytest
import torch

from acktr import ACKTR
from acktr.kfac import curvature, likelihood
from acktr.networks.recurrent import Memory, Sequences
from acktr.rollout.batch import RolloutBatch
from tests.helpers.masked_envs import Strict
from tests.helpers.processes import run_in_processes, signs_of_values
from tests.helpers.small_envs import small_env

T, N = 6, 4  # steps, and environments of all ranks together
SMALL = {"lstm_hidden_size": 6, "net_arch": [5]}


def build(n_envs, masked=False, seed=0):
    kind = {"cls": Strict} if masked else {}
    env = small_env("MultiDiscrete", n_envs=n_envs, seed=seed, ends="both", **kind)
    return ACKTR("MlpLstmPolicy", env, n_steps=T, seed=0, device="cpu", policy_kwargs=SMALL)


def learn(rank, size, masked):
    model = build(N, masked, seed=10 * rank)
    model.learn(3 * T * N * size)
    states = [s for states in model._last_lstm_states for s in states]
    return [p.detach() for p in model.policy.parameters()], states


@pytest.mark.parametrize("masked", [False, True], ids=["memory", "memory and masks"])
def test_ranks_learn_together_and_remember_their_own(masked):
    (first, own), (second, other) = run_in_processes(2, learn, masked)
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
    assert any(not torch.equal(p, q) for p, q in zip(own, other, strict=True))


def update(rank, size):
    """One update on this rank's environments of one rollout; how far each parameter went."""
    likelihood.random_signs = curvature.random_signs = signs_of_values
    model = build(N // size)
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(T, N, 3, generator=generator)
    starts = torch.rand(T, N, generator=generator) < 0.3
    actions = torch.randint(0, 2, (T, N, 2), generator=generator).float()
    numbers = torch.randn(3, T, N, generator=generator)
    memory = Memory(
        *(
            tuple(torch.randn(1, N, 6, generator=generator) for _ in states)
            for states in model.policy.empty_memory(N)
        )
    )
    own = slice(rank * N // size, (rank + 1) * N // size)
    told = Sequences(
        obs[:, own].flatten(0, 1),
        starts[:, own],
        Memory(*(tuple(s[:, own].contiguous() for s in states) for states in memory)),
    )
    batch = RolloutBatch(told, actions[:, own].flatten(0, 1), *(x[:, own].flatten() for x in numbers))
    model.rollout_buffer.batch = lambda: batch
    model._setup_learn(1000)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.train()
    return [p.detach() - q for p, q in zip(model.policy.parameters(), before, strict=True)]


def test_ranks_with_parts_of_a_rollout_nearly_make_the_update_of_one_with_all_of_it():
    """Nearly: whole sequences are put into the units of each rank's own inputs."""
    (whole,) = run_in_processes(1, update)
    parts, _ = run_in_processes(2, update)
    one, two = (torch.cat([x.flatten() for x in found]) for found in (whole, parts))
    assert one.norm() > 0
    assert (one - two).norm() < 0.05 * one.norm(), float((one - two).norm() / one.norm())
