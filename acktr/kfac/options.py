"""What users choose: how curvature is approximated, when it is made anew, how a step is made of it.

Each group checks itself when it is made. A mapping of its fields does as well, as a preset has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

import torch

from acktr.kfac.inverses import INVERSES
from acktr.kfac.likelihood import ESTIMATORS

APPROXIMATIONS = ("kfac", "ekfac", "diagonal")
WEIGHT_SHARING = ("expand", "reduce")
_CHAINS = ("lgm-1", "lgm-2")
RECURRENT = ("independent", *_CHAINS, "diagonal")
REFRESHES = ("together", "staggered", "background")
# What a layer may have for itself.
OF_LAYERS = ("approximation", "inverse", "weight_sharing", "recurrent", "max_factor_size")


@dataclass(frozen=True)
class Curvature:
    """How the Fisher is approximated.

    :param approximation: ``"kfac"``; ``"ekfac"``, with measured eigenvalues (:mod:`acktr.kfac.ekfac`);
        or ``"diagonal"``
    :param inverse: how damping enters the inverse of a Kronecker product: ``"cholesky"``, in both
        factors, or ``"eigen"``, see :mod:`acktr.kfac.inverses`
    :param fisher: ``"curvature-propagation"`` or ``"monte-carlo"``, see :mod:`acktr.kfac.likelihood`
    :param stat_decay: rho of the running averages, in (0, 1]; 1 averages all batches alike
    :param weight_sharing: what positions of a convolution or sequence do to each other: ``"expand"``
        takes them as independent (KFC), ``"reduce"`` sums them up, see :mod:`acktr.kfac.blocks`
    :param recurrent: what time steps of a recurrent layer do to each other: ``"independent"``, chains
        ``"lgm-1"``, ``"lgm-2"`` (:mod:`acktr.kfac.recurrent`), or ``"diagonal"``: no Kronecker block
    :param max_factor_size: factors of wider layers are split into diagonal blocks no wider than this,
        which bounds memory and time; ``"auto"``: those of more than 2048 inputs or outputs, at 1024;
        ``None`` for no bound
    :param statistics_dtype: of the products that make the factors (``torch.bfloat16``), not of averages
    :param layers: what is otherwise in some layers, by dotted name of a module or a parameter: an
        approximation, a mapping of :data:`OF_LAYERS`, or ``None`` to leave the layer alone
    :raises ValueError: one is out of its range
    """

    approximation: str = "kfac"
    inverse: str = "cholesky"
    fisher: str = "curvature-propagation"
    stat_decay: float = 0.95
    weight_sharing: str = "expand"
    recurrent: str = "independent"
    max_factor_size: int | str | None = "auto"
    statistics_dtype: torch.dtype | str | None = None
    layers: Mapping[str, str | Mapping[str, Any] | None] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_choice("approximation", self.approximation, APPROXIMATIONS)
        check_choice("inverse", self.inverse, tuple(INVERSES))
        check_choice("fisher", self.fisher, ESTIMATORS)
        if not 0.0 < self.stat_decay <= 1.0:
            raise ValueError(f"stat_decay must lie in (0, 1], got {self.stat_decay}.")
        check_choice("weight_sharing", self.weight_sharing, WEIGHT_SHARING)
        check_choice("recurrent", self.recurrent, RECURRENT)
        self._check_size()
        self._check_dtype()
        self._check_chain()
        if not isinstance(self.layers, Mapping):
            raise ValueError(f"layers must be a mapping by names of layers, got {self.layers!r}.")
        object.__setattr__(self, "layers", dict(self.layers))
        for name, said in self.layers.items():
            if isinstance(said, Mapping) and (odd := sorted(said.keys() - {*OF_LAYERS})):
                raise ValueError(f"layers[{name!r}] sets {odd}; it may set {', '.join(OF_LAYERS)}.")
            try:
                self.of(name)
            except (TypeError, ValueError) as error:
                raise ValueError(f"layers[{name!r}] is not valid: {error}") from error

    def _check_size(self) -> None:
        size = self.max_factor_size
        if not (size == "auto" if isinstance(size, str) else size is None or size >= 1):
            raise ValueError(
                f"max_factor_size must be at least 1, 'auto', or None for no bound, got {size!r}."
            )

    def _check_dtype(self) -> None:
        dtype = self.statistics_dtype
        if isinstance(dtype, str):  # as a preset writes it
            dtype = getattr(torch, dtype, dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                "statistics_dtype must be a floating-point dtype such as torch.bfloat16, or None, got "
                f"{self.statistics_dtype!r}."
            )
        object.__setattr__(self, "statistics_dtype", dtype)

    def _check_chain(self) -> None:
        for option, only in (
            ("approximation", "kfac"),
            ("inverse", "cholesky"),  # whose damping a chain's own inverse has
            ("weight_sharing", "expand"),
        ):
            value = getattr(self, option)
            if self.recurrent in _CHAINS and value != only:
                raise ValueError(
                    f"recurrent={self.recurrent!r} goes with {option}={only!r} alone, got "
                    f"{option}={value!r}: leave one out."
                )

    def of(self, name: str) -> Curvature | None:
        """Return what holds for a parameter: its own name counts, else the nearest module around it.

        :return: ``None`` where it is left alone
        """
        while name not in self.layers:
            if not name:
                return self
            name = name.rpartition(".")[0]
        said = self.layers[name]
        if said is None:
            return None
        own = dict(said) if isinstance(said, Mapping) else {"approximation": said}
        if own.get("approximation", "kfac") != "kfac":
            own.setdefault("recurrent", "independent")
        changed: Curvature = dataclasses.replace(self, **own, layers={})
        return changed

    def is_diagonal(self, name: str) -> bool:
        """Whether a parameter is to have a diagonal block."""
        own = self.of(name)
        return own is not None and own.approximation == "diagonal"

    def leaves_out(self, name: str) -> bool:
        """Whether a parameter is left alone."""
        return self.of(name) is None

    def check_names(self, known: Iterable[str]) -> None:
        """Refuse names of no layer.

        :param known: of modules and parameters
        :raises ValueError: there is no such layer
        """
        known = {*known}
        for name in self.layers:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise ValueError(
                    f"layers names {name!r}, which is no module or parameter of the model"
                    + (f": did you mean {near[0]!r}?" if near else ".")
                )


@dataclass(frozen=True)
class Periods:
    """When statistics are taken and inverses made anew: always at first, then now and then.

    :param factor: statistics are taken at every so many-th call of ``update_curvature``
    :param inverse: inverses are made anew at every so many-th step
    :param burn_in: in so many first calls and steps both periods are 1
    :param inverse_refresh: ``"together"``, ``"staggered"`` over the period, or in the ``"background"``
        while steps go on, see :class:`acktr.kfac.schedule.InverseSchedule`
    :raises ValueError: one is out of its range
    """

    factor: int = 5
    inverse: int = 10
    burn_in: int = 20
    inverse_refresh: str = "together"

    def __post_init__(self) -> None:
        for name in ("factor", "inverse"):
            if getattr(self, name) < 1:
                raise ValueError(f"periods.{name} must be at least 1, got {getattr(self, name)}.")
        if self.burn_in < 0:
            raise ValueError(f"burn_in must be 0 or more, got {self.burn_in}.")
        check_choice("inverse_refresh", self.inverse_refresh, REFRESHES)

    def takes(self, calls: int) -> bool:
        """Whether the next call takes statistics.

        :param calls: those made so far
        """
        return calls < self.burn_in or (calls - self.burn_in) % self.factor == 0

    def taken(self, calls: int) -> int:
        """Return how often statistics were taken in so many calls."""
        return min(calls, self.burn_in) - (-max(calls - self.burn_in, 0) // self.factor)

    def phase(self, step: int) -> int:
        """Return how many steps ago inverses were due: 0 where they are.

        :param step: steps taken so far
        """
        return 0 if step < self.burn_in else (step - self.burn_in) % self.inverse


@dataclass(frozen=True)
class StepRule:
    """How a step is made of the natural gradient, besides ``target_kl``; a parameter group may differ.

    :param cg_iterations: conjugate-gradient iterations towards the natural gradient of the *exact*
        Fisher of the batch, with K-FAC as preconditioner and as damping (see :mod:`acktr.kfac.exact`)
    :param exact_scaling: the best mix of direction and previous step, which any ``momentum`` > 0 brings
        in, by the exact Fisher of the batch (see :mod:`acktr.kfac.scaling`)
    :param adapt_damping: move ``damping`` by what ``report_reduction`` says of the steps (see
        :mod:`acktr.kfac.damping`)
    """

    cg_iterations: int = 0
    exact_scaling: bool = False
    adapt_damping: bool = False


GROUPS: Mapping[str, type] = {"curvature": Curvature, "periods": Periods, "step_rule": StepRule}
_NEW = ("approximation", "layers")
# Arguments of KFAC in 0.1.0: the group and the field that each is now.
EARLIER: Mapping[str, tuple[str, str]] = {
    **{f.name: ("curvature", f.name) for f in fields(Curvature) if f.name not in _NEW},
    **{f.name: ("step_rule", f.name) for f in fields(StepRule)},
    "factor_period": ("periods", "factor"),
    "inverse_period": ("periods", "inverse"),
    "burn_in": ("periods", "burn_in"),
    "inverse_refresh": ("periods", "inverse_refresh"),
}


def grouped(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Bring arguments of 0.1.0 into the groups of now.

    :param arguments: of :class:`acktr.kfac.KFAC`, of then or of now
    :return: those of now, each group a mapping, and a clause for each that was one of 0.1.0
    """
    found, clauses = {}, []
    for name, value in arguments.items():
        if name in GROUPS and value is not None:
            found[name] = as_mapping(value)
        elif name not in EARLIER:
            found[name] = value
    for name in arguments.keys() & EARLIER.keys():
        group, key = EARLIER[name]
        if (name, arguments[name]) == ("inverse", "ekfac"):
            key = "approximation"
        inner = found.get(group) or {}
        if isinstance(inner, Mapping):
            found[group] = {**inner, key: arguments[name]}
        clauses.append(f"{name} is now {group}={GROUPS[group].__name__}({key}=...)")
    return found, sorted(clauses)


