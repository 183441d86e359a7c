"""A stack of wrappers above two halves, taken apart into one stack for each and put together again."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from acktr.envs.finite import VecCheckFinite
from acktr.envs.halves import Half, HalvedVecEnv, join, take
from acktr.envs.resets import VecStack
from acktr.envs.running import VecRunningNormalize
from acktr.errors import ConfigurationError


class Splitter(NamedTuple):
    """How one class of wrapper is divided.

    :param split: given the wrapper, a shallow copy of it and a slice of the environments, leaves in the
        copy what belongs to these; what is common to all, such as running statistics, stays shared
    :param merge: given the wrapper and its copies, puts what they have become back into it
    """

    split: Callable[[Any, Any, slice], None]
    merge: Callable[[Any, Sequence[Any]], None]


class Lane(NamedTuple):
    """One half and the wrappers above it.

    :param env: the outermost wrapper
    :param half: the innermost environments
    :param part: which of all environments these are
    """

    env: VecEnv
    half: Half
    part: slice


class Lanes:
    """The two lanes of a stack, valid for one rollout.

    :param env: wrappers above a :class:`~acktr.envs.halves.HalvedVecEnv`
    :raises ConfigurationError: naming a wrapper that cannot be divided
    """

    def __init__(self, env: VecEnv) -> None:
        self._wrappers: list[VecEnvWrapper] = []
        while isinstance(env, VecEnvWrapper):
            if type(env) not in SPLITTERS:
                raise ConfigurationError(
                    f"{type(env).__name__} cannot be divided between the halves of overlapped "
                    "environments: leave overlap off, or register it in acktr.envs.lanes.SPLITTERS."
                )
            self._wrappers.insert(0, env)
            env = env.venv
        assert isinstance(env, HalvedVecEnv)
        self._views: list[list[VecEnvWrapper]] = [[] for _ in self._wrappers]
        self.lanes = [self._lane(*pair) for pair in zip(env.halves, env.parts, strict=True)]

    def _lane(self, half: Half, part: slice) -> Lane:
        env: VecEnv = half
        for wrapper, views in zip(self._wrappers, self._views, strict=True):
            # Not copy.copy: what VecNormalize gives to pickle lacks a part of it.
            view = object.__new__(type(wrapper))
            view.__dict__.update(wrapper.__dict__, venv=env, num_envs=half.num_envs)
            SPLITTERS[type(wrapper)].split(wrapper, view, part)
            views.append(view)
            env = view
        return Lane(env, half, part)

    def merge(self) -> None:
        """Bring the whole stack to where its lanes are, as if it had stepped itself."""
        for wrapper, views in zip(self._wrappers, self._views, strict=True):
            SPLITTERS[type(wrapper)].merge(wrapper, views)


def halved_below(env: VecEnv) -> bool:
    """Whether the innermost environment is a :class:`~acktr.envs.halves.HalvedVecEnv`."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return isinstance(env, HalvedVecEnv)


def _split_normalize(whole: VecNormalize, view: VecNormalize, part: slice) -> None:
    view.returns = whole.returns[part]


def _merge_normalize(whole: VecNormalize, views: Sequence[VecNormalize]) -> None:
    for name in ("returns", "old_obs", "old_reward"):
        setattr(whole, name, join([getattr(view, name) for view in views]))


def _split_frames(whole: VecFrameStack, view: VecFrameStack, part: slice) -> None:
    view.stacked_obs = _frames(whole.stacked_obs, part)


def _frames(stack: StackedObservations, part: slice) -> StackedObservations:
    own = copy.copy(stack)
    if hasattr(stack, "sub_stacked_observations"):
        own.sub_stacked_observations = {
            key: _frames(sub, part) for key, sub in stack.sub_stacked_observations.items()
        }
    else:
        own.stacked_obs = take(stack.stacked_obs, part)
    return own


def _merge_frames(whole: VecFrameStack, views: Sequence[VecFrameStack]) -> None:
    _put_frames(whole.stacked_obs, [view.stacked_obs for view in views])


def _put_frames(whole: StackedObservations, views: Sequence[StackedObservations]) -> None:
    if hasattr(whole, "sub_stacked_observations"):
        for key, sub in whole.sub_stacked_observations.items():
            _put_frames(sub, [view.sub_stacked_observations[key] for view in views])
    else:
        whole.stacked_obs = join([view.stacked_obs for view in views])


def _split_check(whole: VecCheckFinite, view: Any, part: slice) -> None:
    def refuse(what: str, index: int, values: Any) -> None:
        # The whole knows how many environments there are, and the number of this one among them.
        whole._n_calls = view._n_calls
        whole._raise(what, part.start + index, values)

    view._raise = refuse


def _merge_check(whole: VecCheckFinite, views: Sequence[VecCheckFinite]) -> None:
    whole._n_calls = views[0]._n_calls


def _nothing(*_: object) -> None:
    pass


# A subclass is not its base: it may remember something for each environment.
SPLITTERS: dict[type[VecEnvWrapper], Splitter] = {
    VecNormalize: Splitter(_split_normalize, _merge_normalize),
    VecRunningNormalize: Splitter(_split_normalize, _merge_normalize),
    VecFrameStack: Splitter(_split_frames, _merge_frames),
    VecStack: Splitter(_split_frames, _merge_frames),
    VecTransposeImage: Splitter(_nothing, _nothing),
    VecCheckFinite: Splitter(_split_check, _merge_check),
}
