"""Policies as people write them: which methods are asked, and whose the parameters are."""

import copy
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.distributions import Normal

from acktr import ACKTR, AdamCritic, Natural
from acktr.errors import ConfigurationError
from acktr.networks.outputs import Outputs
from tests.helpers.models import Trunk, learn, names
from tests.helpers.small_envs import ACTIONS, VECTOR, small_env

# Parameters beyond the modules that SB3 names ------------------------------------------------


class StateStd(ActorCriticPolicy):
    """A standard deviation that a head of its own tells from the state (SB3 issue 2222)."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        del self.log_std
        self.log_std_net = nn.Linear(self.mlp_extractor.latent_dim_pi, self.action_space.shape[0])

    def _get_action_dist_from_latent(self, latent_pi):
        log_std = self.log_std_net(latent_pi).clamp(-5, 2)
        return self.action_dist.proba_distribution(self.action_net(latent_pi), log_std)


class CommonLayer(nn.Module):
    """SB3's documented network with a layer below both (issue 570), and no module of SB3's names."""

    def __init__(self, width):
        super().__init__()
        self.common = nn.Sequential(nn.Linear(width, 6), nn.Tanh())
        self.of_actor, self.of_critic = nn.Linear(6, 5), nn.Linear(6, 4)
        self.latent_dim_pi, self.latent_dim_vf = 5, 4

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.of_actor(self.common(features)).tanh()

    def forward_critic(self, features):
        return self.of_critic(self.common(features)).tanh()


class CommonPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = CommonLayer(self.features_dim)


class Encoded(ActorCriticPolicy):
    """An encoder in extract_features, which SB3's get_distribution passes by (issue 1529)."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.encoder = nn.Linear(self.features_dim, self.features_dim)

    def extract_features(self, obs, features_extractor=None):
        return self.encoder(super().extract_features(obs, features_extractor)).tanh()


class Temperature(ActorCriticPolicy):
    """A learned temperature of the logits."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi) / self.log_temperature.exp()
        return self.action_dist.proba_distribution(action_logits=logits)


class CriticScale(ActorCriticPolicy):
    """A learned scale of the values, in predict_values and in evaluate_actions."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.scale = nn.Parameter(torch.ones(()))

    def predict_values(self, obs):
        return self.scale * super().predict_values(obs)

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return self.scale * values, log_prob, entropy

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, self.scale * values, log_prob


@pytest.mark.parametrize(
    ("policy", "action", "of_actor", "of_critic"),
    [
        (StateStd, "Box", {"log_std_net.weight", "log_std_net.bias"}, set()),
        (
            CommonPolicy,
            "Discrete",
            {"mlp_extractor.common.0.weight", "mlp_extractor.of_actor.weight"},
            {"mlp_extractor.common.0.weight", "mlp_extractor.of_critic.weight"},
        ),
        (Encoded, "Discrete", {"encoder.weight"}, {"encoder.weight"}),
        (Encoded, "Box", {"encoder.weight", "log_std"}, {"encoder.weight"}),
        (Temperature, "Discrete", {"log_temperature"}, set()),
        (CriticScale, "MultiBinary", set(), {"scale"}),
    ],
)
def test_parameters_belong_to_what_depends_on_them(policy, action, of_actor, of_critic):
    model, still = learn(policy, action)
    outputs = model.outputs
    assert of_actor <= names(model, outputs.actor)
    assert of_critic <= names(model, outputs.critic)
    assert not (of_critic - of_actor) & names(model, outputs.actor)
    assert not (of_actor - of_critic) & names(model, outputs.critic)
    assert not still


