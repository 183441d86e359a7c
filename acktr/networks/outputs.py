"""The outputs of a policy, and the parameters that each of them depends on.

SB3 acts by ``forward`` and learns by ``evaluate_actions``. ACKTR rather asks ``get_distribution`` and
``predict_values``, which compute no more than a step needs. A policy of the user's own may override
some of the four alone: a few made-up observations tell which of them speak with one voice, and the
graph of the same passes tells which parameters actions and values depend on. No module is known by its
name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.distributions
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from acktr.errors import ConfigurationError
from acktr.networks.examples import as_stored, example_actions, example_observations
from acktr.networks.masks import masking
from acktr.networks.policies import CnnPolicy
from acktr.networks.recurrence import State
from acktr.networks.recurrent import Sequences


class Evaluation(NamedTuple):
    """The outputs of the networks for one batch of B samples.

    :param distributions: of the action's parts
    :param log_prob: of the actions taken, ``(B,)``
    :param entropy: of the policy, ``(B,)``; ``None`` where it has no closed form
    :param values: ``(B,)``; ``None`` where the critic shares nothing with the actor
    """

    distributions: list[Any]
    log_prob: Tensor
    entropy: Tensor | None
    values: Tensor | None


def as_list(distribution: Any) -> list[Any]:
    """Return the torch distributions of an action: SB3 keeps a list for MultiDiscrete."""
    return list(distribution) if isinstance(distribution, (list, tuple)) else [distribution]


@contextmanager
def without_validation() -> Iterator[None]:
    """Build torch's distributions without a look at their parameters: losses and KL are looked at.

    A look at each is dear on a CPU, makes the host wait for an accelerator, and cannot be recorded.
    """
    default = torch.distributions.Distribution
    before = default._validate_args
    default.set_default_validate_args(False)
    try:
        yield
    finally:
        default.set_default_validate_args(before)


class Outputs:
    """The outputs of one policy, by those of its methods that agree with what SB3 learns from.

    :param policy: with all its networks, which are as before afterwards
    :raises ConfigurationError: only ``evaluate_actions`` knows the policy, and does not give its
        distribution away
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy
        # Which methods are asked, as `_look` finds out.
        self.acts_by_forward = False
        self._learns_by_evaluation = False
        self._values_by_forward = False
        self._evaluates_in_one_pass = True
        self.noisy = False  # whether two passes in training mode differ, as with dropout
        self.shared = False  # whether actor and critic have parameters in common
        # By place among the policy's: one that moves to another device may have other tensors there.
        self._actor, self._critic = _look(policy, self)
        self.shared = not set(self._actor).isdisjoint(self._critic)

    @property
    def actor(self) -> list[nn.Parameter]:
        """The parameters that actions depend on; a shared trunk is among them."""
        return self._parameters(self._actor)

    @property
    def critic(self) -> list[nn.Parameter]:
        """The parameters that values depend on; a shared trunk is among them."""
        return self._parameters(self._critic)

    def _parameters(self, places: list[int]) -> list[nn.Parameter]:
        own = list(self._policy.parameters())
        return [own[place] for place in places]

    @without_validation()
    def evaluate(self, obs: Any, actions: Tensor, masks: Tensor | None = None) -> Evaluation:
        """Evaluate the actor on a batch, and the critic if both share parameters.

        :param obs: ``(B, *obs)`` as the policy takes them, or a dict of such tensors
        :param actions: ``(B, action_dim)``; ``(B,)`` for Discrete
        :param masks: which actions were allowed, ``(B, width)`` (:mod:`acktr.networks.masks`); all
            is then that of the masked policy
        """
        policy = self._policy
        if self._learns_by_evaluation or (self.shared and self._evaluates_in_one_pass):
            # One pass through the trunk: a second one would count as a second use of its layers.
            with masking(policy, masks):
                values, log_prob, entropy = policy.evaluate_actions(obs, actions)
            # SB3 keeps one wrapper and fills it anew: hold on to what is in it now.
            parts = as_list(policy.action_dist.distribution)
            return Evaluation(parts, log_prob, entropy, values.flatten() if self.shared else None)
        distribution = self._distribution(obs, masks)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        parts = as_list(distribution.distribution)
        return Evaluation(parts, log_prob, entropy, self.values(obs) if self.shared else None)

    @without_validation()
    def distributions(self, obs: Any, actions: Tensor, masks: Tensor | None = None) -> list[Any]:
        """Return the distributions of :meth:`evaluate` alone."""
        if self._learns_by_evaluation:
            return self.evaluate(obs, actions, masks).distributions
        return as_list(self._distribution(obs, masks).distribution)

    def _distribution(self, obs: Any, masks: Tensor | None) -> Distribution:
        with masking(self._policy, masks):
            return self._policy.get_distribution(obs)

    def values(self, obs: Any) -> Tensor:
        """Return the critic's values, ``(B,)``."""
        if self._values_by_forward:
            return self._policy.forward(obs, deterministic=True)[1].flatten()
        return self._policy.predict_values(obs).flatten()

    def values_and_memory(self, obs: Any) -> tuple[Tensor, State | None]:
        """Return values ``(B,)``, and the states behind those of sequences after each step."""
        if not isinstance(obs, Sequences):
            return self.values(obs), None
        values, states = self._policy.values_and_memory(obs)  # type: ignore[operator]  # RecurrentPolicy's
        return values.flatten(), states

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Leave out what is random in the networks, and draw alike what stays random.

        The policy that acts has no dropout, and two masks alone would be a KL of their own. A policy
        without noise is left in its mode.
        """
        if not self.noisy:
            yield
            return
        with _modes_kept(self._policy), _random_numbers_kept(self._policy, seed=0):
            self._policy.set_training_mode(False)
            yield


def _look(policy: ActorCriticPolicy, outputs: Outputs) -> tuple[list[int], list[int]]:
    """Send made-up observations through a policy.

    :param outputs: told which methods to ask, and whether they are noisy
    :return: the places of the parameters that actions depend on, and of those that values depend on
    """
    _materialize(policy)
    params = _ordered(policy)
    trained = [p for p in params if p.requires_grad]
    problem: Exception | None = None  # of the last try
    with _state_kept(policy), without_validation():
        for obs in example_observations(policy):
            try:
                actions = _choose_methods(policy, outputs, obs)
                actor, critic = _dependencies(policy, outputs, obs, actions)
                outputs.noisy = _is_noisy(policy, outputs, obs, actions)
                problem = None
                break
            except ConfigurationError:
                raise
            # What somebody's network says of observations that cannot be is up to it.
            except Exception as error:
                problem = error
        else:
            actor, critic = _held_by_modules(policy)
    unused = set(trained) - actor - critic
    if unused:
        kind, names = type(policy).__name__, [n for n, p in policy.named_parameters() if p in unused]
        why = f"Neither actions nor values of {kind} depend on {', '.join(names)}"
        if problem:
            why = (
                f"{kind} takes no made-up observation ({_first_line(problem)}), and SB3's modules, by "
                f"which its parameters are known then, do not hold {', '.join(names)}"
            )
        warnings.warn(f"{why}: nothing trains them.", UserWarning, stacklevel=2)
    places = {p: place for place, p in enumerate(policy.parameters())}
    return [places[p] for p in params if p in actor], [places[p] for p in params if p in critic]


# Which methods agree -------------------------------------------------------------------------


@torch.no_grad()
def _choose_methods(policy: ActorCriticPolicy, outputs: Outputs, obs: Any) -> Tensor:
    """Find out which methods tell the policy that SB3 would act and learn by.

    Who overrides ``get_distribution`` or ``predict_values`` and neither ``forward`` nor
    ``evaluate_actions`` means it, though SB3 would not ask it in training.

    :return: actions to evaluate
    :raises ConfigurationError: its distribution cannot be had
    """
    policy.set_training_mode(False)

    def ask(method: Any, *args: Any) -> Any:
        # What stays random in evaluation mode is drawn alike by all.
        with suppress(Exception), _random_numbers_kept(policy, seed=0):
            return method(*args)

    def log_prob(actions: Tensor) -> Any:
        # Asked anew each time: SB3's own writes into a wrapper that others write into too.
        return ask(lambda: policy.get_distribution(obs).log_prob(actions))

    drawn = ask(policy.forward, obs)
    sampled = example_actions(policy)
    tried = [sampled] if drawn is None else [sampled, as_stored(drawn[0], policy)]
    evaluated, left_behind = [], []
    for actions in tried:
        evaluated.append(ask(policy.evaluate_actions, obs, actions))
        left_behind.append(ask(policy.action_dist.log_prob, actions))
    told = [log_prob(actions) for actions in tried]
    values = ask(policy.predict_values, obs)
    means_others = _overrides(policy, "forward", "evaluate_actions")
    tells = _overrides(policy, "get_distribution") and not means_others
    means_values = _overrides(policy, "predict_values") and not means_others
    outputs.acts_by_forward = drawn is not None and not (
        (tells or _alike(drawn[2], told[-1])) and (means_values or _alike(drawn[1], values))
    )
    if any(x is None for x in evaluated):
        outputs._evaluates_in_one_pass = False
        if any(x is None for x in (*told, values)):
            policy.evaluate_actions(obs, sampled)  # nothing works: what it raises tells why
        return sampled
    log_probs = [x[1] for x in evaluated]
    same = all(map(_alike, log_probs, told)), _alike(evaluated[0][0], values)
    in_wrapper = all(map(_alike, log_probs, left_behind))
    outputs._learns_by_evaluation = not (same[0] or tells)
    outputs._values_by_forward = drawn is not None and not (same[1] or means_values)
    # Not where get_distribution or predict_values is asked for what it alone says.
    outputs._evaluates_in_one_pass = in_wrapper and (
        (same[0] or outputs._learns_by_evaluation) and (same[1] or outputs._values_by_forward)
    )
    if outputs._learns_by_evaluation and not in_wrapper:
        name = type(policy).__name__
        raise ConfigurationError(
            f"{name}.evaluate_actions has other log-probabilities than {name}.get_distribution, and "
            "does not leave its distribution in self.action_dist, where K-FAC could find it: override "
            "get_distribution too, or build it with self.action_dist.proba_distribution."
        )
    return sampled


def _overrides(policy: ActorCriticPolicy, *names: str) -> bool:
    """Whether a policy has a method of the user's own in the place of SB3's, or of ours."""
    own = CnnPolicy if isinstance(policy, CnnPolicy) else ActorCriticPolicy
    return any(
        name in vars(policy) or getattr(type(policy), name) is not getattr(own, name) for name in names
    )


def _alike(first: Tensor, second: Tensor | None) -> bool:
    """Whether two answers are the same but for rounding."""
    if second is None or first.numel() != second.numel():
        return False
    pair = first.flatten().float(), second.flatten().float()
    return torch.allclose(*pair, rtol=1e-3, atol=1e-4, equal_nan=True)


@torch.no_grad()
def _is_noisy(policy: ActorCriticPolicy, outputs: Outputs, obs: Any, actions: Tensor) -> bool:
    """Whether the networks draw random numbers where they learn, or differ from pass to pass."""
    policy.set_training_mode(True)
    with _random_numbers_kept(policy, seed=0):
        before = torch.get_rng_state()
        passes = [(outputs.evaluate(obs, actions).log_prob, outputs.values(obs)) for _ in range(2)]
        drawn = policy.device.type == "cpu" and not torch.equal(before, torch.get_rng_state())
    return drawn or not all(map(_alike, *passes))


# Which parameters they depend on -------------------------------------------------------------


@torch.enable_grad()
def _dependencies(
    policy: ActorCriticPolicy, outputs: Outputs, obs: Any, actions: Tensor
) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Find the parameters below the actions' probabilities and below the values."""
    policy.set_training_mode(True)
    for p in policy.parameters():
        # What is frozen today may be thawed tomorrow.
        p.requires_grad_(p.is_floating_point())
    with _random_numbers_kept(policy, seed=0):
        log_prob = outputs.evaluate(obs, actions).log_prob
        values = outputs.values(obs)
    return _below(log_prob), _below(values)


