"""How inverses are made anew: by whom, and what happens when a factorisation fails.

Where many processes train one model, each inverts some of the wide factors for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acktr.kfac.comm import SHARED_FROM, Comm
from acktr.kfac.inverses import Inverted, Kinds, Method, Pair

# How often each guard of the optimiser acted.
COUNTERS = (
    "rejected_statistics",
    "float64_retries",
    "damping_escalations",
    "kept_inverses",
    "rejected_steps",
)
MAX_ESCALATIONS = 6  # tenfold each: beyond a million times the damping something else is wrong


class SafeInverse:
    """An inverse that is never handed out broken.

    The last good inverse stays where nothing helps. Before the first good one the block does not move.

    :param method: how a pair of factors is inverted
    :param kinds: how they are kept
    """

    def __init__(self, method: Method, kinds: Kinds) -> None:
        self.method = method
        self.kinds = kinds
        self.tensors: list[Tensor] = []
        self.boost: Tensor | None = None  # damping multiplier after failures, accelerators only
        self.age = 0  # steps since the tensors were made
        # How often statistics had been taken when it was made, and the damping.
        self.source: tuple[int, float] | None = None

    def apply(self, gradient: Tensor) -> Tensor:
        """Precondition a gradient matrix; zero before the first good inverse."""
        if not self.tensors:
            return torch.zeros_like(gradient)
        product = self.method.apply(self.kinds, self.tensors, gradient)
        if not self.kinds.padded:
            return product
        rows, columns = gradient.shape[-2:]
        return product[..., :rows, :columns]

    def state_dict(self) -> dict[str, object]:
        """Return the inverse, its age and the boost as plain containers of tensors."""
        plain = {"boost": self.boost, "age": self.age, "source": self.source}
        return {"tensors": list(self.tensors), **plain}

    def load_state_dict(self, state: dict[str, object], like: Tensor) -> None:
        """Restore :meth:`state_dict` onto the device and dtype of ``like``."""
        tensors, boost, age = state["tensors"], state["boost"], state["age"]
        assert isinstance(tensors, list)
        assert isinstance(age, int)
        self.tensors = [x.to(like, copy=True) for x in tensors]
        self.boost = boost.to(like, copy=True) if isinstance(boost, Tensor) else None
        self.age = age
        self.source = state.get("source")  # type: ignore[assignment]


def refresh(
    inverses: Sequence[SafeInverse],
    pairs: Sequence[Pair],
    damping: float | Tensor,
    counters: dict[str, Tensor],
    defer: bool,
    comm: Comm,
) -> None:
    """Invert the factors of many blocks anew, and guard each block against a failure.

    On the CPU a failure is looked at at once: retry in float64, then with tenfold damping again and
    again. On an accelerator a look would stall the queue: there a failed refresh keeps the last good
    inverse and the next refresh runs with ten times the damping, all of it on the device.

    :param inverses: of the blocks
    :param pairs: their factors, the same on all processes
    :param damping: lambda
    :param counters: ``float64_retries``, ``damping_escalations`` and ``kept_inverses`` are added to
    :param defer: do not look at the result from the host
    :param comm: the processes that share the work
    """
    found = exchange(inverses, invert(inverses, pairs, damping, defer, comm), pairs, comm)
    publish(inverses, found, pairs, damping, counters, defer)


def invert(
    inverses: Sequence[SafeInverse],
    pairs: Sequence[Pair],
    damping: float | Tensor,
    defer: bool,
    comm: Comm,
) -> list[Inverted | None]:
    """Invert many blocks; reads nothing but its arguments, so that it can run in a thread.

    :return: ``None`` for a block that another process inverts
    """
    own = [i for i, owner in enumerate(_owners(pairs, comm)) if owner in (None, comm.rank)]
    found: list[Inverted | None] = [None] * len(pairs)
    for method in dict.fromkeys(inverses[i].method for i in own):
        alike = [i for i in own if inverses[i].method is method]
        boosts = [inverses[i].boost for i in alike]
        dampings = [damping if boost is None else damping * boost for boost in boosts]
        made = method.invert([pairs[i] for i in alike], dampings, defer)
        for i, inverted in zip(alike, made, strict=True):
            found[i] = inverted
    return found


def exchange(
    inverses: Sequence[SafeInverse],
    found: Sequence[Inverted | None],
    pairs: Sequence[Pair],
    comm: Comm,
) -> list[Inverted]:
    """Fill in what other processes have inverted; all processes call it together."""
    whole: list[Inverted] = []
    to_send: dict[int, list[Tensor]] = {}
    owners = _owners(pairs, comm)
    for inverse, result, pair, owner in zip(inverses, found, pairs, owners, strict=True):
        if owner is not None:
            tensors, ok = result or ([], pair.A.new_zeros(()))
            if not tensors:  # another's, or a decomposition that raised
                tensors = [pair.A.new_zeros(shape) for shape in inverse.method.shapes(pair.kinds)]
            flag = ok.to(pair.A)
            to_send.setdefault(owner, []).extend([*tensors, flag])
            whole.append((tensors, flag))
        else:
            assert result is not None
            whole.append(result)
    for owner, tensors in sorted(to_send.items()):
        comm.broadcast(tensors, owner)
    return [(tensors, ok.bool()) for tensors, ok in whole]


def _owners(pairs: Sequence[Pair], comm: Comm) -> list[int | None]:
    """Return the process that inverts each block; ``None`` for one that all invert for themselves."""
    owners: list[int | None] = [None] * len(pairs)
    if not comm.alone:
        wide = [i for i, p in enumerate(pairs) if max(k.width for k in p.kinds) >= SHARED_FROM]
        ranks = comm.owners([sum(kind.cost for kind in pairs[i].kinds) for i in wide])
        for i, rank in zip(wide, ranks, strict=True):
            owners[i] = rank
    return owners


def publish(
    inverses: Sequence[SafeInverse],
    found: Sequence[Inverted],
    pairs: Sequence[Pair],
    damping: float | Tensor,
    counters: dict[str, Tensor],
    defer: bool,
) -> None:
    """Put what :func:`invert` found into use where it is good, and help where it is not."""
    take: Callable[..., None] = _take_deferred if defer else _take
    for inverse, (tensors, ok), pair in zip(inverses, found, pairs, strict=True):
        take(inverse, tensors, ok, pair, damping, counters)


def _take(
    inverse: SafeInverse,
    tensors: list[Tensor],
    ok: Tensor,
    pair: Pair,
    damping: float | Tensor,
    counters: dict[str, Tensor],
) -> None:
    if not ok:
        counters["float64_retries"] += 1
        dtype, pair = pair.A.dtype, pair.double()
        size = pair.kinds.A.mean_eigenvalue(pair.A).max()
        size = size * pair.kinds.S.mean_eigenvalue(pair.S).max()
        base = max(float(damping), float(size) * 1e-8)
        ((tensors, ok),) = inverse.method.invert([pair], [damping], False)
        for power in range(1, MAX_ESCALATIONS + 1):
            if ok:
                break
            counters["damping_escalations"] += 1
            ((tensors, ok),) = inverse.method.invert([pair], [base * 10.0**power], False)
        tensors = [x.to(dtype) for x in tensors]
        ok = ok & torch.stack([x.isfinite().all() for x in tensors]).all() if tensors else ok
    if ok:
        inverse.tensors, inverse.age = tensors, 0
    else:
        counters["kept_inverses"] += 1


def _take_deferred(
    inverse: SafeInverse,
    tensors: list[Tensor],
    ok: Tensor,
    pair: Pair,
    damping: float | Tensor,
    counters: dict[str, Tensor],
) -> None:
    boost = pair.A.new_ones(()) if inverse.boost is None else inverse.boost
    counters["damping_escalations"] += boost > 1.0
    if not tensors:  # a decomposition that raised
        counters["kept_inverses"] += 1
        return
    old = inverse.tensors or [torch.zeros_like(x) for x in tensors]
    new = [torch.where(ok, x, y) for x, y in zip(tensors, old, strict=True)]
    inverse.tensors = new if inverse.method.is_held else write(old, new)
    inverse.age = 0
    counters["kept_inverses"] += ok.logical_not()
    # Up tenfold after a failure, down again tenfold after a success, never below 1.
    adapted = torch.where(ok, boost / 10.0, boost * 10.0).clamp(1.0, 10.0**MAX_ESCALATIONS)
    (inverse.boost,) = write([boost], [adapted])


def write(places: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Write values where others were: what a CUDA graph has seen must stay where it is."""
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
    return list(places)
