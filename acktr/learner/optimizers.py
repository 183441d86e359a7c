"""The optimisers of actor and critic: K-FAC, or Adam for a critic that learns in first order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.optim import Adam

from acktr import distributed
from acktr.errors import ConfigurationError
from acktr.kfac import KFAC, Graphs
from acktr.kfac.cuda_graphs import CudaEngine
from acktr.kfac.factors import BLOCK, WIDEST
from acktr.kfac.options import GROUPS
from acktr.learner.settings import AdamCritic, Critic, Natural, NaturalCritic
from acktr.networks.outputs import Outputs


class Optimizers(NamedTuple):
    """The optimisers of a policy's parameters.

    :param actor: the actor's, and on a shared trunk with a natural critic all of them
    :param critic: those that only the critic has, on a shared trunk all of the critic's; ``None`` where
        the actor's optimiser moves them
    :param graphs: that repeat the steps of each on a CUDA device, ``None`` for none
    :param notes: what a user should know of them, in sentences
    """

    actor: KFAC
    critic: KFAC | Adam | None
    graphs: tuple[Graphs | None, Graphs | None]
    notes: list[str]


def build_optimizers(
    policy: ActorCriticPolicy,
    outputs: Outputs,
    natural: Natural,
    critic: Critic,
    rates: tuple[float, float],
    precision: str,
) -> Optimizers:
    """Give a policy's parameters to the optimisers that the settings ask for.

    :param policy: the policy
    :param outputs: its parameters by whom they belong to
    :param natural: how natural gradients are computed
    :param critic: how the critic learns
    :param rates: the first learning rate of the actor, and of a critic that learns by itself
    :param precision: of the networks, as it is available
    :raises ConfigurationError: settings that do not go together
    """
    of_actor, of_critic = outputs.actor, outputs.critic
    if outputs.shared and isinstance(critic, NaturalCritic):
        critic.check_joint()
        trunk = set(of_actor)
        of_actor, of_critic = of_actor + [p for p in of_critic if p not in trunk], []
    notes: list[str] = []
    dtype = {"statistics_dtype": torch.bfloat16} if precision == "bf16" else {}
    common = {
        "process_group": distributed.group(),
        "target_kl": None,
        "curvature": dtype,
        "periods": {"factor": 1, "inverse": 1, "burn_in": 0},
    }

    def kfac(params: list[nn.Parameter], rate: float, of: Natural | NaturalCritic) -> KFAC:
        iterations = {"step_rule": {"cg_iterations": of.cg_iterations}}
        kwargs = _merged(common, natural.kfac_kwargs, of.kfac_kwargs, iterations)
        wide = _wide_layers(policy, params)
        if wide and "max_factor_size" not in kwargs["curvature"]:
            kwargs["curvature"]["max_factor_size"] = BLOCK  # of all layers, as saved files have it
            notes.append(
                f"K-FAC keeps the factors of {', '.join(wide)} as blocks of at most {BLOCK} "
                "coordinates: whole ones of that width are slow. "
                "natural=Natural(kfac_kwargs=dict(curvature=dict(max_factor_size=None))) keeps them "
                "whole."
            )
        assert of.damping is not None  # with_damping
        return KFAC(policy, lr=rate, damping=of.damping, param_groups=[{"params": params}], **kwargs)

    actor = kfac(of_actor, rates[0], natural)
    optimizer: KFAC | Adam | None = None
    wants_graphs = _wants_graphs(outputs, natural, critic, policy.device)
    if of_critic and isinstance(critic, NaturalCritic):
        optimizer = kfac(of_critic, rates[1], critic)
    elif of_critic:
        optimizer = Adam(of_critic, lr=rates[1], capturable=wants_graphs)
    graphs: tuple[Graphs | None, Graphs | None] = (None, None)
    if wants_graphs:
        try:
            engine = CudaEngine()
            graphs = Graphs(actor, engine), None if optimizer is None else Graphs(optimizer, engine)
        except ValueError as error:
            raise ConfigurationError(f"cuda_graphs=True is not possible. {error}") from error
    return Optimizers(actor, optimizer, graphs, notes)


def _merged(*many: Mapping[str, Any]) -> dict[str, Any]:
    """Merge arguments of KFAC, each group field by field; later ones count."""
    merged: dict[str, Any] = {}
    for arguments in many:
        for name, value in arguments.items():
            merged[name] = {**merged.get(name, {}), **value} if name in GROUPS else value
    return merged


def _wide_layers(policy: nn.Module, params: list[nn.Parameter]) -> list[str]:
    """Name the layers with more inputs or outputs than a whole factor may have."""
    ours = set(params)
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [
        f"{name} ({weight[0].numel()} inputs, {len(weight)} outputs)"
        for name, module in policy.named_modules()
        if isinstance(module, layers) and (weight := module.weight) in ours
        if max(weight[0].numel(), len(weight)) > WIDEST
    ]


def _wants_graphs(outputs: Outputs, natural: Natural, critic: Critic, device: torch.device) -> bool:
    """Whether a CUDA graph repeats the steps; refuse what it cannot repeat."""
    if not natural.cuda_graphs:
        return False
    if critic.std == "adaptive":  # a graph repeats the number that it saw
        raise ConfigurationError(
            "natural.cuda_graphs=True does not go with critic.std='adaptive', which is another number "
            "in every update: leave one of them out."
        )
    if outputs.noisy and outputs.shared and isinstance(critic, AdamCritic):
        raise ConfigurationError(
            "natural.cuda_graphs=True does not go with an AdamCritic on a shared trunk that draws "
            "random numbers, such as dropout: leave one of them out."
        )
    if device.type == "cuda":
        return True
    warnings.warn(
        f"natural.cuda_graphs=True needs a CUDA device: this model is on {device.type}, and training "
        "goes on without.",
        UserWarning,
        stacklevel=2,
    )
    return False