def test_what_nothing_depends_on_is_named_once():
    class Idle(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.idle = nn.Linear(2, 2)
            self.resting = nn.Linear(2, 2).requires_grad_(False)

    with pytest.warns(UserWarning, match=r"of Idle depend on idle.weight, idle.bias: nothing") as said:
        model, still = learn(Idle)
    assert len(said) == 1
    assert still == {"idle.weight", "idle.bias", "resting.weight", "resting.bias"}
    assert {"idle.weight"}.isdisjoint(names(model, [*model.outputs.actor, *model.outputs.critic]))


def test_a_look_leaves_the_policy_and_all_generators_as_they_were():
    class Normed(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 4)
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

        def forward(self, obs):
            return self.net(obs)

    policy = ActorCriticPolicy(
        VECTOR, ACTIONS["Box"], lambda _: 0.0, features_extractor_class=Normed, activation_fn=nn.ELU
    )
    policy.train()
    policy.action_net.weight.requires_grad_(False)
    before = copy.deepcopy(policy.state_dict())
    generators = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    drawn = policy.observation_space.np_random.bit_generator.state
    outputs = Outputs(policy)
    assert outputs.noisy
    assert outputs.shared
    assert policy.training
    assert not policy.action_net.weight.requires_grad
    assert all(torch.equal(before[name], x) for name, x in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert np.array_equal(generators[1], np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002
    assert drawn == policy.observation_space.np_random.bit_generator.state
    copy.deepcopy(policy)


def test_observations_that_only_a_user_knows_leave_the_modules_to_tell():
    class Table(BaseFeaturesExtractor):
        """Rows by number, where the space is a box of any numbers."""

        def __init__(self, space):
            super().__init__(space, 4)
            self.rows = nn.Embedding(8, 4)

        def forward(self, obs):
            return self.rows((obs[:, 0] - 1e6).long())

    policy = ActorCriticPolicy(
        spaces.Box(1e6, 1e6 + 7, (1,), np.float64),
        ACTIONS["Discrete"],
        lambda _: 0.0,
        features_extractor_class=Table,
    )
    outputs = Outputs(policy)
    assert outputs.shared

    class Particular(Table):
        def forward(self, obs):
            if (obs[:, 0] != 1e6 + 0.5).any():
                raise ValueError("not mine")
            return self.rows(obs[:, 0].long() - 1_000_000)

    policy.features_extractor.__class__ = Particular
    outputs = Outputs(policy)
    assert outputs.shared
    assert set(outputs.actor) | set(outputs.critic) == set(policy.parameters())
    policy.of_mine = nn.Parameter(torch.zeros(()))
    with pytest.warns(UserWarning, match=r"observation \(ValueError: not mine\).* of_mine: nothing"):
        Outputs(policy)


def test_lazy_layers_learn_their_sizes_first():
    class Lazy(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 4)
            self.net = nn.LazyLinear(4)

        def forward(self, obs):
            return self.net(obs)

    kwargs = {"features_extractor_class": Lazy, "ortho_init": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        models = [ACKTR("MlpPolicy", small_env(), seed=i, policy_kwargs=kwargs) for i in (0, 0, 1)]
    weights = [m.policy.features_extractor.net.weight for m in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0] in set(models[0].outputs.actor)


# Overridden methods --------------------------------------------------------------------------


class Forbidding(ActorCriticPolicy):
    """Forbids action 0, in the methods that SB3 acts and learns by (issues 703, 1228)."""

    def told(self, obs):
        latent_pi, latent_vf = self.mlp_extractor(self.extract_features(obs))
        logits = self.action_net(latent_pi) - torch.tensor([1e8, 0.0, 0.0])
        distribution = self.action_dist.proba_distribution(action_logits=logits)
        return distribution, self.value_net(latent_vf)

    def forward(self, obs, deterministic=False):
        distribution, values = self.told(obs)
        actions = distribution.get_actions(deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs, actions):
        distribution, values = self.told(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def _predict(self, observation, deterministic=False):
        return self.told(observation)[0].get_actions(deterministic)


def taken(model, steps=64):
    """Return the actions that the environments get while the model learns."""
    seen = []
    step = model.env.step_async
    model.env.step_async = lambda actions: (seen.append(np.array(actions)), step(actions))[1]
    model.learn(steps)
    return np.concatenate(seen)


@pytest.mark.parametrize("policy_kwargs", [{}, {"net_arch": []}])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"natural": Natural(cg_iterations=2)}, {"critic": AdamCritic()}],
)
def test_an_overridden_forward_is_honoured(kwargs, policy_kwargs):
    model = ACKTR(
        Forbidding, small_env(), n_steps=8, seed=0, policy_kwargs=policy_kwargs, target_kl=0.1, **kwargs
    )
    assert 0 not in taken(model)
    batch = model.rollout_buffer.batch()
    said = model.outputs.evaluate(batch.observations, batch.actions)
    of_policy = said.distributions[0].probs[:, 0]
    assert of_policy.max() == 0
    values = model.policy.forward(batch.observations)[1].flatten()
    assert torch.equal(model.outputs.values(batch.observations), values)


def test_actor_and_critic_that_share_nothing_stay_apart_when_evaluated_together():
    model, _ = learn(Forbidding)
    assert not model.shared
    assert names(model, model.outputs.actor).isdisjoint(names(model, model.outputs.critic))


def test_an_overridden_forward_alone_acts():
    """As in A2C, which acts by forward and learns by evaluate_actions, whatever they are."""

    class Acting(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            actions, values, log_prob = super().forward(obs, deterministic)
            return torch.full_like(actions, 2), values, 0 * log_prob

    assert set(taken(ACKTR(Acting, small_env(), n_steps=8, seed=0))) == {2}


@pytest.mark.parametrize("share", [True, False])
def test_an_overridden_get_distribution_alone_is_meant(share):
    class Told(ActorCriticPolicy):
        """Forbids action 0 where predict and ACKTR ask; and values of its own."""

        def get_distribution(self, obs):
            logits = super().get_distribution(obs).distribution.logits
            return self.action_dist.proba_distribution(logits - torch.tensor([1e8, 0.0, 0.0]))

        def predict_values(self, obs):
            return 2 * super().predict_values(obs)

    kwargs = {"features_extractor_class": Trunk, "share_features_extractor": share}
    model = ACKTR(Told, small_env(), n_steps=8, seed=0, policy_kwargs=kwargs, target_kl=0.1)
    assert 0 not in taken(model)
    batch = model.rollout_buffer.batch()
    evaluated = model.outputs.evaluate(batch.observations, batch.actions)
    assert evaluated.distributions[0].probs[:, 0].max() == 0
    assert model.shared == share
    if share:
        assert torch.equal(evaluated.values, model.policy.predict_values(batch.observations).flatten())


def test_values_of_an_overridden_forward_count():
    """They go into the rollout, as in A2C, and predict_values tells what comes after it."""

    class Constant(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            actions, values, log_prob = super().forward(obs, deterministic)
            return actions, torch.full_like(values, 3.0), log_prob

    model = ACKTR(Constant, small_env(), n_steps=8, seed=0).learn(16)
    assert (model.rollout_buffer.values == 3.0).all()


def test_a_distribution_of_its_own_that_nothing_gives_away_is_refused():
    class Secret(ActorCriticPolicy):
        def evaluate_actions(self, obs, actions):
            values, _, entropy = super().evaluate_actions(obs, actions)
            return values, Normal(0.0, 1.0).log_prob(actions).sum(1), entropy

    with pytest.raises(ConfigurationError, match=r"Secret.evaluate_actions has other .*action_d"):
        ACKTR(Secret, small_env("Box"))


def test_get_distribution_is_asked_where_evaluate_actions_builds_one_of_its_own():
    class Own(ActorCriticPolicy):
        """The same policy, of which evaluate_actions leaves nothing in action_dist."""

        def evaluate_actions(self, obs, actions):
            distribution = self.get_distribution(obs)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
            self.action_dist.distribution = None
            return self.predict_values(obs), log_prob, entropy

    kwargs = {"features_extractor_class": Trunk, "net_arch": []}
    model, still = learn(Own, policy_kwargs=kwargs)
    assert model.shared
    assert not still
