"""CUDA graphs: the device repeats an update by itself, and the host only says when.

An update of a small network is hundreds of kernels that take a few microseconds each, and the host
needs longer to launch one than the device to run it. A graph is the list of all of them, recorded once
and launched as a whole (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It repeats
the same operations on the same memory, so everything an update reads and writes has to stay where it
is, and what the host decides has to be decided alike. :class:`Graphs` sees to both::

    graphs = Graphs(kfac)

    def update(x, y):
        kfac.zero_grad()
        with kfac.capture():
            output = Normal(model(x), std, validate_args=False)  # std: a tensor on the device
        kfac.update_curvature(output)
        loss = -output.log_prob(y).mean()
        loss.backward()
        kfac.step()
        return loss

    for x, y in batches:
        loss = graphs("update", update, x, y)
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from acktr.kfac.blocks import KroneckerBlock
from acktr.kfac.optimizer import KFAC
from acktr.kfac.recurrent import CHAINS
from acktr.kfac.trust_region import StepInfo

WARM_UPS = 2  # of each kind of update, on the very stream that records it: libraries set themselves up
MAX_GRAPHS = 16  # each holds the memory of a whole update
_MAX_SEEN = 1000
# What schedules change from one update to the next: numbers in a group, which a graph reads as tensors.
_SCHEDULED = ("lr", "target_kl")

Work = Callable[..., Any]


class RecordingError(RuntimeError):
    """Work that cannot be recorded; the optimiser has to be built anew."""


class Engine(Protocol):
    """Records work and repeats it."""

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Run work where it will be recorded."""

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Run work once and record it; return what it returned, and what repeats it."""


class CudaEngine:
    """Records on a stream of its own; repeats on the current one."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("CUDA graphs need a CUDA device: call the update itself elsewhere.")
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Run work on the stream that will record it."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record work, which does nothing yet, and then run the recording."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = work()
        graph.replay()
        return result, graph.replay


class _Graph(NamedTuple):
    """One recorded update.

    :param replay: repeats it
    :param inputs: that it reads
    :param settings: what it reads for each number in a parameter group that schedules move
    :param outputs: that it writes
    :param infos: what it writes into ``KFAC.last_step``
    :param curvatures: how often it takes the curvature: once, or not at all
    """

    replay: Callable[[], None]
    inputs: Any
    settings: list[dict[str, Tensor]]
    outputs: Any
    infos: list[StepInfo]
    curvatures: int


class Graphs:
    """Runs the updates of one optimiser, from the third of a kind on as CUDA graphs.

    Updates are of one kind while their inputs have the same shapes and the host decides alike: whether
    statistics are taken, which inverses are made anew, what a parameter group says. Other numbers than
    ``lr`` and ``target_kl`` in a group make another kind.

    :param optimizer: :class:`KFAC`, or one of torch's with ``capturable=True``
    :param engine: what records; CUDA by default
    :raises ValueError: an option of the optimiser that waits for the device at each step
    :raises RuntimeError: there is no CUDA device
    """

    def __init__(self, optimizer: Optimizer, engine: Engine | None = None) -> None:
        if isinstance(optimizer, KFAC):
            check_recordable(optimizer)
            optimizer.defer_checks = True
        self.optimizer = optimizer
        self._engine = engine or CudaEngine()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()

    def __call__(self, name: str, work: Work, *inputs: Any) -> Any:
        """Make one update.

        :param name: tells one kind of work from another
        :param work: makes one step of the optimiser; nothing in it may look at a value from the host
        :param inputs: tensors, or containers of them; other things in them belong to the kind of update
        :return: what ``work`` returned, valid until the next update of this kind
        :raises RecordingError: something in ``work`` looks at a value, or copies one from the host
        """
        key = (name, _describe(inputs), self._describe_optimizer())
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return self._repeat(graph, inputs)
        if len(self._seen) > _MAX_SEEN:  # a setting that changes each time makes a new kind each time
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] <= WARM_UPS:
            return self._engine.warm_up(partial(work, *inputs))
        if len(self._graphs) == MAX_GRAPHS:
            self._graphs.popitem(last=False)
        self._graphs[key] = graph = self._record(name, work, inputs)
        return graph.outputs

    def __len__(self) -> int:
        """How many kinds of updates have been recorded."""
        return len(self._graphs)

    def _record(self, name: str, work: Work, inputs: Any) -> _Graph:
        groups = self.optimizer.param_groups
        copies = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
        settings: list[dict[str, Tensor]] = [{} for _ in groups]
        before = [dict(group) for group in groups]
        calls = _curvature_calls(self.optimizer)
        for group, own in zip(groups, settings, strict=True):
            for setting in _SCHEDULED:
                if isinstance(group.get(setting), (int, float)):
                    own[setting] = group["params"][0].detach().new_full((), group[setting])
            group.update(own)
        try:
            outputs, replay = self._engine.record(partial(work, *copies))
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RecordingError(
                f"The update {name!r} cannot be recorded as a CUDA graph ({reason}): nothing in it may "
                "look at a value on the device or copy one to it; leave graphs out, or change the model."
            ) from error
        finally:
            for group, own, old in zip(groups, settings, before, strict=True):
                group.update({setting: old[setting] for setting in own})
        infos = self.optimizer.last_step if isinstance(self.optimizer, KFAC) else []
        taken = _curvature_calls(self.optimizer) - calls
        return _Graph(replay, copies, settings, outputs, infos, taken)

    def _repeat(self, graph: _Graph, inputs: Any) -> Any:
        for place, value in zip(tree_leaves(graph.inputs), tree_leaves(inputs), strict=True):
            if isinstance(place, Tensor):
                place.copy_(value)
        for group, own in zip(self.optimizer.param_groups, graph.settings, strict=True):
            for name, place in own.items():
                place.fill_(group[name])
        if isinstance(self.optimizer, KFAC):
            count_step(self.optimizer, graph.infos, graph.curvatures)
        graph.replay()
        return graph.outputs

    def _describe_optimizer(self) -> Hashable:
        groups = self.optimizer.param_groups
        state = [x for group in groups for p in group["params"] for x in _of_param(self.optimizer, p)]
        described: list[Hashable] = [tuple(x.data_ptr() for x in state)]
        for group in groups:
            scheduled = [name for name in _SCHEDULED if isinstance(group.get(name), (int, float))]
            rest = {k: v for k, v in group.items() if k not in (*scheduled, *_COUNTED)}
            described += [tuple(scheduled), _describe(rest)]
        if isinstance(self.optimizer, KFAC):
            described.append(_upcoming(self.optimizer))
        return tuple(described)


