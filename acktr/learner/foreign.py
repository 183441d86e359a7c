"""Arguments and policies that other algorithms take and ACKTR does not, and what takes their place."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec

import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from acktr.errors import ConfigurationError
from acktr.learner.moved import MOVED, gone, place

_P = ParamSpec("_P")

_KFAC = "the optimiser is K-FAC"
_OFF_POLICY = "ACKTR learns on-policy and keeps no replay buffer"

# Arguments of SB3's A2C and PPO, of sb3-contrib's TRPO, of what they were in Stable-Baselines 2 (its
# ACKTR among them), and of off-policy algorithms.
REPLACED: Mapping[str, str] = {
    "max_grad_norm": "target_kl and learning_rate bound each step, no gradient is clipped",
    "rms_prop_eps": f"{_KFAC}, and natural=Natural(damping=...) takes its place",
    "use_rms_prop": f"{_KFAC}; critic=AdamCritic(...) gives the critic Adam",
    "use_sde": "gSDE is not supported: its Fisher is not that of a Gaussian in the mean",
    "sde_sample_freq": "gSDE is not supported",
    "rollout_buffer_class": "its own storage of rollouts offers what SB3's RolloutBuffer does",
    "rollout_buffer_kwargs": "its own storage of rollouts has no options",
    "monitor_wrapper": "give a vector environment, which is taken as it is, to have no Monitor",
    "n_epochs": "the actor learns once from a rollout, the critic n_updates times",
    "batch_size": "the actor learns from the whole rollout (n_steps * n_envs samples) at once, and "
    "batch_size of critic is that of the critic",
    "clip_range": "target_kl, the radius of the trust region, takes its place",
    "clip_range_vf": "critic=NaturalCritic(trust_region=...) takes its place",
    "cg_max_steps": "natural=Natural(cg_iterations=...) takes its place",
    "cg_damping": "natural=Natural(damping=...) takes its place",
    "line_search_shrinking_factor": "natural=Natural(kl_feedback=True) rescales what goes too far",
    "line_search_max_iter": "natural=Natural(kl_feedback=True) rescales what goes too far",
    "vf_fisher_coef": "std of critic takes its place",
    "kfac_clip": "target_kl, in nats, takes its place",
    "kfac_update": "natural=Natural(kfac_kwargs={'periods': {'inverse': ...}}) takes its place",
    "async_eigen_decomp": "'periods': {'inverse_refresh': 'background'} in kfac_kwargs does it",
    "lr_schedule": "learning_rate may be a schedule: a callable, or Linear(0.25), which goes to 0",
    "alpha": f"{_KFAC}, and 'curvature': {{'stat_decay': ...}} in kfac_kwargs takes its place",
    "epsilon": f"{_KFAC}, and natural=Natural(damping=...) takes its place",
    "max_kl": "target_kl takes its place",
    "lam": "gae_lambda takes its place",
    "cliprange": "target_kl, the radius of the trust region, takes its place",
    "cliprange_vf": "critic=NaturalCritic(trust_region=...) takes its place",
    "noptepochs": "the actor learns once from a rollout, the critic n_updates times",
    "nminibatches": "the actor learns from the whole rollout at once, the critic from "
    "batch_size samples of critic",
    "n_cpu_tf_sess": "torch.set_num_threads takes its place",
    "full_tensorboard_log": "tensorboard_log has all there is",
    "create_eval_env": "give SB3's EvalCallback to learn",
    **dict.fromkeys(
        ("buffer_size", "learning_starts", "train_freq", "gradient_steps", "tau", "action_noise"),
        _OFF_POLICY,
    ),
    **dict.fromkeys(
        ("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"), _OFF_POLICY
    ),
}

# Values that mean what ACKTR does anyway.
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "max_grad_norm": lambda x: x is None or x == math.inf,
    "use_rms_prop": lambda x: x is False,
    "use_sde": lambda x: not x,
    "sde_sample_freq": lambda x: x is None or x == -1,
    "rollout_buffer_class": lambda x: x in (None, RolloutBuffer, DictRolloutBuffer),
    "rollout_buffer_kwargs": lambda x: not x,
    "monitor_wrapper": lambda x: x is True,
    "n_epochs": lambda x: x == 1,
    "batch_size": lambda x: x is None,
    "clip_range": lambda x: x is None,
    "clip_range_vf": lambda x: x is None,
}


def own_arguments(given: Mapping[str, Any], known: Iterable[str], of: str) -> dict[str, Any]:
    """Leave out what other algorithms take, where it means what ACKTR does anyway.

    :param given: arguments by name
    :param known: the names of its own
    :param of: the algorithm, for messages
    :raises ConfigurationError: says of each other name what takes its place, or which is the nearest
    """
    known = set(known)
    own = {name: value for name, value in given.items() if name in known}
    wrong = [
        f"no {name}: {advice(name, known)}"
        for name, value in given.items()
        if name not in known and not (name in _HARMLESS and _HARMLESS[name](value))
    ]
    if wrong:
        raise ConfigurationError(_sentence(f"{of} has {'; '.join(wrong)}"))
    return own


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def advice(name: str, known: Iterable[str]) -> str:
    """Say what takes the place of an argument, or which one was probably meant."""
    if name in REPLACED:
        return REPLACED[name]
    moved = place(name) or gone(name)
    if moved:
        return moved
    nearest = difflib.get_close_matches(name, sorted({*known, *MOVED}), n=1)
    if not nearest:
        return f"leave {name} out"
    if nearest[0] in MOVED:
        return f"if {nearest[0]} is meant, {place(nearest[0])}"
    return f"did you mean {nearest[0]!r}?"


def explain_arguments(init: Callable[_P, None]) -> Callable[_P, None]:
    """Let a constructor say in one sentence what takes the place of an argument that it does not have.

    Its signature stays what it is.
    """
    known = inspect.signature(init).parameters

    @functools.wraps(init)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> None:
        of = type(args[0]).__name__
        init(*args, **own_arguments(kwargs, known, of))

    return explained


# ------------------------------------------------------------------ policies

_CALLED = {"get_distribution": 1, "predict_values": 1, "evaluate_actions": 2}  # with so many arguments
_RECURRENT = (
    "ACKTR asks its own recurrent policies of whole rollouts: give 'MlpLstmPolicy', 'CnnLstmPolicy', "
    "'MultiInputLstmPolicy', or the same with Gru, with the arguments of sb3-contrib, or a subclass of "
    "acktr.networks.recurrent.RecurrentPolicy"
)
_MASKED = (
    "ACKTR masks the distribution of any policy itself, by the action_masks() of its environments: give "
    "'MlpPolicy' or another that knows no masks"
)


def check_policy(policy: Any, aliases: Mapping[str, type]) -> None:
    """Refuse what is no policy of ACKTR's.

    :param policy: the constructor's argument
    :param aliases: the names it may have
    :raises ConfigurationError: says why, and what to give
    """
    if isinstance(policy, str):
        if policy in aliases:
            return
        nearest = difflib.get_close_matches(policy, aliases, n=1)
        meant = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(aliases)}"
        raise ConfigurationError(_sentence(f"There is no policy {policy!r}: {meant}"))
    if isinstance(policy, nn.Module):
        raise ConfigurationError(
            f"policy must be a name or a class, not an instance: give {type(policy).__name__} and its "
            "policy_kwargs, and then its parameters with model.policy.load_state_dict(...)."
        )
    name = getattr(policy, "__name__", repr(policy))
    parameters = _parameters(policy)
    if any("action_masks" in names for names in parameters.values()):
        raise ConfigurationError(f"The policy {name} takes action_masks: {_MASKED}.")
    if not (inspect.isclass(policy) and issubclass(policy, ActorCriticPolicy)):
        raise ConfigurationError(
            f"policy must be one of {', '.join(aliases)} or a subclass of SB3's ActorCriticPolicy, "
            f"with an actor and a critic of states, not {name}."
        )
    for method, arguments in _CALLED.items():
        needed = parameters[method][arguments:]
        if needed:
            why = _RECURRENT if "lstm_states" in needed else "ACKTR gives observations and actions"
            raise ConfigurationError(f"{method} of the policy {name} needs {', '.join(needed)}: {why}.")


def _parameters(policy: Any) -> dict[str, list[str]]:
    """Return the names that its methods cannot be called without, and those of masks, after self."""
    named = {}
    for method in (*_CALLED, "forward"):
        try:
            own = list(inspect.signature(getattr(policy, method)).parameters.values())[1:]
        except (AttributeError, TypeError, ValueError):
            own = []
        needed = (
            p.name
            for p in own
            if p.name == "action_masks"
            or (p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        )
        named[method] = list(needed)
    return named


def check_built_policy(policy: ActorCriticPolicy) -> None:
    """Refuse a policy whose actions differ from what ACKTR takes them for.

    :raises ConfigurationError: gSDE, or squashed actions
    """
    if getattr(policy, "use_sde", False) or isinstance(
        policy.action_dist, StateDependentNoiseDistribution
    ):
        raise ConfigurationError(
            f"{type(policy).__name__} explores by gSDE, which is not supported: its Fisher is not that "
            "of a Gaussian in the mean; build it with use_sde=False."
        )
    if policy.squash_output:
        raise ConfigurationError(
            f"{type(policy).__name__} squashes its actions (squash_output), which is not supported: "
            "actions outside their bounds are clipped; leave it out."
        )


def check_dtype(policy: ActorCriticPolicy) -> None:
    """Refuse a policy that cannot take the float32 which SB3 makes of observations.

    :raises ConfigurationError: names its dtype
    """
    dtypes = {p.dtype for p in policy.parameters()}
    theirs = type(policy.features_extractor).__module__.startswith(("stable_baselines3.", "acktr."))
    if theirs and dtypes and torch.float32 not in dtypes:
        raise ConfigurationError(
            f"The policy's parameters are {dtypes.pop()}, and SB3 makes observations torch.float32: "
            "build the model with that as torch's default dtype, or call model.policy.float()."
        )


def warn_of_moved(names: Iterable[str]) -> None:
    """Say that settings of 0.1.0 which are set on a model change nothing.

    :param names: of the attributes that are not the model's own
    """
    for name in names:
        said = place(name) or gone(name)
        if said:
            warnings.warn(
                f"model.{name} was set, and changes nothing: {said}, when the model is built.",
                UserWarning,
                stacklevel=3,
            )
