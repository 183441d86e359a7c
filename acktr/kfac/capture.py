"""The context of a forward pass whose graph will be read: what hides parameters is off in it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from acktr.kfac import nodes


class Capture:
    """A marked forward pass. The graph itself remembers all that there is to know of it.

    Two things hide parameters from it. Recurrent layers are one fused node where cuDNN or oneDNN
    computes them: inside, torch's own steps are taken. A compiled module is one node too: inside, it
    runs as it was written.

    :param module: the model
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._inside = ExitStack()

    def __enter__(self) -> None:
        recurrent = False
        compiled = False
        dynamo = "torch._dynamo" in sys.modules  # before it is loaded nothing can be compiled
        for child in self._module.modules():
            recurrent = recurrent or isinstance(child, nn.RNNBase)
            compiled = compiled or (dynamo and _is_compiled(child))
        if recurrent:
            self._inside.enter_context(_Stepwise())
        if compiled:
            self._inside.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inside.close()


def _is_compiled(module: nn.Module) -> bool:
    # Of `torch.compile(module)` and of `module.compile()`.
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


class _Stepwise(TorchFunctionMode):
    """Recurrent layers as the steps that they are made of."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
            return func(*args, **(kwargs or {}))
        with torch.backends.cudnn.flags(enabled=False), nodes.without_onednn():
            return func(*args, **(kwargs or {}))
