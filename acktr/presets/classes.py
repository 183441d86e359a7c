"""Names in a configuration that stand for classes: an allow-list, never evaluated code."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from acktr import policies
from acktr.algorithm import ACKTR
from acktr.checkpoint.classes import is_class
from acktr.errors import ConfigurationError


def resolve_classes(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Replace class names by classes in the values whose key ends with ``_fn`` or ``_class``.

    :param policy_kwargs: arguments of a policy as YAML gives them, such as ``{activation_fn: ELU}``
    :return: a copy with classes in place of their names, at any depth
    :raises ConfigurationError: for a name that no allowed module has
    """
    resolved = dict(policy_kwargs or {})
    for key, value in resolved.items():
        if isinstance(value, Mapping):
            resolved[key] = resolve_classes(value)
        # ACKTR refuses optimizer_class itself and says why.
        elif isinstance(value, str) and key.endswith(("_fn", "_class")) and "optimizer" not in key:
            resolved[key] = _find_class(key, value)
    return resolved


def check_policy(policy: str, policy_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse a policy that ACKTR does not have, and arguments that the policy does not have.

    :param policy: "auto" or a name such as "MlpPolicy"
    :param policy_kwargs: the arguments for it
    :raises ConfigurationError: naming the nearest policy or argument
    """
    aliases: Mapping[str, Any] = ACKTR.policy_aliases
    if policy != "auto" and policy not in aliases:
        raise ConfigurationError(
            f"There is no policy {policy!r}: choose from auto, {', '.join(sorted(aliases))}."
        )
    allowed = set(_arguments(aliases.get(policy, aliases["MlpPolicy"])))
    for key in policy_kwargs or {}:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, sorted(allowed), n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"{', '.join(sorted(allowed))}."
            raise ConfigurationError(f"Unknown key {key!r} in policy_kwargs: {advice}")
    if policy != "auto":
        _check_extractor(aliases[policy], policy_kwargs or {})


def _check_extractor(policy_class: type, policy_kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(ActorCriticPolicy.__init__)
    default: type = signature.parameters["features_extractor_class"].default
    if issubclass(policy_class, policies.CnnPolicy):
        default = policies.PaperCNN
    elif issubclass(policy_class, policies.MultiInputPolicy):
        default = torch_layers.CombinedExtractor
    extractor: type = resolve_classes(policy_kwargs).get("features_extractor_class", default)
    allowed = [name for name in inspect.signature(extractor).parameters if name != "observation_space"]
    for key in policy_kwargs.get("features_extractor_kwargs") or {}:
        if key not in allowed:
            raise ConfigurationError(
                f"{key!r} in policy_kwargs.features_extractor_kwargs is nothing that "
                f"{extractor.__name__} has ({', '.join(allowed) or 'no argument'}): take it out, also "
                "where a preset puts it, with --set policy_kwargs.features_extractor_kwargs={}."
            )


def _arguments(policy_class: type) -> Iterator[str]:
    spaces_and_schedule = {"self", "observation_space", "action_space", "lr_schedule"}
    for base in policy_class.__mro__:
        if not issubclass(base, ActorCriticPolicy):
            return
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if is_named and name not in spaces_and_schedule:
                yield name


def _find_class(key: str, name: str) -> type:
    known = {cls.__name__: cls for module in _modules() for cls in _module_classes(module)}
    # "torch.nn.Tanh" and "nn.Tanh" are common ways to write "Tanh".
    prefix, _, short = name.rpartition(".")
    allowed_prefixes = {"", "nn", *(module.__name__ for module in _modules())}
    if prefix in allowed_prefixes and short in known:
        return known[short]
    nearest = difflib.get_close_matches(short, known, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else "it must be a class of torch.nn."
    raise ConfigurationError(f"Unknown class {name!r} for {key}: {advice}")


def _modules() -> tuple[ModuleType, ...]:
    return (nn, torch_layers, policies)


def _module_classes(module: ModuleType) -> Iterator[type[nn.Module]]:
    for value in vars(module).values():
        if is_class(value) and issubclass(value, nn.Module):
            yield value
