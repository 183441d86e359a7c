"""Attention as memory: a policy of one's own that looks back at its last observations.

    python examples/attention.py
    python examples/attention.py --env benchmarks.memory_tasks:tmaze-20-v0 --steps 40000

What remembers is one class with the interface of ACKTR's recurrent layers; the policy is two lines.
Rollouts, resets, `predict(obs, state, episode_start)`, curvature and files are those of every policy
that remembers. The default task is CartPole without velocities.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from acktr import ACKTR
from acktr.networks.recurrent import RecurrentPolicy

HEADS = 4


class Window(nn.Module):
    """A layer of causal attention over the last observations of an episode.

    Each step sees a window of its own, in which places count from the present: the state of an
    environment is the window's past, and whether there is one. It needs no positions in the episode,
    and no mask but that of what lies outside of the episode.

    :param input_size: width of a sample, F
    :param hidden_size: width of the outputs, H, a multiple of 4
    :param num_layers: 1
    :param window: observations that a step sees, the present one included, W
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, window: int = 32) -> None:
        super().__init__()
        if num_layers != 1 or hidden_size % HEADS or window < 2:
            raise ValueError("A window has one layer, a width that 4 divides, and two steps or more.")
        self.window, self.input_size, self.hidden_size = window, input_size, hidden_size
        self.embed = nn.Linear(input_size, hidden_size)
        self.place = nn.Parameter(0.5 * torch.randn(window, hidden_size))
        self.before, self.between = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.up, self.down = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def zeros(self, n_envs: int) -> tuple[Tensor, Tensor]:
        """Return the past of those who have none: ``(W - 1, N, F)`` and ``(W - 1, N, 1)``."""
        size = self.window - 1, n_envs
        return self.place.new_zeros(*size, self.input_size), self.place.new_zeros(*size, 1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], starts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Go through sequences that may hold several episodes each.

        :param x: ``(T N, F)``, steps first
        :param state: of before the first step
        :param starts: whether an episode begins at a step, boolean, ``(T, N)``, on the host
        :return: outputs ``(T N, H)``, and the states after each step, ``(T, W - 1, N, ...)``
        """
        (steps, n_envs), (past, known) = starts.shape, state
        windows = torch.cat((past, x.view(steps, n_envs, -1))).unfold(0, self.window, 1)
        windows = windows.movedim(-1, 2)  # (T, N, W, F)
        episode = starts.to(x.device).cumsum(0)
        # What came before the rollout has the number 0, and what never was has none.
        number = torch.cat((torch.where(known[..., 0] > 0, 0, -1), episode))
        seen = number.unfold(0, self.window, 1) == episode.unsqueeze(-1)  # (T, N, W)
        out = self._attend(windows.flatten(0, 1), seen.flatten(0, 1))
        kept = windows[:, :, 1:].transpose(1, 2).detach(), seen[:, :, 1:, None].transpose(1, 2).to(x)
        return out, kept

    def _attend(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return ``(B, H)`` of windows ``(B, W, F)``, of which ``(B, W)`` is seen."""
        z = self.embed(x) + self.place
        normed = self.before(z)
        q = self.query(normed[:, -1]).unflatten(-1, (HEADS, 1, -1))  # (B, heads, 1, H / heads)
        k, v = self.key_value(normed).unflatten(-1, (2 * HEADS, -1)).transpose(1, 2).chunk(2, 1)
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        shares = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        y = z[:, -1] + self.out((shares @ v).flatten(1))
        return y + self.down(torch.relu(self.up(self.between(y))))


class MlpAttentionPolicy(RecurrentPolicy):
    """Attention over plain observations; ``lstm_hidden_size`` is its width."""

    cell = Window  # type: ignore[assignment]  # by its interface


POLICIES = {"attention": MlpAttentionPolicy, "lstm": "MlpLstmPolicy", "none": "MlpPolicy"}


def without_velocities() -> gym.Env:
    env = gym.make("CartPole-v1")
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return TransformObservation(env, lambda x: x[::2].astype(np.float32), space)


def train(policy: str, env: Any, steps: int, seed: int, window: int) -> float:
    """Return the mean return of the last 100 episodes."""
    envs = VecNormalize(make_vec_env(env, 8, seed=seed), norm_reward=False)
    own = {"lstm_kwargs": {"window": window}} if policy == "attention" else {}
    model = ACKTR(POLICIES[policy], envs, seed=seed, policy_kwargs=own, device="cpu")
    model.learn(steps)
    envs.close()
    assert model.ep_info_buffer is not None
    return float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print the returns, and give them back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default=without_velocities, help="an id (CartPole without velocities)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["attention", "lstm"])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scores = {}
    for policy in options.policies:
        scores[policy] = train(policy, options.env, options.steps, options.seed, options.window)
        print(f"{policy}, seed {options.seed}: {scores[policy]:.2f}", flush=True)
    return scores


if __name__ == "__main__":
    main()
