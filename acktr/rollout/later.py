"""Tensors that are computed when somebody looks at them: callbacks may, and most do not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from acktr.errors import ConfigurationError
from acktr.networks.outputs import Outputs

_UNKNOWN: Any = None
_UNARY = ("neg", "abs", "pos", "invert")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")


class Later:
    """Stands for a tensor, and is it as soon as anything is asked of it.

    To make one costs a tenth of a microsecond.

    :param compute: returns the tensor; called once, or never
    :param batch: its arguments
    """

    __slots__ = ("__weakref__", "_batch", "_compute", "_tensor")
    __hash__ = object.__hash__

    def __init__(self, compute: Callable[..., Tensor], *batch: Any) -> None:
        self._compute, self._batch = compute, batch
        self._tensor: Tensor = _UNKNOWN

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(now, args), **tree_map(now, kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(now(self), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(now(self).cpu().numpy(), dtype)

    def __len__(self) -> int:
        return len(now(self))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(now(self))

    def __getitem__(self, index: Any) -> Tensor:
        return now(self)[now(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        now(self)[now(index)] = now(value)

    def __contains__(self, value: Any) -> bool:
        return value in now(self)

    def __bool__(self) -> bool:
        return bool(now(self))

    def __int__(self) -> int:
        return int(now(self))

    def __float__(self) -> float:
        return float(now(self))

    def __repr__(self) -> str:
        return repr(now(self))

    def __format__(self, spec: str) -> str:
        return format(now(self), spec)

    def __reduce__(self) -> Any:
        return now, (now(self),)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return now(self).clone()


def now(value: Any) -> Any:
    """Return the tensor that a :class:`Later` stands for; anything else as it is."""
    if type(value) is not Later:
        return value
    if value._tensor is _UNKNOWN:
        value._tensor = value._compute(*value._batch)
    return value._tensor


def _forward(name: str, reflected: bool = False) -> None:
    function = getattr(operator, name if name not in ("and", "or") else f"{name}_")

    def method(self: Later, *others: Any) -> Any:
        own = [now(self), *map(now, others)]
        return function(*(reversed(own) if reflected else own))

    setattr(Later, f"__{'r' * reflected}{name}__", method)


for _name in (*_UNARY, *_BINARY, *_COMPARED):
    _forward(_name)
for _name in _BINARY:
    _forward(_name, reflected=True)


class Asked:
    """The outputs of a policy, as long as it is the one that acted on the observations.

    :param outputs: the policy's, in evaluation mode; ``None`` if there is none
    """

    def __init__(self, outputs: Outputs | None) -> None:
        self._outputs = outputs
        self._given: list[ref[Later]] = []

    def later(self, what: Callable[..., Tensor], *batch: Any) -> Later:
        """Return what will be computed when it is read, or when :meth:`close` finds that it was kept.

        :param what: :meth:`values` or :meth:`log_probs`
        :param batch: its arguments
        """
        promised = Later(what, *batch)
        self._given.append(ref(promised))
        return promised

    def values(self, obs: Any) -> Tensor:
        """Return the critic's values, ``(B, 1)``."""
        with torch.no_grad():
            return self.acting().values(obs).unsqueeze(1)

    def log_probs(self, obs: Any, actions: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the logarithm of the probability of each action, ``(B,)``."""
        with torch.no_grad():
            return self.acting().evaluate(obs, actions, masks).log_prob

    def close(self) -> None:
        """Compute whatever somebody has kept unread, and let go of the policy, which will learn."""
        for given in self._given:
            now(given())
        self._given, self._outputs = [], None

    def __reduce__(self) -> Any:
        return Asked, (None,)  # a copy is of a rollout that is over

    def acting(self) -> Outputs:
        """Return the outputs of the policy that acted.

        :raises ConfigurationError: it has learned since
        """
        if self._outputs is None:
            raise ConfigurationError(
                "Values and log-probabilities of a rollout are computed when they are read, and the "
                "policy that acted in it has learned since: read them in _on_step or _on_rollout_end."
            )
        return self._outputs
