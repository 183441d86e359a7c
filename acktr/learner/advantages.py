"""What advantages discount with, and the scale on which the actor learns from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acktr import distributed
from acktr.learner.settings import as_trace_decay
from acktr.rollout.collect import RolloutBatch, RolloutStorage
from acktr.schedules import is_schedule

if TYPE_CHECKING:
    from acktr.learner.algorithm import ACKTR


def set_discount(model: ACKTR, rollout_buffer: RolloutStorage) -> None:
    """Give the next rollout the discount factor and the lambda that are its own.

    A schedule sets that of ``VecNormalize`` too: rewards in units of what the same horizon sums up to
    leave the critic values of one scale, however far the horizon rises.

    A horizon that rises by name (``"rise_A_B"``) stays within the time limit of an episode: no return
    that is ever seen says what comes later. With ``"auto_A_B"`` it is that of B as soon as episodes have
    ended, and as long as none has ended but by its time limit: where nothing can end an episode there is
    no caution that a long horizon could reward too soon. ``gae_lambda="auto_A_B"`` is B on the same
    condition, unless the time limit holds the horizon back, and else A.

    :param model: before the rollout, with the progress of now
    :param rollout_buffer: which discounts, and goes on with the endings that were seen
    :raises ConfigurationError: the schedule's value is no discount factor
    """
    gamma = model.gamma_schedule(model._current_progress_remaining)
    lasting = model.endings == (True, False)
    name: Any = model.gamma  # SB3 declares a number
    if isinstance(name, str):
        if name.startswith("auto") and lasting:
            gamma = model.gamma_schedule(0.0)
        if model.time_limit is not None:
            longest = max(model.gamma_schedule(1.0), 1.0 - 1.0 / model.time_limit)
            lasting = lasting and gamma <= longest
            gamma = min(gamma, longest)
    rollout_buffer.gamma = gamma
    rollout_buffer.gae_lambda = as_trace_decay(model.gae_lambda)[lasting]
    rollout_buffer.endings = model.endings
    normalize = model.get_vec_normalize_env()
    if normalize is not None and is_schedule(model.gamma):
        normalize.gamma = gamma


def normalize_advantages(model: ACKTR, batch: RolloutBatch) -> Callable[[], RolloutBatch]:
    """Begin to shift advantages to mean 0 over the samples of all ranks, and to scale them.

    With ``normalize_advantage=True`` by their standard deviation in this rollout, as in SB3. The trust
    region makes each step as long as the last, so a policy that does everything right, whose advantages
    are the critic's noise alone, then walks about at random with full steps until it has unlearned its
    task. With ``"running"`` they are divided by the root mean square of the standard deviations of all
    rollouts so far: noise stays small, its natural gradient too, and the step ends at eta_max
    (``learning_rate``) before it reaches the bound. A critic of normalised targets, which has seen no
    return yet, gives every value of the first rollout as 0: its advantages count until the second.

    :param model: its ``advantage_variance`` and ``advantage_count`` go on
    :param batch: the rollout; as many samples on all ranks
    :return: waits, and returns the batch with its advantages normalised
    """
    advantages, how = batch.advantages, model.normalize_advantage
    if not how or len(advantages) * distributed.size() == 1:
        return lambda: batch
    finish = distributed.moments(advantages)

    def finish_and_normalize() -> RolloutBatch:
        mean, std = finish()
        if how == "running":
            variance = std.item() ** 2
            # The loss of what is not finite is refused, and the model before it may be saved.
            if math.isfinite(variance):
                model.advantage_count += 1
                change = variance - model.advantage_variance
                counted = model.advantage_count - bool(model.normalize_value_targets)
                model.advantage_variance += change / max(1, counted)
            std = std.new_tensor(model.advantage_variance**0.5)
        return batch._replace(advantages=(advantages - mean) / (std + 1e-8))

    return finish_and_normalize
