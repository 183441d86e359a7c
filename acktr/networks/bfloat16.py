"""bfloat16 for the networks' trunks: where the time goes, and where eight bits are enough.

Features and hidden layers run under autocast. The heads, the distributions made of them, losses, KL,
averages of the curvature and inverses stay in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from acktr.networks.policies import CnnPolicy

PRECISIONS = ("fp32", "bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, and not by way of fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def available_precision(precision: str, device: torch.device) -> str:
    """Return the precision that is asked for, or ``"fp32"`` with a warning where it gains nothing.

    :param precision: one of :data:`PRECISIONS`
    :param device: where the networks are
    """
    if precision == "fp32" or has_bfloat16(device):
        return precision
    warnings.warn(
        f"precision='bf16' needs hardware that computes in bfloat16 (AVX512-BF16, AMX, CUDA 8.0): this "
        f"{device.type} device does not, and training goes on in fp32.",
        UserWarning,
        stacklevel=2,
    )
    return "fp32"


def run_trunk_in_bfloat16(policy: ActorCriticPolicy) -> None:
    """Run features and hidden layers of a policy under autocast from now on; outputs are fp32 again."""
    extractors = (policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor)
    mlp = policy.mlp_extractor
    # One of the user's own may have other parts than SB3's.
    hidden = (getattr(mlp, "policy_net", mlp), getattr(mlp, "value_net", mlp))
    if isinstance(policy, CnnPolicy):
        policy.image_dtype = torch.bfloat16
    run_in_bfloat16(dict.fromkeys(m for m in (*extractors, *hidden) if isinstance(m, nn.Module)))


def run_in_bfloat16(modules: Iterable[nn.Module]) -> None:
    """Register hooks that put each call of a module into ``torch.autocast``.

    Hooks, because they leave the names of parameters and the class of the module alone.
    """
    for module in modules:
        if next(module.parameters(), None) is not None:
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, args: tuple[Any, ...]) -> None:
    device = next(module.parameters()).device
    context = torch.autocast(device.type, torch.bfloat16)
    context.__enter__()
    module.__dict__.setdefault("_autocasts", []).append(context)


def _leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    module.__dict__["_autocasts"].pop().__exit__(None, None, None)
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, output)
