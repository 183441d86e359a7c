"""Attention as memory, the example: a window is each prefix alone, and training sees what acted."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from acktr import ACKTR
from tests.helpers.models import same
from tests.helpers.small_envs import small_env

T, N, W = 9, 3, 4


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "attention.py"
    spec = importlib.util.spec_from_file_location("attention_example", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def make(example, **kwargs):
    own = {"lstm_hidden_size": 8, "net_arch": [5], "lstm_kwargs": {"window": W}}
    env = small_env("Discrete", n_envs=N, ends="both", seed=5)
    return ACKTR(
        example.MlpAttentionPolicy, env, n_steps=T, seed=0, device="cpu", policy_kwargs=own, **kwargs
    )


def test_a_window_is_each_prefix_alone(example):
    """Every step by itself, of what its episode has shown of late and nothing else."""
    torch.manual_seed(0)
    layer = example.Window(3, 8, window=W).double()
    x = torch.randn(T, N, 3, dtype=torch.float64)
    starts = torch.rand(T, N) < 0.3
    starts[:, 0] = False  # one goes on all the time
    past = torch.randn(W - 1, N, 3, dtype=torch.float64)
    known = torch.ones(W - 1, N, 1, dtype=torch.float64)
    known[:2, 1] = 0.0  # and one has not been there for long
    given = x.clone().requires_grad_()
    out, (after, still) = layer(given.flatten(0, 1), (past, known), starts)
    weights = torch.randn(T, N, 8, dtype=torch.float64)
    (out.view(T, N, 8) * weights).sum().backward()
    expected = torch.zeros_like(x)
    for env in range(N):
        for t in range(T):
            seen = [x[t, env]]
            for back in range(1, W):
                at = t - back
                if starts[t - back + 1 : t + 1, env].any() if at >= -1 else starts[: t + 1, env].any():
                    break
                if at < 0 and not known[at, env]:
                    break
                seen.insert(0, x[at, env] if at >= 0 else past[at, env])
            alone = torch.stack(seen).requires_grad_()
            padded = torch.cat((torch.zeros(W - len(seen), 3, dtype=torch.float64), alone))
            mask = torch.arange(W) >= W - len(seen)
            one = layer._attend(padded[None], mask[None])[0]
            torch.testing.assert_close(one, out.view(T, N, 8)[t, env], rtol=0, atol=1e-12)
            (grad,) = torch.autograd.grad(one @ weights[t, env], alone)
            for i, row in enumerate(grad):
                if t - len(seen) + 1 + i >= 0:
                    expected[t - len(seen) + 1 + i, env] += row
    torch.testing.assert_close(given.grad, expected, rtol=0, atol=1e-12)
    state = (past, known)
    with torch.no_grad():
        for t in range(T):
            step, ones = layer(x[t], state, starts[t : t + 1])
            state = tuple(s[0] for s in ones)
            torch.testing.assert_close(step, out.view(T, N, 8)[t], rtol=0, atol=1e-12)
            torch.testing.assert_close(state[0], after[t], rtol=0, atol=0)
            torch.testing.assert_close(state[1], still[t], rtol=0, atol=0)


def test_training_sees_the_distribution_that_acted(example):
    model = make(example)
    _, callback = model._setup_learn(10_000)
    acted = []
    policy = model.policy
    for _ in range(2):
        state = model._last_lstm_states
        model.collect_rollouts(model.env, callback, model.rollout_buffer, T)
    batch = model.rollout_buffer.batch()
    memory = policy.empty_memory(N).actor if state is None else state[0]
    with torch.no_grad():
        again = model.outputs.evaluate(*batch.inputs).log_prob.view(T, N)
        for t in range(T):
            told = model.rollout_buffer.seen(slice(t, t + 1))
            told = told._replace(memory=told.memory._replace(actor=memory))
            actions = batch.actions.view(T, N)[t]
            acted.append(policy.get_distribution(told).log_prob(actions))
            memory = tuple(s[0] for s in policy.latent_actor(told)[1])
    np.testing.assert_allclose(again, torch.stack(acted), atol=1e-6)


def test_it_learns_inside_the_bound_with_kronecker_blocks_and_is_saved(example):
    model = make(example)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(4 * T * N)
    assert [n for n, p in model.policy.named_parameters() if torch.equal(p, before[n])] == []
    assert 0 < model.logger.name_to_value["train/kl"] < 0.1
    for name in ("embed", "query", "key_value", "out", "up", "down"):
        assert len(model.kfac.factors()[f"lstm_actor.{name}"]) == 2
    file = io.BytesIO()
    with pytest.warns(UserWarning, match="Saved without policy_class"):  # it can be imported nowhere
        model.save(file)
    file.seek(0)
    loaded = ACKTR.load(
        file, env=model.env, custom_objects={"policy_class": type(model.policy)}, force_reset=False
    )
    assert same(loaded._last_lstm_states, model._last_lstm_states)
    more = [m.learn(T * N, reset_num_timesteps=False) for m in (model, loaded)]
    assert more[0].num_timesteps == more[1].num_timesteps


def test_the_example_runs(example, capsys):
    scores = example.main(["--steps", "400", "--window", "4", "--policies", "attention"])
    assert scores["attention"] > 0
    assert "attention, seed 0" in capsys.readouterr().out
