"""``cuda_graphs=True``: what a device repeats by itself is what the host would have launched.

On a CPU :mod:`tests.helpers.recording` stands in for CUDA; tests marked ``gpu`` run on the real thing.
"""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.utils._pytree import tree_map

from acktr import AdamCritic, Natural, NaturalCritic
from acktr.errors import ConfigurationError, DivergenceError
from acktr.kfac import Graphs
from acktr.kfac.cuda_graphs import CudaEngine
from acktr.learner.actor import ActorUpdate
from acktr.learner.critic import AdamCriticUpdate, NaturalCriticUpdate
from acktr.learner.natural_step import NaturalStep, run
from acktr.learner.parts import build_parts
from acktr.schedules import Linear
from tests.helpers.masked_envs import Strict
from tests.helpers.models import make
from tests.helpers.recording import NoLooks, RecordingEngine
from tests.helpers.small_envs import IMAGE, VECTOR, Small, small_env

ROLLOUTS = 9
SHARED = {"policy": "CnnPolicy", "learning_rate": 0.1}
GRAPHS = Natural(cuda_graphs=True)
SETTINGS = [
    {"critic": NaturalCritic(n_updates=3)},
    {"critic": NaturalCritic(normalize_targets=False)},
    {"natural": Natural(kfac_kwargs={"momentum": 0.9}), "normalize_advantage": "running"},
    {
        "natural": Natural(
            sub_sampling_factor=2,
            kfac_kwargs={"periods": {"inverse": 2, "inverse_refresh": "staggered"}},
        )
    },
    {"critic": NaturalCritic(n_updates=2, cg_iterations=2, kfac_kwargs={"periods": {"factor": 2}})},
    {"natural": Natural(kfac_kwargs={"step_rule": {"exact_scaling": True}}), "ent_coef": 0.01},
    {"natural": Natural(corrected_learning_rate=Linear(0.5))},
    SHARED,
    {**SHARED, "critic": NaturalCritic(normalize_targets=False)},
    {**SHARED, "natural": Natural(cg_iterations=2, sub_sampling_factor=2)},
]
# A critic that learns from Adam: torch lets it be recorded on CUDA alone.
ADAM = [
    {"critic": AdamCritic(n_updates=4, batch_size=6)},
    {**SHARED, "critic": AdamCritic(n_updates=4, batch_size=6)},
]
ACTIONS = ["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def build(action, policy="MlpPolicy", device="cpu", cls=Small, **settings):
    env = small_env(action, IMAGE if policy == "CnnPolicy" else VECTOR, cls=cls)
    if policy == "CnnPolicy":
        settings["policy_kwargs"] = {"features_extractor_kwargs": {"features_dim": 16}}
    settings = {"target_kl": Linear(0.01), "device": device, **settings}
    return make(env, policy, **settings)


def defer(model, engine=None):
    """Let a model on a CPU act as on an accelerator."""
    parts, outputs, critic = model.parts, model.outputs, model.critic

    def step(name, kfac):
        kfac.defer_checks = True
        graphs = None if engine is None else Graphs(kfac, engine)
        factor = model.natural.sub_sampling_factor
        return NaturalStep(kfac, factor, deferred=True, graphs=graphs, name=name)

    update = parts.critic_update
    if isinstance(update, NaturalCriticUpdate):
        of_critic = step("critic", update.optimizer)
        update = NaturalCriticUpdate(of_critic, outputs, parts.value_scale, critic, deferred=True)
    elif update is not None:
        update = AdamCriticUpdate(update.optimizer, outputs, parts.value_scale, critic, deferred=True)
    weight = critic.vf_coef if update is None else None
    common = outputs, parts.value_scale, parts.trust_region, weight
    actor = ActorUpdate(step("actor", model.kfac), *common, deferred=True)
    model.parts = parts._replace(actor_update=actor, critic_update=update)
    return model


def learn(model, rollouts=ROLLOUTS):
    model.learn(rollouts * model.n_steps * model.n_envs)
    return {name: p.detach().cpu().double() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_training_is_the_same_with_what_is_repeated(settings, action):
    plain = defer(build(action, **settings))
    expected = learn(plain)
    engine = RecordingEngine()
    graphed = defer(build(action, **settings), engine)
    torch.testing.assert_close(learn(graphed), expected, rtol=1e-3, atol=1e-5)
    assert engine.repeated >= 3
    assert plain.parts.trust_region.scale == pytest.approx(graphed.parts.trust_region.scale, rel=1e-3)
    assert plain.kfac.param_groups[0]["step"] == graphed.kfac.param_groups[0]["step"]


@pytest.mark.parametrize("action", ACTIONS[1:])
@pytest.mark.parametrize("settings", [{"ent_coef": 0.01}, SETTINGS[-1]])
def test_what_is_repeated_has_the_masks_of_its_own_rollout(settings, action):
    expected = learn(defer(build(action, cls=Strict, **settings)))
    engine = RecordingEngine()
    graphed = learn(defer(build(action, cls=Strict, **settings), engine))
    torch.testing.assert_close(graphed, expected, rtol=1e-3, atol=1e-5)
    assert engine.repeated >= 3


@pytest.mark.parametrize("settings", SETTINGS)
def test_checks_after_the_steps_change_nothing_that_is_fine(settings):
    expected = learn(build("Box", **settings), 3)  # other inverses: rounding grows with each update
    deferred = learn(defer(build("Box", **settings)), 3)
    torch.testing.assert_close(deferred, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [*SETTINGS, *ADAM])
@pytest.mark.parametrize("action", ACTIONS)
def test_no_step_looks_at_a_value(settings, action, monkeypatch):
    update_without_looks(build(action, **settings), monkeypatch)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1], ADAM[-1]])
