"""The settings of ACKTR; those that belong together are frozen dataclasses that check themselves.

What may change while training goes on is a number, a callable of the share of training that is left, or
an object of :mod:`acktr.schedules`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar

from stable_baselines3.common.type_aliases import Schedule

from acktr.envs.kinds import is_whole
from acktr.errors import ConfigurationError
from acktr.kfac.options import GROUPS, grouped
from acktr.networks.bfloat16 import PRECISIONS
from acktr.networks.checks import check_widths
from acktr.schedules import as_discount, as_schedule, as_trace_decay

Range = tuple[Callable[[Any], bool], str]

_POSITIVE_WHOLE: Range = (lambda x: is_whole(x, 1), "must be at least 1")
_NONE_OR_WHOLE: Range = (lambda x: x is None or is_whole(x, 1), "must be at least 1, or None")
_FINITE: Range = (lambda x: 0 <= x < math.inf, "must be finite, 0 or more")
_NONE_OR_FINITE: Range = (lambda x: x is None or 0 <= x < math.inf, _FINITE[1])
_RATE: Range = (lambda x: callable(x) or x > 0, "must be positive")
_STD: Range = (
    lambda x: x == "adaptive" or (not isinstance(x, str) and x > 0),
    "must be positive, or 'adaptive'",
)
_OPTION: Range = (lambda x: x is None or isinstance(x, bool), "must be True, False or None")
_SWITCH: Range = (lambda x: isinstance(x, bool), "must be True or False")
_OPTIONS: Range = (lambda x: isinstance(x, Mapping), "must be a mapping of KFAC's arguments")


class _Checked:
    """A group of settings that refuses what lies out of range when it is made."""

    argument: ClassVar[str]  # of ACKTR, that it is given for
    ranges: ClassVar[Mapping[str, Range]]
    schedules: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        for name in self.schedules:  # a string is told what it is now
            if isinstance(own[name], str):
                as_schedule(own[name], f"{self.argument}.{name}")
        _check_ranges(own, self.ranges, f"{self.argument}.")
        for name in self.schedules:
            if own[name] is not None:
                as_schedule(own[name], f"{self.argument}.{name}").check_ends()


@dataclass(frozen=True)
class Natural(_Checked):
    """The natural gradient: how it is computed, and what bounds its steps besides ``target_kl``.

    :param damping: lambda of the actor's Fisher, or of the joint one; ``None``: 0.1, of a policy that
        remembers 0.01
    :param cg_iterations: conjugate-gradient iterations that correct K-FAC's direction for the actor, or
        for both on a shared trunk, by the exact Fisher of the batch (:mod:`acktr.kfac.exact`); 0 for
        K-FAC's own direction
    :param sub_sampling_factor: the dearest curvature is taken of one sample in so many, drawn anew for
        each update: the exact Fisher where there is one, else K-FAC's statistics and measured KL
    :param kl_feedback: hold the *measured* KL at ``target_kl`` by scaling the bound that K-FAC is given
    :param corrected_learning_rate: eta_max in natural gradients as the measured KL corrects them
        (:mod:`acktr.learner.trust_region`), beside ``learning_rate``; number or schedule; ``None`` for
        none
    :param precision: ``"fp32"`` or ``"bf16"``: trunks under autocast and K-FAC's statistics in bfloat16,
        where the hardware has it (:mod:`acktr.networks.bfloat16`); heads, losses and inverses stay in
        fp32
    :param cuda_graphs: let a CUDA device repeat the updates by itself (:mod:`acktr.kfac.cuda_graphs`);
        elsewhere training goes on without, after a warning
    :param kfac_kwargs: further arguments of :class:`acktr.kfac.KFAC` for actor and critic alike
        (``curvature={"stat_decay": ...}``, ``momentum``, ...)
    :raises ConfigurationError: one is out of its range
    """

    damping: float | None = None
    cg_iterations: int = 0
    sub_sampling_factor: int = 1
    kl_feedback: bool = True
    corrected_learning_rate: float | Schedule | None = None
    precision: str = "fp32"
    cuda_graphs: bool = False
    kfac_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    argument: ClassVar[str] = "natural"
    schedules: ClassVar[tuple[str, ...]] = ("corrected_learning_rate",)
    ranges: ClassVar[Mapping[str, Range]] = {
        "damping": _NONE_OR_FINITE,
        "cg_iterations": (lambda x: is_whole(x, 0), "must be 0 or more"),
        "sub_sampling_factor": _POSITIVE_WHOLE,
        "kl_feedback": _SWITCH,
        "corrected_learning_rate": (
            lambda x: x is None or callable(x) or x > 0,
            "must be positive, or None",
        ),
        "precision": (lambda x: x in PRECISIONS, f"must be one of {', '.join(PRECISIONS)}"),
        "cuda_graphs": _SWITCH,
        "kfac_kwargs": _OPTIONS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrected_learning_rate is not None and not self.kl_feedback:
            raise ConfigurationError(
                "natural.corrected_learning_rate needs the measured KL: leave kl_feedback at True, or "
                "pass corrected_learning_rate=None and limit steps with learning_rate."
            )
        _check_kfac_kwargs(self)


class _CheckedCritic(_Checked):
    """Settings of a critic, of either kind."""

    argument: ClassVar[str] = "critic"
    schedules: ClassVar[tuple[str, ...]] = ("learning_rate",)
    learning_rate: float | Schedule

    def rate(self, progress_remaining: float) -> float:
        """Return the learning rate at a share of training that is left.

        :raises ConfigurationError: the schedule's value is not in its range
        """
        return as_schedule(self.learning_rate, "critic.learning_rate")(progress_remaining)


@dataclass(frozen=True)
class NaturalCritic(_CheckedCritic):
    """A critic that learns by natural gradients: Gauss-Newton steps, by K-FAC (paper, sec. 3.1 and 3.3).

    On a shared trunk it learns with the actor, in the same step, and what is said of a separate one
    does not count.

    :param learning_rate: eta_max of a separate critic; number or schedule
    :param damping: lambda of a separate critic's Gauss-Newton matrix; ``None`` as for :class:`Natural`
    :param trust_region: bound on the KL of one update of a separate critic,
        ``E[(change of V)^2] / (2 sigma^2)``, as a fraction of its loss
        ``E[(return - V)^2] / (2 sigma^2)``, so that it does not depend on the scale of rewards;
        ``None`` for none
    :param cg_iterations: of a separate critic, as those of :class:`Natural`
    :param n_updates: updates per rollout of a separate critic, 8 if ``None``
    :param batch_size: samples of each of them: they go through the shuffled rollout in parts, as often
        as they need; ``None`` for the whole rollout each time
    :param std: sigma of the critic's Gaussian output, or ``"adaptive"`` for the running standard
        deviation of the Bellman error (the paper's "adaptive Gauss-Newton", sec. 5.3)
    :param normalize_targets: predict returns in units of their running standard deviation, about their
        mean (PopArt, :mod:`acktr.learner.value_scale`), ``std`` too; ``None``: where ``VecNormalize``
        does not scale the rewards
    :param vf_coef: weight of the value loss on a shared trunk
    :param kfac_kwargs: arguments of :class:`acktr.kfac.KFAC` in which a separate critic differs from
        :class:`Natural`
    :raises ConfigurationError: one is out of its range
    """

    learning_rate: float | Schedule = 0.3
    damping: float | None = None
    trust_region: float | None = 0.05
    cg_iterations: int = 0
    n_updates: int | None = None
    batch_size: int | None = None
    std: float | str = 1.0
    normalize_targets: bool | None = None
    vf_coef: float = 0.5
    kfac_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": _RATE,
        "damping": _NONE_OR_FINITE,
        "trust_region": (lambda x: x is None or x > 0, "must be positive, or None"),
        "cg_iterations": (lambda x: is_whole(x, 0), "must be 0 or more"),
        "n_updates": _NONE_OR_WHOLE,
        "batch_size": _NONE_OR_WHOLE,
        "std": _STD,
        "normalize_targets": _OPTION,
        "vf_coef": _FINITE,
        "kfac_kwargs": _OPTIONS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kfac_kwargs(self)

    def check_joint(self) -> None:
        """Refuse what a critic that learns with the actor on a shared trunk cannot have.

        :raises ConfigurationError: several updates, or minibatches
        """
        if (self.n_updates or 1) > 1 or self.batch_size is not None:
            raise ConfigurationError(
                "critic.n_updates > 1 and critic.batch_size need a critic that learns by itself: a "
                "NaturalCritic on a shared trunk learns with the actor. Give an AdamCritic, or "
                "policy_kwargs=dict(share_features_extractor=False)."
            )


@dataclass(frozen=True)
class AdamCritic(_CheckedCritic):
    """A critic that learns in first order, by Adam: the paper's Euclidean norm (sec. 5.3).

    :param learning_rate: of Adam; number or schedule
    :param n_updates: as for :class:`NaturalCritic`, but 4 if ``None``, and on a shared trunk too; so are
        the others
    :param batch_size: samples of each update
    :param std: sigma of the critic's Gaussian output, or ``"adaptive"``
    :param normalize_targets: predict normalised returns
    :raises ConfigurationError: one is out of its range
    """

    learning_rate: float | Schedule = 1e-3
    n_updates: int | None = None
    batch_size: int | None = None
    std: float | str = 1.0
    normalize_targets: bool | None = None

    ranges: ClassVar[Mapping[str, Range]] = {
        name: NaturalCritic.ranges[name]
        for name in ("learning_rate", "n_updates", "batch_size", "std", "normalize_targets")
    }


Critic = NaturalCritic | AdamCritic

# KFAC's own arguments that ACKTR sets.
_OWNED = ("lr", "damping", "target_kl", "cg_iterations", "param_groups", "process_group")


def _check_kfac_kwargs(settings: Natural | NaturalCritic) -> None:
    """Refuse what ACKTR sets, and keep a mapping of its own: settings stay what they are."""
    argument, given = settings.argument, dict(settings.kfac_kwargs)
    owned = {*_OWNED} & given.keys()
    kwargs, earlier = grouped({name: value for name, value in given.items() if name not in owned})
    if earlier:
        warnings.warn(f"{argument}.kfac_kwargs: {', '.join(earlier)}.", FutureWarning, stacklevel=5)
    object.__setattr__(settings, "kfac_kwargs", kwargs)
    for name in GROUPS.keys() & kwargs.keys():
        if not isinstance(kwargs[name], Mapping):
            raise ConfigurationError(
                f"{argument}.kfac_kwargs: {name} must be a mapping of its fields, got {kwargs[name]!r}."
            )
    if "cg_iterations" in kwargs.get("step_rule", {}):
        owned.add("cg_iterations")
    for name in sorted(owned):
        raise ConfigurationError(
            f"{argument}.kfac_kwargs must not hold {name}: ACKTR sets it from its own arguments "
            "(learning_rate, target_kl, and damping and cg_iterations of natural and critic)."
        )


_RANGES: Mapping[str, Range] = {
    "n_steps": _NONE_OR_WHOLE,
    "gamma": (lambda x: callable(x) or isinstance(x, str) or 0 <= x <= 1, "must lie in [0, 1]"),
    "ent_coef": _FINITE,
    "noise_color": (lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
    "std_scale": (lambda x: callable(x) or isinstance(x, str) or x > 0, "must be positive"),
    "target_kl": (lambda x: callable(x) or isinstance(x, str) or x > 0, "must be positive (nats)"),
    "stats_window_size": (lambda x: x >= 1, "must be at least 1"),
    "normalize_advantage": (
        lambda x: isinstance(x, bool) or x == "running",
        "must be True, False or 'running'",
    ),
    "use_masking": _SWITCH,
    "natural": (lambda x: isinstance(x, Natural), "must be Natural(...)"),
    "critic": (lambda x: isinstance(x, Critic), "must be NaturalCritic(...) or AdamCritic(...)"),
}


def _check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    for name, (holds, range_) in ranges.items():
        try:
            within = bool(holds(values[name]))
        except (TypeError, ValueError, RuntimeError):  # of a type that is not compared with numbers
            within = False
        if not within:
            raise ConfigurationError(f"{prefix}{name} {range_}, got {values[name]!r}.")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the constructor's arguments.

    :param arguments: by name
    :raises ConfigurationError: names the argument, its range and what was given
    """
    _check_ranges(arguments, _RANGES)
    for name in ("learning_rate", "target_kl"):
        as_schedule(arguments[name], name).check_ends()
    as_schedule(arguments["std_scale"], "std_scale", positive=True).check_ends()
    as_discount(arguments["gamma"]).check_ends()
    as_trace_decay(arguments["gae_lambda"])
    _check_policy_kwargs(arguments["policy_kwargs"] or {})


def _check_policy_kwargs(kwargs: Mapping[str, Any]) -> None:
    for name in ("optimizer_class", "optimizer_kwargs"):
        if name in kwargs:
            raise ConfigurationError(
                f"policy_kwargs must not hold {name}: ACKTR's optimiser is K-FAC; its options go into "
                "natural=Natural(kfac_kwargs={...})."
            )
    net_arch = kwargs.get("net_arch")
    if isinstance(net_arch, list) and any(isinstance(part, Mapping) for part in net_arch[1:]):
        raise ConfigurationError(
            f"net_arch in policy_kwargs has shared layers before those of pi and vf ({net_arch}), which "
            "SB3 has no more: give dict(pi=[...], vf=[...]), or a features extractor to share."
        )
    check_widths(kwargs)
    log_std = kwargs.get("log_std_init", "auto")
    if log_std != "auto" and not (isinstance(log_std, Real) and math.isfinite(log_std)):
        raise ConfigurationError(
            f"log_std_init in policy_kwargs must be a finite number or 'auto', got {log_std!r}."
        )
    if kwargs.get("squash_output"):
        raise ConfigurationError(
            "squash_output in policy_kwargs is for gSDE, which is not supported: actions outside their "
            "bounds are clipped; leave it out."
        )
    if kwargs.get("use_sde"):
        raise ConfigurationError(
            "gSDE (use_sde) is not supported: its Fisher is not that of a Gaussian in the mean; leave "
            "it out."
        )


# What is chosen when a model is built, if nobody says it.
_LEFT_OPEN = ("critic.normalize_targets", "natural.damping", "critic.damping")


def check_kept(name: str, now: Any, built: Any) -> None:
    """Refuse a change of what a model was built with; schedules of a group may change.

    :param name: of the argument
    :param now: its value
    :param built: that of before
    :raises ConfigurationError: names what has changed
    """
    pairs = [(name, now, built)]
    if isinstance(built, _Checked) and type(now) is type(built):
        parts = [f.name for f in fields(built) if f.name not in built.schedules]  # type: ignore[arg-type]
        pairs = [(f"{name}.{part}", getattr(now, part), getattr(built, part)) for part in parts]
    for changed, value, before in pairs:
        if value is None and changed in _LEFT_OPEN:
            continue  # as it was
        if value != before:
            raise ConfigurationError(
                f"{changed} is {value!r} now, and the model was built with {before!r}: build a new one "
                "with it."
            )


def valid_range(name: str) -> str | None:
    """Say what a setting must be, as the checks do; ``None`` where they say nothing.

    :param name: of an argument, or of a part of one: ``"natural.damping"``
    """
    group, _, part = name.rpartition(".")
    ranges = {"": _RANGES, "natural": Natural.ranges, "critic": NaturalCritic.ranges}.get(group, {})
    return ranges[part][1] if part in ranges else None
