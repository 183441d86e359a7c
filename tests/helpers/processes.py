"""Runs a function in several processes of one group, on one machine."""

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException


def _work(
    rank: int, size: int, folder: str, dtype: torch.dtype, function: Callable, args: tuple
) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(function(rank, size, *args), f"{folder}/{rank}.pt")
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run_in_processes(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``function(rank, size, *args)`` returned in each process, tensors and plain values."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The server imports torch once; its children begin at once.
            mp.set_forkserver_preload(["acktr", __name__])
            mp.start_processes(
                _work,
                (size, folder, torch.get_default_dtype(), function, args),
                nprocs=size,
                start_method="forkserver",
            )
        except ProcessException:
            errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
            raise AssertionError("\n".join(errors)) from None
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(size)]


def signs_of_values(like):
    """Signs that belong to a sample and not to a process; the real ones are drawn."""
    return torch.where((like.detach() * 1e4).sin() >= 0, 1.0, -1.0).to(like)
