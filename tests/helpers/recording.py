"""CUDA graphs without CUDA: records all operations of torch, and repeats them on the same memory.

What would go wrong in a CUDA graph goes wrong here: a value looked at from the host is refused, what the
host replaces in place of writing to it is not seen by the repetition, and a number stays what it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError("operation not permitted when stream is capturing: a look from the host")
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result


class NoLooks(TorchFunctionMode):
    """Refuses what would make the host wait for a device, where the meta device stands in for it.

    The meta device itself refuses looks at its values; this refuses values that travel to it.
    """

    makes = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        # By a mask a number is filled in; by position it is copied.
        assigned = function is Tensor.__setitem__ and not any(isinstance(x, Tensor) for x in args[1:])
        result = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, result)) if isinstance(x, Tensor)}
        travels = assigned or function in self.makes or function in (Tensor.to, Tensor.copy_)
        if travels and devices - {"cpu"}:
            assert not assigned, "a number that is assigned travels to the device"
            assert function not in self.makes, f"{function.__name__} travels to the device"
            assert len(devices) == 1, f"{function.__name__} between {devices}"
        return result


class RecordingEngine:
    """What :class:`acktr.kfac.Graphs` records with in the place of CUDA."""

    def __init__(self) -> None:
        self.recorded = self.repeated = 0

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        tape = _Tape()
        with tape:
            result = work()
        self.recorded += 1

        @torch.no_grad()
        def repeat() -> None:
            self.repeated += 1
            for function, args, kwargs, old in tape.operations:
                new = function(*args, **kwargs)
                for place, value in zip(tree_leaves(old), tree_leaves(new), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)

        return result, repeat
