"""The masked policy: against sb3-contrib's distributions, and against the Fisher of all actions."""

import itertools
import math

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.distributions import MaskableCategorical
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Bernoulli, kl_divergence

from acktr.errors import ConfigurationError
from acktr.kfac import likelihood
from acktr.kfac.exact import FisherProduct
from acktr.kfac.likelihood import detached, mean_kl
from acktr.networks.masks import mask_logits, masking
from acktr.networks.outputs import as_list, without_validation
from acktr.rollout.actions import ActionSampler
from tests.helpers.models import make
from tests.helpers.small_envs import small_env

N = 50
KINDS = ("Discrete", "MultiDiscrete", "MultiBinary")
SIZES = {"Discrete": [5], "MultiDiscrete": [3, 4, 2], "MultiBinary": [2, 2, 2]}
EXTREME = (1.0, 1e3, 1e7)


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def masks_of(sizes, n=N):
    parts = []
    for size in sizes:
        part = torch.rand(n, size) < 0.4
        part[torch.arange(n), torch.randint(size, (n,))] = True
        parts.append(part)
    return torch.cat(parts, -1)


def outputs_of(kind, scale=1.0, n=N):
    width = len(SIZES[kind]) if kind == "MultiBinary" else sum(SIZES[kind])
    return (scale * torch.randn(n, width)).requires_grad_()


def build(kind, outputs, masks):
    """What SB3 makes of masked logits."""
    wrapper = {
        "Discrete": lambda: CategoricalDistribution(5),
        "MultiDiscrete": lambda: MultiCategoricalDistribution(SIZES[kind]),
        "MultiBinary": lambda: BernoulliDistribution(3),
    }[kind]()
    with without_validation():
        return wrapper.proba_distribution(
            mask_logits(outputs, masks, kind == "MultiBinary")
        ).distribution


def reference(kind, outputs, masks):
    """sb3-contrib's, in which a binary part is a choice of two."""
    if kind == "MultiBinary":
        outputs = torch.stack([torch.zeros_like(outputs), outputs], -1).flatten(1)
    logits, allowed = outputs.split(SIZES[kind], -1), masks.split(SIZES[kind], -1)
    return [MaskableCategorical(logits=x, masks=m) for x, m in zip(logits, allowed, strict=True)]


def parts(kind, value):
    """What a distribution says of the parts of an action, ``(N, n_parts)``."""
    if kind == "MultiBinary":
        return value
    return torch.stack(value if isinstance(value, list) else [value], -1)


