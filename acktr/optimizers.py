"""The optimisers of actor and critic: K-FAC, or Adam for a critic that learns in first order."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acktr import distributed
from acktr.errors import ConfigurationError
from acktr.kfac import KFAC, Graphs
from acktr.kfac.graphs import CudaEngine
from acktr.options import check_graphs, check_joint_critic

if TYPE_CHECKING:
    from acktr.algorithm import ACKTR

# A factor up to the first width is kept whole, as that of the paper's fully connected layer (1569).
# Wider ones have diagonal blocks: 3,000 inputs take 0.9 s a rollout where whole they take 4.1.
_WIDEST_FACTOR, _BLOCK = 2048, 1024


def build_optimizers(model: ACKTR) -> None:
    """Give a model's parameters to the optimisers that its settings ask for.

    :param model: with its policy and its schedules
    :raises ConfigurationError: settings that do not go together
    """
    actor, critic = model.outputs.actor, model.outputs.critic
    trunk = set(actor) & set(critic)
    gauss_newton = model.critic_norm == "gauss-newton"
    if model.shared and gauss_newton:
        check_joint_critic(model.n_critic_updates, model.critic_batch_size)
        actor, critic = actor + [p for p in critic if p not in trunk], []
    of_actor = {"damping": model.damping, "lr": model.lr_schedule(1.0)}
    model.policy.optimizer = _kfac(model, actor, {"cg_iterations": model.cg_iterations}, of_actor)
    rate = model.critic_lr_schedule(1.0)
    optimizer: torch.optim.Optimizer | None = None
    graphs = _wants_graphs(model)
    if critic and gauss_newton:
        of_critic = {"damping": model.critic_damping, "lr": rate}
        optimizer = _kfac(model, critic, model.critic_kfac_kwargs, of_critic)
    elif critic:
        optimizer = torch.optim.Adam(critic, lr=rate, capturable=graphs)
    model._set_critic_optimizer(optimizer)
    model._graphs = {}
    if graphs:
        try:
            engine = CudaEngine()
            model._graphs["actor"] = Graphs(model.kfac, engine)
            if optimizer is not None:
                model._graphs["critic"] = Graphs(optimizer, engine)
        except ValueError as error:
            raise ConfigurationError(f"cuda_graphs=True is not possible. {error}") from error


def _kfac(
    model: ACKTR, params: list[nn.Parameter], own_kwargs: dict[str, Any], group: dict[str, Any]
) -> KFAC:
    own: dict[str, Any] = {}
    if model.used_precision == "bf16":
        own["statistics_dtype"] = torch.bfloat16
    own["process_group"] = distributed.group()
    kwargs = {**own, "target_kl": None, **model.kfac_kwargs, **own_kwargs}
    wide = _wide_layers(model.policy, params)
    if wide and "max_factor_size" not in kwargs:
        kwargs["max_factor_size"] = _BLOCK
        model.notes.append(
            f"K-FAC keeps the factors of {', '.join(wide)} as blocks of at most {_BLOCK} coordinates: "
            "whole ones of that width are slow. kfac_kwargs=dict(max_factor_size=None) keeps them whole."
        )
    return KFAC(model.policy, param_groups=[{"params": params, **group}], **kwargs)


def _wide_layers(policy: nn.Module, params: list[nn.Parameter]) -> list[str]:
    """Name the layers with more inputs or outputs than a whole factor may have."""
    ours = set(params)
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [
        f"{name} ({weight[0].numel()} inputs, {len(weight)} outputs)"
        for name, module in policy.named_modules()
        if isinstance(module, layers) and (weight := module.weight) in ours
        if max(weight[0].numel(), len(weight)) > _WIDEST_FACTOR
    ]


def _wants_graphs(model: ACKTR) -> bool:
    if not model.cuda_graphs:
        return False
    check_graphs(model.critic_std)
    if model.outputs.noisy and model.shared and model.critic_norm == "euclidean":
        raise ConfigurationError(
            "cuda_graphs=True does not go with a first-order critic on a shared trunk that draws random "
            "numbers, such as dropout: leave one of them out."
        )
    if model.device.type == "cuda":
        return True
    warnings.warn(
        f"cuda_graphs=True needs a CUDA device: this model is on {model.device.type}, and training goes "
        "on without.",
        UserWarning,
        stacklevel=2,
    )
    return False
