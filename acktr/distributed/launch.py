"""This process among several: how it joins them, its number, and a seed of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from acktr.errors import ConfigurationError

TIMEOUT_VARIABLE = "ACKTR_TIMEOUT"
TIMEOUT_SECONDS = 120.0  # an evaluation of the first rank, for which the others wait, must fit in


def start(device: str = "auto") -> bool:
    """Join the processes that a launcher has started; once is enough.

    :param device: where the model will be: NCCL where that is CUDA, else gloo
    :return: whether there is more than one
    :raises ConfigurationError: an environment variable of the launcher, or the timeout, is wrong
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    if dist.is_initialized():
        return size() > 1
    try:
        own, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        timeout = timedelta(seconds=float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS)))
        host, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"The launcher's variables cannot be used ({error}): RANK, WORLD_SIZE and MASTER_PORT must "
            f"be whole numbers, and {TIMEOUT_VARIABLE} seconds; start with torchrun."
        ) from error
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    server = own == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # Its functions hold the default group for good (as a default argument) if they come after it, which
    # they do when the first optimiser is built; see `joined`.
    importlib.import_module("torch.distributed.nn")
    store = dist.TCPStore(host, port, world, is_master=server, timeout=timeout)
    # Each restart speaks under a name of its own: what a killed rank has left in the store would
    # otherwise be taken for an answer.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    run = os.environ.get("TORCHELASTIC_RUN_ID", "acktr")
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore(f"{run}/{attempt}", store),
        rank=own,
        world_size=world,
        timeout=timeout,
    )
    return world > 1


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """:func:`start`, and leave the group at the end, after an error too; one that was there stays.

    The threads of a group that is still there when the interpreter shuts down can abort the process,
    which then has another exit code (PyTorch's issue 190489).
    """
    was_started = _is_started()
    start(device)
    try:
        yield
    finally:
        if _is_started() and not was_started:
            dist.destroy_process_group()


def restarted() -> bool:
    """Whether a launcher has started this process in the place of one that ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def group() -> Any:
    """Return the process group for :class:`acktr.kfac.KFAC`; ``None`` for one process."""
    return dist.group.WORLD if _is_started() else None


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _is_started() else 0


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _is_started() else 1


def ranks_on_this_machine() -> int:
    """Return how many processes the launcher has started here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _is_started() -> bool:
    return dist.is_available() and dist.is_initialized()


def own_seed(seed: int, n_envs: int) -> int:
    """Return the seed of this rank, whose environments then start unlike those of the others.

    :param seed: of the run
    :param n_envs: environments of each rank
    """
    return seed + rank() * n_envs


def message_device() -> torch.device:
    """Return the device on which tensors must be to travel."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
