"""The devices that torch can compute on here, and one sentence about those that are missing."""

from __future__ import annotations

import warnings

import torch

from acktr.errors import ConfigurationError


def is_available(device: torch.device | str) -> bool:
    """Whether torch can compute there; "auto" always can."""
    if device == "auto":
        return True
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        return False
    return (wanted.index or 0) < _counts().get(wanted.type, 0)


def check_device(device: torch.device | str) -> None:
    """Check that torch can compute on a device.

    :param device: "auto", or what ``torch.device`` takes
    :raises ConfigurationError: it is not here; says which are
    """
    if is_available(device):
        return
    choices = ["auto"]
    for kind, count in _counts().items():
        choices.append(kind)
        if count > 1:
            choices += [f"{kind}:{index}" for index in range(count)]
    raise ConfigurationError(
        f"There is no device {str(device)!r} here{_reason(device)}: choose {' or '.join(choices)}."
    )


def usable_device(device: torch.device | str) -> torch.device | str:
    """Return the device to use: the CPU where CUDA is asked for and missing, as in Stable-Baselines3.

    Stable-Baselines3 says nothing of it; this warns.

    :param device: "auto", or what ``torch.device`` takes
    :raises ConfigurationError: any other device that is not here; says which are
    """
    if str(device).partition(":")[0] == "cuda" and not torch.cuda.is_available():
        warnings.warn(
            f"There is no device {str(device)!r} here{_reason(device)}: computing on the CPU.",
            UserWarning,
            stacklevel=3,
        )
        return "cpu"
    check_device(device)
    return device


def _counts() -> dict[str, int]:
    """Return how many devices there are of each kind, the CPU as one."""
    counts = {"cpu": 1}
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        counts[accelerator.type] = torch.accelerator.device_count()
    return counts


def _reason(device: torch.device | str) -> str:
    built_without = str(device).startswith("cuda") and torch.version.cuda is None
    return f" (torch {torch.__version__} was built without CUDA)" if built_without else ""
