"""``cuda_graphs=True``: what a device repeats by itself is what the host would have launched.

On a CPU :mod:`tests.helpers.recording` stands in for CUDA; tests marked ``gpu`` run on the real thing.
"""

import math
import warnings

import pytest
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.utils._pytree import tree_map

from acktr.errors import ConfigurationError, DivergenceError
from acktr.kfac import KFAC, Graphs
from acktr.learner.actor import natural_step
from acktr.learner.critic import update_critic
from acktr.learner.optimizers import build_optimizers
from tests.helpers.models import make
from tests.helpers.recording import NoLooks, RecordingEngine
from tests.helpers.small_envs import IMAGE, VECTOR, small_env

ROLLOUTS = 9
SHARED = {"policy": "CnnPolicy", "learning_rate": 0.1}
SETTINGS = [
    {"n_critic_updates": 3},
    {"normalize_value_targets": False},
    {"kfac_kwargs": {"momentum": 0.9}, "normalize_advantage": "running"},
    {"sub_sampling_factor": 2, "kfac_kwargs": {"inverse_period": 2, "inverse_refresh": "staggered"}},
    {"n_critic_updates": 2, "critic_kfac_kwargs": {"factor_period": 2, "cg_iterations": 2}},
    {"kfac_kwargs": {"exact_scaling": True}, "ent_coef": 0.01},
    {"corrected_learning_rate": "lin_0.5"},
    SHARED,
    {**SHARED, "normalize_value_targets": False},
    {**SHARED, "cg_iterations": 2, "sub_sampling_factor": 2},
]
# A critic that learns from Adam: torch lets it be recorded on CUDA alone.
ADAM = [
    {"critic_norm": "euclidean", "n_critic_updates": 4, "critic_batch_size": 6},
    {**SHARED, "critic_norm": "euclidean", "n_critic_updates": 4, "critic_batch_size": 6},
]
ACTIONS = ["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def build(action, policy="MlpPolicy", device="cpu", **settings):
    env = small_env(action, IMAGE if policy == "CnnPolicy" else VECTOR)
    if policy == "CnnPolicy":
        settings["policy_kwargs"] = {"features_extractor_kwargs": {"features_dim": 16}}
    settings = {"target_kl": "lin_0.01", "damping": 0.1, "device": device, **settings}
    return make(env, policy, **settings)


def defer(model, engine=None):
    """Let a model on a CPU act as on an accelerator."""
    model.defer_checks = True
    for name, optimizer in (("actor", model.kfac), ("critic", model.critic_optimizer)):
        if isinstance(optimizer, KFAC):
            optimizer.defer_checks = True
            if engine is not None:
                model._graphs[name] = Graphs(optimizer, engine)
    return model


def learn(model, rollouts=ROLLOUTS):
    model.learn(rollouts * model.n_steps * model.n_envs)
    return {name: p.detach().cpu().double() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_is_the_same_with_what_is_repeated(settings, action):
    plain = defer(build(action, **settings))
    expected = learn(plain)
    engine = RecordingEngine()
    graphed = defer(build(action, **settings), engine)
    torch.testing.assert_close(learn(graphed), expected, rtol=1e-3, atol=1e-5)
    assert engine.repeated >= 3
    assert plain.kl_scale == pytest.approx(graphed.kl_scale, rel=1e-3)
    assert plain.kfac.param_groups[0]["step"] == graphed.kfac.param_groups[0]["step"]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_checks_after_the_steps_change_nothing_that_is_fine(settings):
    expected = learn(build("Box", **settings), 3)  # other inverses: rounding grows with each update
    deferred = learn(defer(build("Box", **settings)), 3)
    torch.testing.assert_close(deferred, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [*SETTINGS, *ADAM], ids=str)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_step_looks_at_a_value(settings, action, monkeypatch):
    """On the meta device there are none: whoever looks at one is refused."""
    model = build(action, **settings)
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    batch = tree_map(lambda x: x.to("meta"), model.rollout_buffer.batch())
    model.policy.to("meta")
    build_optimizers(model)
    model.defer_checks = True
    monkeypatch.setattr("acktr.learner.critic.check_losses", lambda *args: None)
    for _ in range(2):
        with NoLooks():
            if model.critic_optimizer is not None:
                update_critic(model, batch)
            natural_step(model, batch)


@pytest.mark.parametrize("which", ["actor", "critic"])
@pytest.mark.parametrize("norm", ["gauss-newton", "euclidean"])
def test_a_loss_that_is_not_finite_takes_the_whole_update_back(which, norm, monkeypatch):
    # Normalised targets would rewrite the critic's last layer before the steps, with the same values.
    model = defer(build("Box", n_critic_updates=3, critic_norm=norm, normalize_value_targets=False))
    learn(model)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    batch = model.rollout_buffer.batch()
    name = "advantages" if which == "actor" else "returns"
    spoiled = batch._replace(**{name: torch.full_like(batch.returns, math.inf)})
    monkeypatch.setattr(model.rollout_buffer, "batch", lambda: spoiled)
    if which == "actor":
        monkeypatch.setattr(
            "acktr.learner.algorithm.normalize_advantages", lambda model, batch: lambda: batch
        )
        monkeypatch.setattr(
            "acktr.learner.algorithm.update_critic", lambda model, batch: batch.values.sum()
        )
    with pytest.raises(DivergenceError, match="not finite"):
        model.train()
    torch.testing.assert_close(dict(model.policy.named_parameters()), before, rtol=0, atol=0)


class Looking(FlattenExtractor):
    """Features that depend on a look at them."""

    def forward(self, observations):
        features = super().forward(observations)
        return features if features.sum() < 1e9 else -features


def test_a_network_that_cannot_be_recorded_is_named():
    model = defer(build("Box", policy_kwargs={"features_extractor_class": Looking}), RecordingEngine())
    with pytest.raises(ConfigurationError, match=r"not possible\. The update 'critic'"):
        learn(model)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"critic_std": "adaptive"}, "critic_std"),
        ({"cuda_graphs": 1}, "cuda_graphs"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        build("Box", **{"cuda_graphs": True, **settings})


def test_without_a_device_for_it_training_goes_on_after_a_warning():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.warns(UserWarning, match="CUDA device"):
        model = build("Box", cuda_graphs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(model)


# ---------------------------------------------------------------- on a CUDA device


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", ADAM, ids=str)
@pytest.mark.parametrize("action", ["Box", "Discrete"])
def test_cuda_graphs_train_with_adam_as_launches_do(settings, action, monkeypatch):
    """By what the networks say, with an eps at which Adam's step follows the gradient.

    With its own eps a weight whose gradient is rounding steps as far as any other: on a CPU an error of
    1e-7 in the gradients of the CNN moves its values by 0.3 in these few rollouts, with 0.01 by 1e-5.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    said = []
    for graphs in (False, True):
        model = build(action, device="cuda", cuda_graphs=graphs, **settings)
        model.critic_optimizer.param_groups[0]["eps"] = 0.01
        learn(model)
        batch = model.rollout_buffer.batch()
        with torch.no_grad():
            values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        said.append(torch.cat([values.flatten(), log_prob]))
    torch.testing.assert_close(said[1], said[0], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("action", ["Box", "Discrete"])
def test_cuda_graphs_train_as_launches_do(settings, action, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    expected = learn(build(action, device="cuda", **settings))
    graphed = build(action, device="cuda", cuda_graphs=True, **settings)
    torch.testing.assert_close(learn(graphed), expected, rtol=1e-2, atol=1e-3)
    assert all(len(graphs) for graphs in graphed._graphs.values())


@pytest.mark.gpu
@CUDA
def test_bf16_under_cuda_graphs():
    model = build("Discrete", device="cuda", cuda_graphs=True, precision="bf16", **SHARED)
    assert all(p.isfinite().all() for p in learn(model).values())


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", [*SETTINGS, *ADAM], ids=str)
def test_no_step_waits_for_the_device(settings):
    model = build("Box", device="cuda", **settings)
    learn(model)
    run = model.run

    def watched(name, work, *inputs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run(name, work, *inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model.run = watched
    model.train()


@pytest.mark.gpu
@CUDA
def test_a_model_saved_beside_graphs_goes_on(tmp_path):
    model = build("Box", device="cuda", cuda_graphs=True)
    learn(model)
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", env=model.env, device="cuda")
    assert again.cuda_graphs
    assert all(p.isfinite().all() for p in learn(again).values())
