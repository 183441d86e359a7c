"""Noise that is correlated in time: what an action tries is tried for a while.

White noise of one step is taken back by that of the next, before a body with inertia has moved. Noise
with a spectrum of ``1/f^beta`` (Eberhard et al. 2023; in on-policy learning Hollenstein et al. 2024,
arXiv 2312.11091, who find ``beta = 0.5`` the best) moves it further at the same standard deviation. Each
action is still drawn from the policy's own distribution, so that log-probabilities, Fisher and KL are
what they were; the gradient also credits an action with what the like ones after it bring.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_LONGEST = 512  # steps of one block: the matrix that mixes it is square


class ColoredNoise:
    """Standard normal noise with a spectrum of ``1/f^beta``, for one rollout.

    It is fractionally differenced noise (Granger & Joyeux 1980, Hosking 1981) with ``d = beta / 2``, of
    which each rollout draws its own: nothing of it has to be kept.

    :param beta: its color, 0 for white, below 1
    :param n_steps: of the rollout
    """

    def __init__(self, beta: float, n_steps: int) -> None:
        self._beta = beta
        self._length = min(n_steps, _LONGEST)
        self._left: list[Tensor] = []

    def draw(self, empty: Tensor) -> Tensor:
        """Return the noise of the next step.

        :param empty: ``(n_envs, action_dim)``, of the shape, dtype and device that it is to have; may be
            written to
        """
        if not self._beta:
            return empty.normal_()
        if not self._left:
            white = empty.new_empty((self._length, empty.numel())).normal_()
            mixed = _mixing(self._beta, self._length).to(white) @ white
            self._left = list(mixed.view(-1, *empty.shape).unbind())[::-1]
        return self._left.pop()


def autocorrelations(beta: float, count: int) -> Tensor:
    """Return the autocorrelations of the noise, ``(count,)`` in float64, from lag 0 on.

    ``r_k = r_(k-1) (k - 1 + d) / (k - d)`` (Hosking 1981, theorem 1).

    :param beta: its color, in [0, 1)
    """
    d, lags = beta / 2, torch.arange(1, count, dtype=torch.float64)
    return torch.cat((torch.ones(1, dtype=torch.float64), ((lags - 1 + d) / (lags - d)).cumprod(0)))


@lru_cache(maxsize=4)
def _mixing(beta: float, length: int) -> Tensor:
    """Return the lower triangular ``(length, length)`` that turns white noise into colored."""
    steps = torch.arange(length)
    lags = (steps[:, None] - steps[None, :]).abs()
    return torch.linalg.cholesky(autocorrelations(beta, length)[lags])
