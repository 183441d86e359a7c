"""Forward hooks that live only inside ``with kfac.capture()``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle


class Record(NamedTuple):
    """One use of one layer in a captured forward pass.

    :param inputs: the layer's input, detached if it is a tensor
    :param edge: where the gradient of the layer's output flows. An edge, not the tensor: it stays
        valid when a later layer (``ReLU(inplace=True)``) overwrites the output.
    """

    inputs: Any
    edge: GradientEdge


class Capture:
    """Records every use of the given layers between enter and exit.

    :param modules: ``(name, module)`` pairs
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.modules = list(modules)
        self.records: dict[str, list[Record]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, module in self.modules:
            hook = self._hook(name)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(inputs, Tensor):
                inputs = inputs.detach()
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    records = self.records.setdefault(name, [])
                    records.append(Record(inputs, get_gradient_edge(tensor)))

        return record


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output; layers without an adapter may return several."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def reaches(output: Tensor, records: Iterable[Record]) -> bool:
    """Whether a captured layer feeds ``output``, by a walk through its graph."""
    targets = {record.edge.node for record in records}
    stack, seen = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node in targets:
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions)
    return False
