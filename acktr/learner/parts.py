"""The parts of a learner, built from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from stable_baselines3.common.policies import ActorCriticPolicy
from torch.optim import Adam

from acktr.errors import ConfigurationError
from acktr.kfac import KFAC
from acktr.learner.actor import ActorUpdate
from acktr.learner.advantages import AdvantageScale
from acktr.learner.critic import AdamCriticUpdate, CriticUpdate, NaturalCriticUpdate
from acktr.learner.discount import Discount
from acktr.learner.natural_step import NaturalStep
from acktr.learner.noise import Noise
from acktr.learner.optimizers import build_optimizers
from acktr.learner.settings import AdamCritic, Critic, Natural, NaturalCritic, check_kept
from acktr.learner.trust_region import TrustRegion
from acktr.learner.value_scale import ValueScale
from acktr.networks.outputs import Outputs


class Part(Protocol):
    """Anything that remembers something from one update to the next, as torch's optimisers do."""

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""


class Parts(NamedTuple):
    """Everything that learns, or that remembers something from one update to the next.

    :param critic_update: ``None`` where the critic learns with the actor
    :param notes: what a user should know of how they are built, in sentences
    :param policy: which learns
    :param built_with: the settings that they have taken, by name
    """

    discount: Discount
    advantage_scale: AdvantageScale
    value_scale: ValueScale
    noise: Noise
    trust_region: TrustRegion
    actor_update: ActorUpdate
    critic_update: CriticUpdate | None
    notes: list[str]
    policy: ActorCriticPolicy
    built_with: Mapping[str, Any]

    def check_kept(self, settings: Mapping[str, Any]) -> None:
        """Refuse a policy or settings that are no longer those that the parts have taken.

        :param settings: of now, by name, the policy among them
        :raises ConfigurationError: names the first; the schedules among them may change
        """
        ours, now = list(self.policy.parameters()), list(settings["policy"].parameters())
        if len(ours) != len(now) or any(a is not b for a, b in zip(ours, now, strict=True)):
            raise ConfigurationError(
                "The model has another policy than it was built with, which would not learn: put the "
                "other's parameters into its own with model.policy.load_state_dict(...)."
            )
        for name, built in self.built_with.items():
            check_kept(name, settings[name], built)

    def owners(self) -> dict[str, Part]:
        """Return the parts that own a state, besides networks and optimisers, by name."""
        names = ("discount", "advantage_scale", "value_scale", "noise", "trust_region")
        return {name: getattr(self, name) for name in names}


def build_parts(
    policy: ActorCriticPolicy,
    outputs: Outputs,
    natural: Natural,
    critic: Critic,
    normalize_advantage: bool | str,
    learning_rate: float,
    precision: str,
    searches: bool = False,
) -> Parts:
    """Build the parts of a learner, and give its parameters to their optimisers.

    :param policy: which learns; it has its ``optimizer`` afterwards, and its ``critic_optimizer``
    :param outputs: its outputs
    :param natural: how natural gradients are computed
    :param critic: how the critic learns
    :param normalize_advantage: of :class:`~acktr.learner.advantages.AdvantageScale`
    :param learning_rate: the first one
    :param precision: of the networks, as it is available
    :param searches: whether a Gaussian's noise grows while nothing is found
    :raises ConfigurationError: settings that do not go together
    """
    rates = learning_rate, critic.rate(1.0)
    optimizers = build_optimizers(policy, outputs, natural, critic, rates, precision)
    policy.optimizer = optimizers.actor
    # It lives beside `optimizer` on the policy, as no parameter of a module.
    policy.__dict__["critic_optimizer"] = optimizers.critic
    deferred = policy.device.type != "cpu"  # a look at a value would wait for the device
    quiet = outputs.quiet if outputs.noisy else None
    of_actor, of_critic = optimizers.graphs

    def step(name: str, kfac: KFAC, graphs: Any) -> NaturalStep:
        factor = natural.sub_sampling_factor
        return NaturalStep(kfac, factor, quiet=quiet, deferred=deferred, graphs=graphs, name=name)

    value_scale, trust_region = ValueScale(policy, outputs, critic.std), TrustRegion(natural.kl_feedback)
    alone: CriticUpdate | None = None
    if isinstance(critic, NaturalCritic) and isinstance(optimizers.critic, KFAC):
        alone = NaturalCriticUpdate(
            step("critic", optimizers.critic, of_critic), outputs, value_scale, critic, deferred
        )
    elif isinstance(critic, AdamCritic) and isinstance(optimizers.critic, Adam):
        alone = AdamCriticUpdate(
            optimizers.critic, outputs, value_scale, critic, deferred, graphs=of_critic
        )
    joint = isinstance(critic, NaturalCritic) and alone is None
    return Parts(
        discount=Discount(),
        advantage_scale=AdvantageScale(normalize_advantage, bool(critic.normalize_targets)),
        value_scale=value_scale,
        noise=Noise(searches),
        trust_region=trust_region,
        actor_update=ActorUpdate(
            step("actor", optimizers.actor, of_actor),
            outputs,
            value_scale,
            trust_region,
            critic.vf_coef if isinstance(critic, NaturalCritic) and joint else None,
            deferred,
        ),
        critic_update=alone,
        notes=optimizers.notes,
        policy=policy,
        built_with={"natural": natural, "critic": critic, "normalize_advantage": normalize_advantage},
    )
