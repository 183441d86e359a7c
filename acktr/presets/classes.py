"""Names in a configuration that stand for classes: an allow-list, and imports where they are allowed."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from acktr.envs.lookup import import_module
from acktr.errors import ConfigurationError
from acktr.files.allowed import is_class
from acktr.learner.algorithm import ACKTR
from acktr.networks import extractors, policies

_Class = TypeVar("_Class")


def resolve_classes(
    policy_kwargs: Mapping[str, Any] | None, *, allow_import: bool = False
) -> dict[str, Any]:
    """Replace class names by classes in the values whose key ends with ``_fn`` or ``_class``.

    :param policy_kwargs: arguments of a policy as YAML gives them, such as ``{activation_fn: ELU}``
    :param allow_import: whether ``module:Class`` may import a module, which runs its code
    :return: a copy with classes in place of their names, at any depth
    :raises ConfigurationError: for a name that no allowed module has, or a class of another kind
    """
    resolved = dict(policy_kwargs or {})
    for key, value in resolved.items():
        if isinstance(value, Mapping):
            resolved[key] = resolve_classes(value, allow_import=allow_import)
        # ACKTR refuses optimizer_class itself and says why.
        elif isinstance(value, str) and key.endswith(("_fn", "_class")) and "optimizer" not in key:
            found = _import_class(key, value, allow_import) if ":" in value else _find_class(key, value)
            base = BaseFeaturesExtractor if key == "features_extractor_class" else nn.Module
            resolved[key] = _check_kind(key, value, found, base)
    return resolved


def resolve_policy(
    policy: str | type[ActorCriticPolicy], *, allow_import: bool = False
) -> str | type[ActorCriticPolicy]:
    """Turn ``module:Class`` into the class; a name such as "MlpPolicy" stays, and so does a class.

    :param policy: "auto", the name of a policy, or a class
    :param allow_import: whether a module may be imported, which runs its code
    :raises ConfigurationError: for a name that ACKTR does not have, or a class that is no policy
    """
    if not isinstance(policy, str):
        return policy
    if ":" in policy:
        found = _import_class("policy", policy, allow_import)
        return _check_kind("policy", policy, found, ActorCriticPolicy)
    if policy != "auto" and policy not in ACKTR.policy_aliases:
        names = ", ".join(sorted(ACKTR.policy_aliases))
        raise ConfigurationError(
            f"There is no policy {policy!r}: choose from auto, {names}, or give module:Class."
        )
    return policy


def check_policy(
    policy: str | type[ActorCriticPolicy],
    policy_kwargs: Mapping[str, Any] | None,
    *,
    allow_import: bool = False,
) -> None:
    """Refuse a policy that ACKTR does not have, and arguments that the policy does not have.

    :param policy: "auto", a name such as "MlpPolicy", ``module:Class``, or a class
    :param policy_kwargs: the arguments for it
    :param allow_import: whether modules may be imported, which runs their code
    :raises ConfigurationError: naming the nearest policy or argument
    """
    found = resolve_policy(policy, allow_import=allow_import)
    policy_kwargs = resolve_classes(policy_kwargs, allow_import=allow_import)
    aliases: Mapping[str, Any] = ACKTR.policy_aliases
    policy_class = aliases.get(found, aliases["MlpPolicy"]) if isinstance(found, str) else found
    allowed = set(_arguments(policy_class))
    for key in policy_kwargs:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, sorted(allowed), n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"{', '.join(sorted(allowed))}."
            raise ConfigurationError(f"Unknown key {key!r} in policy_kwargs: {advice}")
    if policy in aliases:
        _check_extractor(policy_class, policy_kwargs)


def _check_extractor(policy_class: type, policy_kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(ActorCriticPolicy.__init__)
    default: type = signature.parameters["features_extractor_class"].default
    if issubclass(policy_class, policies.CnnPolicy):
        default = policies.PaperCNN
    elif issubclass(policy_class, policies.MultiInputPolicy):
        default = extractors.MixedExtractor
    extractor: type = policy_kwargs.get("features_extractor_class", default)
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
    advice = (
        f"did you mean {nearest[0]!r}?"
        if nearest
        else "it must be a class of torch.nn, or one of your own as module:Class."
    )
    raise ConfigurationError(f"Unknown class {name!r} for {key}: {advice}")


def _import_class(key: str, name: str, allow_import: bool) -> Any:
    module_name, _, attribute = name.rpartition(":")
    module = import_module(module_name, f"the setting {key}", allow_import=allow_import)
    # Not getattr: a module may import others when it is asked for what it lacks.
    found = vars(module).get(attribute)
    if found is None:
        nearest = difflib.get_close_matches(attribute, vars(module), n=1)
        advice = f"did you mean {nearest[0]!r}?" if nearest else "check its name."
        raise ConfigurationError(f"The module {module_name!r} has no {attribute!r} for {key}: {advice}")
    return found


def _check_kind(key: str, name: str, found: Any, base: type[_Class]) -> type[_Class]:
    if isinstance(found, type) and issubclass(found, base):
        return found
    raise ConfigurationError(
        f"{name} cannot be the {key}: it must be a class derived from {base.__name__}."
    )


def _modules() -> tuple[ModuleType, ...]:
    return (nn, torch_layers, policies, extractors)


def _module_classes(module: ModuleType) -> Iterator[type[nn.Module]]:
    for value in vars(module).values():
        if is_class(value) and issubclass(value, nn.Module):
            yield value
