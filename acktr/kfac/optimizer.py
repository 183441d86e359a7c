"""The K-FAC optimiser: natural-gradient steps inside a KL trust region.

Martens & Grosse 2015 (arXiv 1503.05671), Grosse & Martens 2016 (1602.01407), Wu et al. 2017
(1708.05144)::

    curvature     A <- rho A + (1 - rho) E[a a'],  S <- rho S + (1 - rho) E[g g']
    refresh       A^-1, S^-1 with damping
    precondition  v <- momentum v + S^-1 (dL/dW) A^-1,  D = v + weight_decay W
    trust_region  eta = min(eta_max, sqrt(2 target_kl / (D' F D)))
    apply         W <- W - eta D

With ``cg_iterations`` conjugate gradients correct ``S^-1 (dL/dW) A^-1`` by the exact Fisher of the batch
(:mod:`acktr.kfac.exact`); with ``exact_scaling`` it chooses the length (:mod:`acktr.kfac.scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from acktr.kfac.averages import statistics_like
from acktr.kfac.blocks import Block
from acktr.kfac.capture import Capture
from acktr.kfac.comm import comm_of, group_of
from acktr.kfac.curvature import average_in, draw_statistics, share
from acktr.kfac.damping import Promise, adapt, promised_reduction
from acktr.kfac.likelihood import Likelihood, accumulated, likelihoods_of
from acktr.kfac.measured import Call, Measured, Taken, hold
from acktr.kfac.options import Curvature, Periods, StepRule, as_group
from acktr.kfac.plan import apply_steps, prepare
from acktr.kfac.reducer import Reducer
from acktr.kfac.refresh import COUNTERS
from acktr.kfac.schedule import InverseSchedule
from acktr.kfac.structure import Structure
from acktr.kfac.trust_region import StepInfo
from acktr.kfac.validation import as_groups, check_group, check_ready, with_earlier, without_gone


class KFAC(Optimizer):
    """Kronecker-factored natural gradient with a trust region, for any :class:`torch.nn.Module`.

    ::

        with kfac.capture():
            logits = model(x)
        kfac.update_curvature(CrossEntropy(logits))
        F.cross_entropy(logits, y).backward()
        kfac.step(forward=lambda: CrossEntropy(model(x)))

    ``lr``, ``damping``, ``target_kl``, ``momentum``, ``weight_decay`` and the fields of ``step_rule``
    live in ``param_groups`` and may differ between groups and change at any time; each group has its
    own trust region.

    :param module: the model; :mod:`acktr.kfac.graph` finds what its parameters do
    :param lr: eta_max, the largest step scale
    :param damping: lambda, in units of the Fisher
    :param target_kl: delta, the bound on the KL of one step in nats, predicted or measured, see
        :meth:`step`; ``None`` for none
    :param momentum: decay of the running sum of natural gradients; the bound holds with it
    :param weight_decay: decoupled: added to the step after preconditioning
    :param curvature: how the Fisher is approximated, :class:`acktr.kfac.options.Curvature`
    :param periods: when statistics and inverses are made anew, :class:`acktr.kfac.options.Periods`
    :param step_rule: exact products in the step, and damping that adapts,
        :class:`acktr.kfac.options.StepRule`
    :param param_groups: groups, or parameters of one, as in every torch optimiser; default: all.
        Parameters of ``module`` in no group are left alone
    :param process_group: processes that train one model together (``torch.distributed.group.WORLD``):
        :meth:`step` averages what they have; by default that of a ``DistributedDataParallel``
    :param earlier: arguments of 0.1.0, which are in ``curvature``, ``periods`` or ``step_rule`` now
    :raises ValueError: an argument out of its range, a parameter of another model
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.25,
        *,
        damping: float = 0.01,
        target_kl: float | None = 0.001,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        curvature: Curvature | Mapping[str, Any] | None = None,
        periods: Periods | Mapping[str, Any] | None = None,
        step_rule: StepRule | Mapping[str, Any] | None = None,
        param_groups: Iterable[Any] | None = None,
        process_group: Any = None,
        **earlier: Any,
    ) -> None:
        options = {"curvature": curvature, "periods": periods, "step_rule": step_rule}
        options = with_earlier(options, earlier)
        self.module = module
        self.curvature = as_group(Curvature, options["curvature"])
        self.periods = as_group(Periods, options["periods"])
        rule = as_group(StepRule, options["step_rule"])
        self._structure = Structure(module, self.curvature)
        self.defer_checks = any(p.device.type != "cpu" for p in module.parameters())
        self.last_step: list[StepInfo] = []
        self._schedules: list[InverseSchedule] = []  # one for each parameter group
        self._capture: Capture | None = None
        self._exact: list[Likelihood] = []  # what the exact Fisher of the next step is taken of
        self._measured = Measured(module)
        self._promised: Promise | None = None  # of the last step, if damping is to adapt to it
        self._curvature_calls = 0
        self._comm = comm_of(group_of(module, process_group))
        self._reducer = Reducer(self._comm)
        self._arriving: Callable[[], Tensor] | None = None  # statistics on their way
        defaults = {
            "lr": lr,
            "damping": damping,
            "target_kl": target_kl,
            "momentum": momentum,
            "weight_decay": weight_decay,
            **asdict(rule),
            "step": 0,
        }
        check_group(defaults, defaults)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._counters = {name: torch.zeros((), device=device) for name in COUNTERS}
        super().__init__(as_groups(module, param_groups, self.curvature.leaves_out), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters of the module, as in every torch optimiser."""
        check_group({**self.defaults, **param_group}, self.defaults)
        super().add_param_group(param_group)
        try:
            self._structure.add_group(self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        self._schedules.append(InverseSchedule(self.periods))

    # ------------------------------------------------------------------ curvature

    def capture(self) -> AbstractContextManager[None]:
        """Mark the forward pass whose graph :meth:`update_curvature` reads, where it does."""
        self._capture = None
        if not self.periods.takes(self._curvature_calls):
            return nullcontext()
        self._capture = Capture(self.module)
        return self._capture

    def update_curvature(self, *distributions: Any, retain_graph: bool = True) -> None:
        """Average in the Fisher of the captured forward pass.

        The backward pass goes to layer outputs only: no weight gradient is computed or touched.

        :param distributions: the model's outputs: torch distributions, ``CrossEntropy``,
            ``SquaredError``, or lists of them; several give the joint Fisher of their product
        :param retain_graph: keep the graph for the backward pass of the loss
        :raises RuntimeError: nothing was captured, or what was hides its parameters
        :raises TypeError: a distribution whose Fisher is not known
        :raises ValueError: distributions over different numbers of samples
        """
        takes = self.periods.takes(self._curvature_calls)
        self._curvature_calls += 1
        self._reducer.watch(self._all_params())
        capture, self._capture = self._capture, None
        flat = likelihoods_of(distributions)
        self._measured.see(flat)
        if self.needs_exact_fisher:
            self._exact = accumulated(self._exact, flat)
        if not takes:
            return
        if capture is None:
            raise RuntimeError(
                "Nothing was captured: run the forward pass inside `with kfac.capture():` before each "
                "call of update_curvature."
            )
        self._receive_statistics()
        drawn = draw_statistics(self._structure, flat, self.curvature.fisher, retain_graph, self._comm)
        if self._comm.alone:
            self._counters["rejected_statistics"] += average_in(drawn, self.defer_checks)
        else:
            self._arriving = share(drawn, self._all_blocks(), self._comm, self.defer_checks)

    def _receive_statistics(self) -> None:
        """Wait for what other processes have sent since the last curvature."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self._counters["rejected_statistics"] += arriving()

    @property
    def needs_exact_fisher(self) -> bool:
        """Whether a step goes through the graph of the output distributions once more."""
        return any(g["cg_iterations"] or g["exact_scaling"] for g in self.param_groups)

    def use_exact_fisher(self, *distributions: Any) -> None:
        """Take the exact Fisher of the next step from other distributions than ``update_curvature``'s.

        For example from a part of the batch, which makes each product cheaper.

        :param distributions: the model's output distributions over some samples, with their graph
        :raises TypeError: a distribution whose Fisher is not known
        """
        self._exact = likelihoods_of(distributions)

    def factors(self) -> dict[str, tuple[Tensor, ...]]:
        """Return the running averages by block name: ``(A, S)``, or the diagonals of the parameters.

        The block of the Fisher is ``A (x) S``; the bias is the last coordinate of A.
        """
        self._receive_statistics()
        return {b.name: b.average.values for b in self._all_blocks() if b.ready}

    def fisher_blocks(self) -> dict[str, Tensor]:
        """Return the dense blocks of the Fisher by name, for inspection and tests.

        A layer's block acts on its ``(out, in + 1)`` matrix, bias last, flattened row by row.
        """
        self._receive_statistics()
        return {b.name: b.dense() for b in self._all_blocks() if b.ready}

    # ------------------------------------------------------------------ step

    @torch.no_grad()
    def synchronize(self, *tensors: Tensor) -> list[Tensor]:
        """Average gradients over all processes, before :meth:`step`, which otherwise does it.

        :param tensors: to average in the same message, as the loss by which to decide about the step
        :return: their means
        """
        return self._reducer.mean(self._all_params(), [x.detach() for x in tensors])

    @torch.no_grad()
    def step(self, closure: Call | None = None, *, forward: Call | None = None) -> Any:
        """Take one step; parameters without a gradient stay where they are.

        :param closure: re-evaluates the model and returns the loss
        :param forward: runs the forward pass of the batch and returns what ``update_curvature`` takes:
            then the KL of the step is measured and held at ``target_kl``, see :mod:`acktr.kfac.measured`
        :raises RuntimeError: a layer has a gradient but no curvature
        :raises ValueError: other outputs of ``forward`` than of the captured pass
        """
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        if not self._reducer.done:
            self.synchronize()
        self._reducer.done = False
        self._receive_statistics()
        groups = [
            (group, [b for b in blocks if any(p.grad is not None for p in b.params.values())])
            for group, blocks in zip(self.param_groups, self._blocks, strict=True)
        ]
        check_ready([b for _, moving in groups for b in moving], self._structure)
        for (group, moving), schedule in zip(groups, self._schedules, strict=True):
            made = group["step"], self.periods.taken(self._curvature_calls), group["damping"]
            schedule.refresh(moving, *made, self._counters, self.defer_checks, self._comm)
        # All directions before the first step: the exact Fisher needs the parameters as they were.
        given = self.state, self._exact, self._comm.mean
        prepared = [(*prepare(blocks, group, *given), group) for group, blocks in groups]
        self._exact = []
        if forward is None:
            self._measured.end()
        else:
            self._measured.begin(forward)
        for plans, info, finite, group in prepared:
            unsure = finite if self.defer_checks else None  # on the CPU a look costs nothing
            if self.defer_checks or finite:
                apply_steps(plans, info.step_scale, unsure, bool(group["momentum"]), self.state)
            if plans:
                self._counters["rejected_steps"] += finite.logical_not()
                group["step"] += 1
        taken = [Taken(plans, info, group) for plans, info, _, group in prepared]
        if forward is not None:
            taken = hold(self._measured, taken, self._comm.mean)
        self.last_step = [step.info for step in taken]
        self._promised = promised_reduction(taken)
        return loss

    @property
    def wants_reduction(self) -> bool:
        """Whether :meth:`report_reduction` is to follow the last step: every fifth, if at all."""
        return self._promised is not None

    @torch.no_grad()
    def report_reduction(self, actual: float | Tensor) -> float | None:
        """Adapt the damping to what the last step did to the loss, if ``wants_reduction``.

        :param actual: the loss before that step minus the loss after it, on the same samples; with
            several processes each reports that of its own, and all of them report
        :return: its ratio to the reduction that was promised; ``None`` where nothing was
        :raises RuntimeError: no parameter group has ``adapt_damping``
        """
        if not any(group["adapt_damping"] for group in self.param_groups):
            raise RuntimeError(
                "report_reduction adapts the damping: pass KFAC(step_rule=StepRule(adapt_damping=True))."
            )
        promised, self._promised = self._promised, None
        if promised is None:
            return None
        mean = self._comm.mean(torch.as_tensor(actual).to(promised.reduction))
        return adapt(promised, float(mean))

    # ------------------------------------------------------------------ state

    @property
    def counters(self) -> dict[str, int]:
        """How often each guard acted since the start (reading them waits for the device)."""
        return {name: int(value) for name, value in self._counters.items()}

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def _blocks(self) -> list[list[Block]]:
        """The blocks of each parameter group, as far as captured passes have used their parameters."""
        return self._structure.blocks

    def _all_blocks(self) -> list[Block]:
        return list(self._structure)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain containers."""
        self._receive_statistics()
        state = super().state_dict()
        state["curvature"] = {block.name: block.state_dict() for block in self._all_blocks()}
        state["structure"] = self._structure.describe()
        state["waiting_inverses"] = [schedule.state_dict() for schedule in self._schedules]
        state["curvature_calls"] = self._curvature_calls
        state["counters"] = self.counters
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        :raises ValueError: the state of another model or of another optimiser; nothing is changed
        """
        curvature: Any = state_dict.get("curvature")
        blocks = self._structure.of_state(curvature, state_dict.get("structure", {}))
        state_dict = {**state_dict, "param_groups": without_gone(state_dict["param_groups"])}
        own = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, before in zip(self.param_groups, own, strict=True):
            group.update({**before, **group})  # an older state does not say all that there is to set
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, self._all_params(), strict=True):  # in memory that steps write into
            for name, x in state_dict["state"].get(i, {}).items():
                self.state[p][name] = x.to(statistics_like(p), copy=True)
        self._structure.take(blocks)
        for block in self._all_blocks():
            block.load_state_dict(curvature[block.name])
        waiting = state_dict.get("waiting_inverses", [{}] * len(self._schedules))
        for schedule, of_group, own_blocks in zip(self._schedules, waiting, self._blocks, strict=True):
            schedule.load_state_dict(of_group, own_blocks)
        self._curvature_calls, self._promised = state_dict["curvature_calls"], None
        for name, value in state_dict["counters"].items():
            self._counters[name].fill_(value)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy everything but what holds a graph, which cannot be copied."""
        self._receive_statistics()
        own = {key: value for key, value in self.__dict__.items() if key in _OWN_STATE}
        own |= {"_capture": None, "_exact": [], "_arriving": None, "_promised": None}
        return {**super().__getstate__(), **own}


_OWN_STATE = {
    "module", "curvature", "periods", "_schedules", "defer_checks",
    "last_step", "_structure", "_curvature_calls", "_counters", "_comm", "_reducer", "_measured",
}  # fmt: skip
