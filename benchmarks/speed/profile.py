"""Where the time of training goes: phases of one process, timed from outside, and their picture."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.policies import ActorCriticPolicy

from acktr import ACKTR, KFAC
from acktr.networks.recurrent import RecurrentPolicy
from acktr.rollout.actions import ActionSampler
from acktr.rollout.memory import MemorySampler

ENVIRONMENTS, INFERENCE, ROLLOUT = "environments", "inference", "rest of the rollout"
NETWORKS, FACTORS, INVERSES = "forward and backward", "factors", "inverses"
STEP, REST = "precondition, trust region, apply", "rest of the update"
PHASES = (ENVIRONMENTS, INFERENCE, ROLLOUT, NETWORKS, FACTORS, INVERSES, STEP, REST)
_POLICY_METHODS = {
    *("forward", "get_distribution", "predict_values", "evaluate_actions"),
    *("latent_actor", "values_and_memory"),  # of those that remember
}


class Profiler:
    """Charges all time to the innermost phase that is open; to :data:`REST` where none is.

    :param finish: waits for a device, so that its time is charged to the phase that gave it the work
    :param clock: in seconds
    """

    def __init__(
        self, finish: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._finish, self._clock = finish, clock
        self._open = [REST]
        self.reset()

    def reset(self) -> None:
        """Begin anew, inside whatever phase is open."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = self._clock()

    def totals(self) -> dict[str, float]:
        """Seconds by phase since the last reset."""
        self._charge()
        return dict(self.seconds)

    def timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Return a function that is charged to a phase while it runs."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            # In training the policy's passes are those that the gradient goes through.
            training = phase == INFERENCE and ROLLOUT not in self._open
            self._open.append(NETWORKS if training else phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()

        return wrapped

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Time a method of one object, or of a class, from now on."""
        setattr(owner, name, self.timed(getattr(owner, name), phase))

    def _charge(self) -> None:
        self._finish()
        now = self._clock()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now


def watch(
    model: ACKTR,
    finish: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Profiler:
    """Time the phases of a model from now on, by changing it and the classes it uses.

    :param model: in a process that does nothing else
    :param finish: see :class:`Profiler`
    :param clock: see :class:`Profiler`
    """
    profiler = Profiler(finish, clock)
    for name in ("step_async", "step_wait"):
        profiler.wrap(type(model.env), name, ENVIRONMENTS)
    profiler.wrap(model, "collect_rollouts", ROLLOUT)
    for sampler in (ActionSampler, MemorySampler):
        for name in {"__init__", "__call__", "noise"} & set(vars(sampler)):
            profiler.wrap(sampler, name, INFERENCE)
    # On the class: a policy with methods of its own would lose the short way to its actions.
    for owner in (ActorCriticPolicy, RecurrentPolicy):
        for name in _POLICY_METHODS & set(vars(owner)):
            profiler.wrap(owner, name, INFERENCE)
    profiler.wrap(torch.Tensor, "backward", NETWORKS)
    for optimizer in filter(None, (model.kfac, model.critic_optimizer)):
        if isinstance(optimizer, KFAC):
            profiler.wrap(optimizer, "update_curvature", FACTORS)
            for schedule in optimizer._schedules:
                profiler.wrap(schedule, "refresh", INVERSES)
        profiler.wrap(optimizer, "step", STEP)
    return profiler


def draw(profiles: Mapping[str, Mapping[str, float]], out: Path) -> None:
    """Draw one stacked bar a setting; settings on very different scales get axes of their own.

    :param profiles: microseconds per environment step, by setting and phase
    :param out: the picture to write
    """
    scales: dict[bool, list[str]] = {}
    for label, phases in profiles.items():
        scales.setdefault(sum(phases.values()) > 300.0, []).append(label)
    panels = [scales[large] for large in sorted(scales)]
    rows = [len(labels) for labels in panels]
    figure = Figure(figsize=(10, 1.6 + 0.65 * sum(rows) + 0.5 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, labels in zip(all_axes, panels, strict=True):
        _bars(axes, {label: profiles[label] for label in labels})
    all_axes[-1].set_xlabel("microseconds per environment step")
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)


def _bars(axes: Axes, profiles: Mapping[str, Mapping[str, float]]) -> None:
    longest = max(sum(phases.values()) for phases in profiles.values())
    for row, phases in enumerate(profiles.values()):
        left = 0.0
        for index, phase in enumerate(PHASES):
            width = phases[phase]
            axes.barh(row, width, 0.7, left, color=f"C{index}", label=phase if row == 0 else None)
            if width > 0.035 * longest:
                axes.text(
                    left + width / 2, row, f"{width:.0f}", ha="center", va="center", color="white",
                    fontsize=8,
                )  # fmt: skip
            left += width
        axes.text(left + 0.01 * longest, row, f"{left:.0f} µs", va="center", fontsize=9)
    axes.set_yticks(range(len(profiles)), list(profiles))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * longest)
    axes.spines[["top", "right"]].set_visible(False)