def as_mapping(value: Any) -> Any:
    """Return the fields of a group that differ from its defaults; what is no group as it is."""
    if isinstance(value, Mapping):
        return dict(value)
    if type(value) not in GROUPS.values():
        return value
    default = type(value)()
    names = [f.name for f in fields(value)]
    return {n: getattr(value, n) for n in names if getattr(value, n) != getattr(default, n)}


_Group = TypeVar("_Group", Curvature, Periods, StepRule)


def as_group(kind: type[_Group], value: Any) -> _Group:
    """Return a group of options as users may give it.

    :param value: the group, a mapping of its fields, or ``None`` for its defaults
    :raises ValueError: an unknown field, or a value out of its range
    :raises TypeError: neither of them
    """
    argument = next(name for name, group in GROUPS.items() if group is kind)
    if isinstance(value, kind):
        return value
    if value is None:
        return kind()
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{argument} must be {kind.__name__}(...), or a mapping of its fields, got {value!r}."
        )
    known = [f.name for f in fields(kind)]
    for name in value:
        if name not in known:
            near = get_close_matches(str(name), known, 1) or [", ".join(known)]
            raise ValueError(f"{argument} has no {name!r}: did you mean {near[0]}?")
    return kind(**value)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a word that is not known.

    :raises ValueError: names those that are
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
