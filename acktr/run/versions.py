"""The versions, machine and command that a result may depend on."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "acktr",
    "torch",
    "stable-baselines3",
    "gymnasium",
    "numpy",
    "mujoco",
    "envpool",
    "ale-py",
    "opencv-python-headless",
    "safetensors",
)


def versions() -> dict[str, Any]:
    """Collect the versions, machine and command that a result may depend on."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **installed,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "git_commit": _git_commit(),
        "command": shlex.join(sys.argv),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "+" if changed."""
    if _git("ls-files", "--error-unmatch", "run/versions.py") is None:
        return None  # installed, perhaps inside a checkout of something else
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("+" if _git("status", "--porcelain", "--", ".") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