@pytest.mark.parametrize("action", ACTIONS[1:])
def test_no_step_with_masks_looks_at_a_value(settings, action, monkeypatch):
    update_without_looks(build(action, cls=Strict, **settings), monkeypatch)


def update_without_looks(model, monkeypatch):
    """On the meta device there are no values: whoever looks at one is refused."""
    _, callback = model._setup_learn(1000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    batch = model.rollout_buffer.batch()
    batch = tree_map(lambda x: None if x is None else x.to("meta"), batch)
    model.policy.to("meta")
    model.parts = build_parts(
        model.policy, model.outputs, model.natural, model.critic, True, 1.0, model.used_precision
    )
    update = model.parts.actor_update
    step = NaturalStep(update.kfac, model.natural.sub_sampling_factor, deferred=True)
    monkeypatch.setattr("acktr.learner.critic.check_losses", lambda *args: None)
    for _ in range(2):
        with NoLooks():
            # Between its steps a natural critic looks at the loss of each.
            if isinstance(alone := model.parts.critic_update, NaturalCriticUpdate):
                for curvature in (True, False):
                    alone._update(batch, curvature)
            elif alone is not None:
                alone.fit(batch, 0.1)
            step(update, batch)


@pytest.mark.parametrize("which", ["actor", "critic"])
@pytest.mark.parametrize("kind", [NaturalCritic, AdamCritic])
def test_a_loss_that_is_not_finite_takes_the_whole_update_back(which, kind, monkeypatch):
    # Normalised targets would rewrite the critic's last layer before the steps, with the same values.
    # A number of its own for the noise: a rollout whose rewards are all alike is learned from too.
    settings = {
        "policy_kwargs": {"log_std_init": 0.0},
        "critic": kind(n_updates=3, normalize_targets=False),
    }
    model = defer(build("Box", **settings))
    learn(model)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    batch = model.rollout_buffer.batch()
    name = "advantages" if which == "actor" else "returns"
    spoiled = batch._replace(**{name: torch.full_like(batch.returns, math.inf)})
    monkeypatch.setattr(model.rollout_buffer, "batch", lambda: spoiled)
    if which == "actor":
        monkeypatch.setattr(model.parts.advantage_scale, "begin", lambda advantages: lambda: advantages)
        monkeypatch.setattr(model.parts.critic_update, "fit", lambda batch, rate: batch.values.sum())
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
        ({"critic": NaturalCritic(std="adaptive")}, r"critic\.std"),
        ({"critic": AdamCritic(std="adaptive")}, r"natural\.cuda_graphs=True .*critic\.std"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        build("Box", natural=GRAPHS, **settings)


def test_it_is_a_switch():
    with pytest.raises(ConfigurationError, match=r"natural\.cuda_graphs must be True or False, got 1"):
        Natural(cuda_graphs=1)


def test_without_a_device_for_it_training_goes_on_after_a_warning():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.warns(UserWarning, match="CUDA device"):
        model = build("Box", natural=GRAPHS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(model)


# ---------------------------------------------------------------- on a CUDA device


def repeated(settings):
    natural = settings.get("natural", Natural())
    return {**settings, "natural": replace(natural, cuda_graphs=True)}


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", ADAM)
@pytest.mark.parametrize("action", ["Box", "Discrete"])
def test_cuda_graphs_train_with_adam_as_launches_do(settings, action, monkeypatch):
    """By what the networks say, with an eps at which Adam's step follows the gradient.

    With its own eps a weight whose gradient is rounding steps as far as any other: on a CPU an error of
    1e-7 in the gradients of the CNN moves its values by 0.3 in these few rollouts, with 0.01 by 1e-5.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    said = []
    for graphs in (False, True):
        model = build(action, device="cuda", natural=Natural(cuda_graphs=graphs), **settings)
        model.critic_optimizer.param_groups[0]["eps"] = 0.01
        learn(model)
        batch = model.rollout_buffer.batch()
        with torch.no_grad():
            values, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        said.append(torch.cat([values.flatten(), log_prob]))
    torch.testing.assert_close(said[1], said[0], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("action", ["Box", "Discrete"])
def test_cuda_graphs_train_as_launches_do(settings, action, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    expected = learn(build(action, device="cuda", **settings))
    recorded, record = [], CudaEngine.record
    monkeypatch.setattr(
        CudaEngine, "record", lambda self, work: (recorded.append(work), record(self, work))[1]
    )
    graphed = build(action, device="cuda", **repeated(settings))
    torch.testing.assert_close(learn(graphed), expected, rtol=1e-2, atol=1e-3)
    assert len(recorded) >= (1 if graphed.critic_optimizer is None else 2)


@pytest.mark.gpu
@CUDA
def test_bf16_under_cuda_graphs():
    natural = Natural(cuda_graphs=True, precision="bf16")
    model = build("Discrete", device="cuda", natural=natural, **SHARED)
    assert all(p.isfinite().all() for p in learn(model).values())


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("settings", [*SETTINGS, *ADAM])
def test_no_step_waits_for_the_device(settings, monkeypatch):
    model = build("Box", device="cuda", **settings)
    learn(model)

    def watched(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for module in ("natural_step", "critic"):
        monkeypatch.setattr(f"acktr.learner.{module}.run", watched)
    model.train()


@pytest.mark.gpu
@CUDA
def test_a_model_saved_beside_graphs_goes_on(tmp_path):
    model = build("Box", device="cuda", natural=GRAPHS)
    learn(model)
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model", env=model.env, device="cuda")
    assert again.natural.cuda_graphs
    assert all(p.isfinite().all() for p in learn(again).values())