_COUNTED = ("params", "step", "initial_lr")  # of a group: they decide nothing by their value


def check_recordable(kfac: KFAC) -> None:
    """Refuse what cannot be recorded.

    :raises ValueError: names the option, and what to do
    """
    blocks = [kfac.curvature.of(name) for name in ("", *kfac.curvature.layers)]
    options = [own for own in blocks if own is not None]
    kind = next((own.inverse for own in options if own.inverse != "cholesky"), None)
    measures = any(own.approximation == "ekfac" for own in options)
    chain = next((own.recurrent for own in options if own.recurrent in CHAINS), None)
    refresh = kfac.periods.inverse_refresh
    adapts = any(group["adapt_damping"] for group in kfac.param_groups)
    for holds, option in (
        (measures, "approximation='ekfac', whose decomposition waits for the device"),
        (kind, f"inverse={kind!r}, whose decomposition waits for the device"),
        (chain, f"recurrent={chain!r}, whose decompositions wait for the device"),
        (refresh == "background", "inverse_refresh='background', which is for CPUs"),
        (adapts, "adapt_damping, which looks at the loss"),
        (not kfac._comm.alone, "several processes, whose messages it cannot hold"),
    ):  # fmt: skip
        if holds:
            raise ValueError(f"A CUDA graph of the update cannot be made with {option}: leave one out.")


def _curvature_calls(optimizer: Optimizer) -> int:
    return optimizer._curvature_calls if isinstance(optimizer, KFAC) else 0


def count_step(kfac: KFAC, infos: Sequence[StepInfo], curvatures: int = 1) -> None:
    """Count one step that the device has been told to repeat, and the curvature that it takes."""
    kfac._curvature_calls += curvatures
    statistics = kfac.periods.taken(kfac._curvature_calls)
    groups = zip(kfac.param_groups, kfac._blocks, kfac._schedules, strict=True)
    for group, blocks, schedule in groups:
        now, _ = schedule.due(blocks, group["step"], statistics, group["damping"])
        for block in now:
            block.inverse.age = 0
        schedule.count(blocks, now, statistics, group["damping"])
        group["step"] += 1
    kfac.last_step = list(infos)


def _upcoming(kfac: KFAC) -> Hashable:
    """Describe what the host will decide in the next update of the curvature and the next step.

    Whether the curvature will be taken at all is known to the work alone: both is described.
    """
    calls = kfac._curvature_calls
    described: list[Hashable] = [kfac.periods.takes(calls)]
    groups = zip(kfac.param_groups, kfac._blocks, kfac._schedules, strict=True)
    for group, blocks, schedule in groups:
        for taken in (calls, calls + 1):
            statistics = kfac.periods.taken(taken)
            now, _ = schedule.due(blocks, group["step"], statistics, group["damping"])
            described.append(tuple(b.name for b in now))
        described.append(tuple(x.data_ptr() for block in blocks for x in _of_block(block)))
    return tuple(described)


def _of_block(block: Any) -> Iterator[Tensor]:
    yield from block.average.values
    if isinstance(block, KroneckerBlock):
        yield from block.inverse.tensors


def _of_param(optimizer: Optimizer, p: Tensor) -> Iterator[Tensor]:
    yield p
    state = optimizer.state.get(p, {})
    yield from (x for x in state.values() if isinstance(x, Tensor))


def _describe(tree: Any) -> Hashable:
    """Shapes and types of the tensors in a container, and all that is not a tensor."""
    leaves = tree_leaves(tree)
    return tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves)