def _below(output: Tensor) -> set[nn.Parameter]:
    """Return the parameters that the graph of a tensor leads to."""
    found, seen, stack = set(), set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter):
            found.add(leaf)
        stack.extend(child for child, _ in node.next_functions)
    return found


def _ordered(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """Return all parameters in the order in which optimisers have always had those of SB3's modules."""
    return list(dict.fromkeys(p for ps in (*_modules(policy), policy.parameters()) for p in ps))


def _modules(policy: ActorCriticPolicy) -> list[list[nn.Parameter]]:
    """Return the parameters of SB3's modules of the actor, and of the critic."""
    hidden, above = (getattr(policy.mlp_extractor, n, None) for n in ("policy_net", "value_net"))
    actor = _parameters(policy.pi_features_extractor, hidden, policy.action_net)
    critic = _parameters(policy.vf_features_extractor, above, policy.value_net)
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        actor.append(policy.log_std)
    return [actor, critic]


def _parameters(*modules: Any) -> list[nn.Parameter]:
    return [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]


def _held_by_modules(policy: ActorCriticPolicy) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    actor, critic = _modules(policy)
    memory = _parameters(getattr(policy, "lstm_actor", None))
    apart = _parameters(*(getattr(policy, name, None) for name in ("lstm_critic", "critic")))
    return {*actor, *memory}, {*critic, *(apart or memory)}


# Left as it was ------------------------------------------------------------------------------


def _materialize(policy: ActorCriticPolicy) -> None:
    """Let lazy layers learn their sizes, with random numbers that are the model's own."""
    if any(map(is_lazy, (*policy.parameters(), *policy.buffers()))):
        with torch.no_grad():
            policy.forward(next(example_observations(policy)))


@contextmanager
def _state_kept(policy: ActorCriticPolicy) -> Iterator[None]:
    """Put back buffers, modes, frozen parameters, random numbers and the distribution's wrapper."""
    buffers = [(b, b.detach().clone()) for b in policy.buffers()]
    frozen = [(p, p.requires_grad) for p in policy.parameters()]
    wrapper = dict(vars(policy.action_dist))
    try:
        with _modes_kept(policy), _random_numbers_kept(policy):
            yield
    finally:
        for p, requires_grad in frozen:
            p.requires_grad_(requires_grad)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        vars(policy.action_dist).clear()
        vars(policy.action_dist).update(wrapper)


@contextmanager
def _modes_kept(policy: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in policy.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _random_numbers_kept(policy: ActorCriticPolicy, seed: int | None = None) -> Iterator[None]:
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _first_line(error: Exception | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