def ask(distribution, question):
    if isinstance(distribution, list):
        return [question(part, i) for i, part in enumerate(distribution)]
    return question(distribution, None)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_entropies_are_those_of_sb3_contrib(kind):
    outputs, masks = outputs_of(kind), masks_of(SIZES[kind])
    theirs, own = reference(kind, outputs, masks), build(kind, outputs, masks)
    actions = torch.stack([x.sample() for x in theirs], -1)

    def log_prob(part, i):
        chosen = actions if i is None else actions[:, i]
        return part.log_prob(chosen[:, 0] if kind == "Discrete" else chosen.to(outputs.dtype))

    expected = torch.stack([x.log_prob(actions[:, i]) for i, x in enumerate(theirs)], -1)
    torch.testing.assert_close(parts(kind, ask(own, log_prob)), expected)
    expected = torch.stack([x.entropy() for x in theirs], -1)
    torch.testing.assert_close(parts(kind, ask(own, lambda part, _: part.entropy())), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_that_of_what_is_allowed(kind):
    before, after, masks = outputs_of(kind), outputs_of(kind), masks_of(SIZES[kind])
    old, new = (as_list(build(kind, x, masks)) for x in (before, after))
    found = mean_kl([detached(d) for d in old], new)
    expected = torch.zeros(())
    for p, q, m in zip(
        reference(kind, before, masks),
        reference(kind, after, masks),
        masks.split(SIZES[kind], -1),
        strict=True,
    ):
        terms = p.probs * (p.logits - q.logits)
        expected = expected + torch.where(m, terms, 0.0).sum(-1).mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert after.grad.isfinite().all()
    assert (after.grad[forbidden_outputs(kind, masks)] == 0).all()


def forbidden_outputs(kind, masks):
    """The outputs of the network that say nothing of what is drawn."""
    if kind == "MultiBinary":
        return ~masks.view(len(masks), -1, 2).all(-1)
    return ~masks


@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_forbidden_has_no_probability_and_no_gradient(kind, dtype, scale):
    outputs = outputs_of(kind, scale).detach().to(dtype).requires_grad_()
    masks = masks_of(SIZES[kind])
    own = build(kind, outputs, masks)
    probs = torch.cat([x.probs for x in as_list(own)], -1)
    if kind == "MultiBinary":
        probs = torch.stack([1 - probs, probs], -1).flatten(1)
    assert (probs[~masks] == 0).all()
    drawn = [x.sample() for x in as_list(own)]
    said = sum(x.log_prob(a).sum() + x.entropy().sum() for x, a in zip(as_list(own), drawn, strict=True))
    old = [detached(d) for d in as_list(build(kind, outputs * 1.01, masks))]
    divergence = sum(kl_divergence(p, q).sum() for p, q in zip(old, as_list(own), strict=True))
    assert said.isfinite()
    assert not divergence.isnan()
    (gradient,) = torch.autograd.grad(said, outputs)
    assert gradient.isfinite().all()
    assert (gradient[forbidden_outputs(kind, masks)] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_cotangents_have_the_masked_fisher_and_none_of_what_is_forbidden(kind, monkeypatch):
    """Curvature propagation, averaged over all signs, against ``E[d log p d log p']``."""
    outputs, masks = outputs_of(kind, n=6), masks_of(SIZES[kind], n=6)
    own = as_list(build(kind, outputs, masks))
    for part in own:
        size = part.logits.shape[-1]
        patterns = [torch.tensor(x) for x in itertools.product([-1.0, 1.0], repeat=size)]
        found = 0.0
        for signs in patterns:
            monkeypatch.setattr(
                likelihood, "random_signs", lambda like, signs=signs: signs.expand_as(like)
            )
            (drawn,) = likelihood.likelihood_of(part).cotangents("curvature-propagation")
            (v,) = torch.autograd.grad(drawn.output, outputs, drawn.cotangent, retain_graph=True)
            found = found + v.unsqueeze(-1) * v.unsqueeze(-2) / len(patterns)
        expected = 0.0
        for action, prob in actions_of(part):
            (g,) = torch.autograd.grad(part.log_prob(action).sum(), outputs, retain_graph=True)
            expected = expected + prob[:, None, None] * g.unsqueeze(-1) * g.unsqueeze(-2)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        out = forbidden_outputs(kind, masks)
        assert (found[out] == 0).all()
        assert (found.mT[out] == 0).all()


def actions_of(part):
    """All actions that a part may take, with their probabilities."""
    n = len(part.logits)
    if isinstance(part, Bernoulli):
        for bits in itertools.product([0.0, 1.0], repeat=part.logits.shape[-1]):
            action = torch.tensor(bits).expand(n, -1)
            prob = part.log_prob(action).sum(-1).exp().detach()
            # A forbidden one has no log-probability to differentiate.
            allowed = prob > 0
            yield torch.where(allowed[:, None], action, part.probs.round().detach()), prob
    else:
        for index in range(part.logits.shape[-1]):
            prob = part.probs[:, index].detach()
            likely = part.probs.argmax(-1)
            yield torch.where(prob > 0, index, likely), prob


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_the_exact_fisher_are_those_of_all_actions_enumerated(kind):
    torch.set_default_dtype(torch.float32)
    model = make(small_env(kind), policy_kwargs={"net_arch": [4]})
    model.policy.double()
    torch.set_default_dtype(torch.float64)
    sizes = {"Discrete": [3], "MultiDiscrete": [2, 3], "MultiBinary": [2, 2]}[kind]
    n = 8
    obs, masks = torch.randn(n, 3), masks_of(sizes, n)
    model.policy.features_extractor.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    for p in model.policy.action_net.parameters():
        torch.nn.init.normal_(p)
    drawn = model.policy.get_distribution(obs).sample()
    own = model.outputs.distributions(obs, drawn, masks)
    params = model.outputs.actor
    product = FisherProduct(own, params)
    dense = 0.0
    for part in own:
        for action, prob in actions_of(part):
            said = part.log_prob(action).reshape(n, -1).sum(-1)
            for i in range(n):
                grads = torch.autograd.grad(said[i], params, retain_graph=True, allow_unused=True)
                g = torch.cat(
                    [
                        (torch.zeros_like(p) if x is None else x).flatten()
                        for x, p in zip(grads, params, strict=True)
                    ]
                )
                dense = dense + prob[i] * g.outer(g) / n
    vector = torch.randn(len(dense))
    torch.testing.assert_close(product(vector), dense @ vector, rtol=1e-9, atol=1e-12)
    assert dense.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_allowed_however_unlikely_it_is(kind):
    torch.set_default_dtype(torch.float32)
    model = make(small_env(kind), policy_kwargs={"net_arch": [4]})
    sizes = {"Discrete": [3], "MultiDiscrete": [2, 3], "MultiBinary": [2, 2]}[kind]
    n = 2000
    obs, masks = torch.randn(n, 3), masks_of(sizes, n)
    for scale in EXTREME:
        for p in model.policy.action_net.parameters():
            torch.nn.init.normal_(p, std=scale)
        sampler = ActionSampler(model.policy)
        drawn, _ = sampler(obs, sampler.noise(n), masks)
        starts = torch.tensor([0, *np.cumsum(sizes)[:-1]])
        places = starts + drawn.reshape(n, -1).long()
        assert masks.gather(1, places).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_allow_all_change_nothing_that_is_drawn(kind):
    torch.set_default_dtype(torch.float32)
    model = make(small_env(kind), policy_kwargs={"net_arch": [4]})
    width = {"Discrete": 3, "MultiDiscrete": 5, "MultiBinary": 4}[kind]
    obs, sampler = torch.randn(N, 3), ActionSampler(model.policy)
    noise = sampler.noise(N)
    plain, _ = sampler(obs, noise)
    free, _ = sampler(obs, noise, torch.ones(N, width, dtype=torch.bool))
    assert torch.equal(plain, free)


class OfItsOwn(ActorCriticPolicy):
    def get_distribution(self, obs):
        distribution = CategoricalDistribution(3)
        latent = self.mlp_extractor.forward_actor(self.extract_features(obs, self.pi_features_extractor))
        return distribution.proba_distribution(self.action_net(latent))


@pytest.mark.parametrize(
    ("action", "policy", "rows", "says"),
    [
        ("Box", ActorCriticPolicy, 2, "No mask is known for the DiagGaussianDistribution"),
        ("Discrete", OfItsOwn, 2, "OfItsOwn makes its distribution without self.action_dist"),
        ("Discrete", ActorCriticPolicy, 1, "1 action masks were given for 2 observations"),
    ],
)
def test_a_policy_that_no_mask_reaches_is_refused(action, policy, rows, says):
    torch.set_default_dtype(torch.float32)
    own = make(small_env(action), policy).policy
    masks = torch.ones(rows, 3, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match=says) as caught, masking(own, masks):
        own.get_distribution(torch.zeros(2, 3))
    assert "\n" not in str(caught.value)
    own.get_distribution(torch.zeros(2, 3))  # as it was


def test_one_action_that_is_left_is_certain():
    masks = torch.tensor([False, True, False, False, False]).expand(4, -1)
    one = build("Discrete", torch.randn(4, 5), masks)
    assert (one.entropy() == 0).all()
    assert (one.log_prob(torch.ones(4)) == 0).all()
    assert one.log_prob(torch.zeros(4))[0] == -math.inf
