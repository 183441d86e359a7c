"""What is timed: each function here is one side, runs in a process of its own, and calls its pace."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
)
from torch import nn
from torch.distributions import Normal

from acktr import ACKTR, KFAC
from acktr.envs.lookup import family
from acktr.kfac import Graphs
from acktr.kfac.options import grouped
from acktr.learner.critic import AdamCriticUpdate
from acktr.learner.natural_step import run
from acktr.learner.settings import AdamCritic
from acktr.presets import Configuration, resolve
from acktr.presets.classes import resolve_classes
from acktr.rollout.batch import RolloutBatch
from acktr.run.build import build_environment, build_model, choose_policy
from acktr.run.memory import keep_freed_memory
from benchmarks.speed.flops import update_flops
from benchmarks.speed.process import Pace
from benchmarks.speed.profile import watch

# So long that no schedule moves: every repetition is made at the settings of a run's start.
_HORIZON = 10**9
_CRITIC_RATE = 1e-3
_WIDTH_BATCH, _WIDTH_INPUTS, _WIDTH_OUTPUTS = 512, 17, 6  # HalfCheetah's observations and actions
_GEMM_FLOPS = 1e8  # between two looks at the clock


class _AtRollouts(BaseCallback):
    """Calls the pace where one update has ended and the next rollout has not begun."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace
        self.go_on = True

    def _on_rollout_start(self) -> None:
        _finish(self.model.device)
        self.go_on = self.pace(self.model.num_timesteps)

    def _on_step(self) -> bool:
        return self.go_on


def _finish(device: torch.device | str) -> None:
    """Wait until a device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class FirstOrder(ACKTR):
    """The same loop, networks, losses and batches, with a step of Adam wherever ACKTR has K-FAC."""

    def _setup_model(self) -> None:
        super()._setup_model()
        graphs = self.natural.cuda_graphs and self.device.type == "cuda"
        params = self.kfac.param_groups[0]["params"]
        adam = torch.optim.Adam(params, lr=3e-4, capturable=graphs)
        self.policy.optimizer, self._graphs = adam, Graphs(adam) if graphs else None
        critic = self.critic_optimizer
        if isinstance(critic, KFAC):
            params = critic.param_groups[0]["params"]
            adam = torch.optim.Adam(params, lr=_CRITIC_RATE, capturable=graphs)
            self.policy.__dict__["critic_optimizer"] = adam
            settings = AdamCritic(n_updates=self.critic.n_updates, batch_size=self.critic.batch_size)
            graphs_of_critic = Graphs(adam) if graphs else None
            scale = self.parts.value_scale
            update = AdamCriticUpdate(
                adam, self.outputs, scale, settings, self.device.type != "cpu", graphs=graphs_of_critic
            )
            self.parts = self.parts._replace(critic_update=update)

    def train(self) -> None:
        """As many critic updates as ACKTR makes, then one step of the actor on the whole batch."""
        self.policy.set_training_mode(True)
        batch = self.rollout_buffer.batch()
        optimizers = filter(None, (self.policy.optimizer, self.critic_optimizer))
        self.parts.value_scale.follow(batch, optimizers)
        critic = self.parts.critic_update
        if critic is not None:
            self.logger.record("train/value_loss", critic.fit(batch, _CRITIC_RATE).item())
        losses = run(self._graphs, "actor", self._step_actor, batch)
        self._n_updates += 1
        # What SB3's A2C logs too.
        for name, part in losses.items():
            self.logger.record(f"train/{name}", part.item())
        fit = explained_variance(batch.values.cpu().numpy(), batch.returns.cpu().numpy())
        self.logger.record("train/explained_variance", float(fit))

    def _step_actor(self, batch: RolloutBatch) -> dict[str, torch.Tensor]:
        actor = self.parts.actor_update
        losses = actor.losses(actor.evaluate(batch), batch)
        self.policy.optimizer.zero_grad()
        losses["loss"].backward()
        self.policy.optimizer.step()
        return {name: part.detach() for name, part in losses.items() if name != "loss"}


def configure(env_id: str, settings: Sequence[str], device: str = "cpu") -> Configuration:
    """The preset of an environment with some settings changed, as ``acktr train --set`` does."""
    return resolve(env_id, overrides=[*settings, f"device={device}"]).configuration


def build(env_id: str, settings: Sequence[str], first_order: bool = False, device: str = "cpu") -> ACKTR:
    """ACKTR as a preset makes it, or the same with Adam."""
    configuration = configure(env_id, settings, device)
    env = build_environment(configuration)
    if not first_order:
        return build_model(configuration, env)
    arguments = configuration.algorithm_arguments()
    arguments["policy_kwargs"] = resolve_classes(arguments["policy_kwargs"]) or None
    policy = choose_policy(configuration, env.observation_space)
    return FirstOrder(policy, env, seed=configuration.seed, device=device, **arguments)


def learn(pace: Pace, model: BaseAlgorithm) -> None:
    """Learn until the pace says stop."""
    model.learn(_HORIZON, callback=_AtRollouts(pace))
    assert model.env is not None
    model.env.close()


def acktr(
    pace: Pace,
    env_id: str,
    settings: Sequence[str],
    first_order: bool = False,
    device: str = "cpu",
) -> None:
    """Train ACKTR, or the same loop with Adam; work: environment steps.

    Both as ``acktr train`` does it, which keeps freed memory.

    :param settings: ``key=value``, on top of the preset
    """
    keep_freed_memory()
    learn(pace, build(env_id, settings, first_order, device))


def profiled(pace: Pace, env_id: str, settings: Sequence[str], device: str = "cpu") -> None:
    """Train ACKTR and take its time apart; work: environment steps."""
    keep_freed_memory()
    model = build(env_id, settings, device=device)
    profiler = watch(model, partial(_finish, device), pace.clock)
    pace.on_start, pace.phases = profiler.reset, profiler.totals
    learn(pace, model)


def peer(
    pace: Pace,
    algorithm: str,
    env_id: str,
    n_envs: int,
    subproc: bool = False,
    ours: bool = False,
    device: str = "cpu",
    **arguments: Any,
) -> None:
    """Train an algorithm of SB3 on SB3's own environments; work: environment steps.

    MuJoCo's observations and rewards are normalised, as in rl_zoo3.

    :param algorithm: "A2C", "PPO", "TRPO", or "RecurrentPPO", which has an LSTM
    :param subproc: ``SubprocVecEnv`` in place of ``DummyVecEnv``
    :param ours: ACKTR's native environments in place of both
    :param arguments: for the algorithm; else its defaults
    """
    kind = SubprocVecEnv if subproc else DummyVecEnv
    # Forked, sixteen processes start at once; how fast they step is the same.
    kwargs = {"vec_env_cls": kind, "vec_env_kwargs": {"start_method": "fork"} if subproc else {}}
    env: VecEnv
    if ours:
        env = build_environment(configure(env_id, [f"n_envs={n_envs}"]))
        policy = "CnnPolicy" if family(env_id) == "atari" else "MlpPolicy"
    elif family(env_id) == "atari":
        policy, env = "CnnPolicy", VecFrameStack(make_atari_env(env_id, n_envs, seed=0, **kwargs), 4)
    else:
        policy = "MlpLstmPolicy" if algorithm == "RecurrentPPO" else "MlpPolicy"
        env = VecNormalize(make_vec_env(env_id, n_envs, seed=0, **kwargs))
    learn(pace, _peer_class(algorithm)(policy, env, seed=0, device=device, **arguments))


def _peer_class(name: str) -> type[BaseAlgorithm]:
    if name in ("TRPO", "RecurrentPPO"):
        import sb3_contrib

        kind: type[BaseAlgorithm] = getattr(sb3_contrib, name)
        return kind
    return {"A2C": A2C, "PPO": PPO}[name]


def stepping(pace: Pace, env_id: str, settings: Sequence[str]) -> None:
    """Step the environments of a configuration with actions drawn beforehand; work: environment steps.

    The actions are as the untrained policy draws them: what a simulator costs depends on its state.
    """
    configuration = configure(env_id, settings)
    env = build_environment(configuration)
    space = env.action_space
    assert isinstance(space, spaces.Box)
    policy_kwargs = configuration.algorithm_arguments()["policy_kwargs"] or {}
    std = np.exp(policy_kwargs.get("log_std_init", 0.0))
    n_steps = configuration.algorithm_arguments()["n_steps"]
    drawn = np.random.default_rng(0).normal(0.0, std, (n_steps, env.num_envs, *space.shape))
    actions = np.clip(drawn, space.low, space.high).astype(space.dtype)
    env.seed(0)
    env.reset()
    done = 0
    while pace(done):
        for action in actions:
            env.step(action)
        done += n_steps * env.num_envs
    env.close()


def gemm(pace: Pace, m: int, k: int, n: int, device: str = "cpu") -> None:
    """Multiply two matrices in fp32; work: floating-point operations."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(device) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device=device)
    flops = 2.0 * m * k * n
    together = max(1, int(_GEMM_FLOPS / flops))
    done = 0.0
    while pace(done):
        for _ in range(together):
            torch.mm(a, b, out=out)
        _finish(device)
        done += together * flops


def kfac_update(
    pace: Pace, width: int, kfac_kwargs: dict[str, Any], device: str = "cpu", graphs: bool = False
) -> None:
    """Make whole K-FAC updates of an in-width-width-out network; work: operations they cannot avoid.

    An update is a captured forward pass, the curvature, the backward pass of the loss and the step.

    :param graphs: as CUDA graphs
    """
    torch.manual_seed(0)
    sizes = (_WIDTH_INPUTS, width, width, _WIDTH_OUTPUTS)
    shapes = list(pairwise(sizes))
    parts: list[nn.Module] = []
    for shape in shapes:
        parts += [nn.Linear(*shape), nn.Tanh()]
    model = nn.Sequential(*parts[:-1]).to(device)
    as_in_rl = {"factor_period": 1, "inverse_period": 1, "burn_in": 0}
    kfac = KFAC(model, **grouped({**as_in_rl, **kfac_kwargs})[0])
    counted = {k: v for k, v in kfac_kwargs.items() if k in ("inverse_period", "max_factor_size")}
    flops = update_flops(shapes, _WIDTH_BATCH, **counted)
    x, y = (torch.randn(_WIDTH_BATCH, n).to(device) for n in (sizes[0], sizes[-1]))
    std = torch.ones((), device=device)

    def update(x: torch.Tensor, y: torch.Tensor) -> None:
        with kfac.capture():
            output = model(x)
        kfac.update_curvature(Normal(output, std, validate_args=False))
        loss = 0.5 * (output - y).square().sum(1).mean()
        kfac.zero_grad()
        loss.backward()
        kfac.step()

    make: Callable[..., None] = partial(Graphs(kfac), "update", update) if graphs else update
    together = 1 if device == "cpu" else 10  # between two looks at the device
    done = 0.0
    while pace(done):
        for _ in range(together):
            make(x, y)
        _finish(device)
        done += together * sum(flops.values())
        factors = (factor for pair in kfac.factors().values() for factor in pair)
        mebibytes = sum(f.numel() * f.element_size() for f in factors) / 2**20
        pace.facts = {"flops": sum(flops.values()), "factors_mib": mebibytes, **flops}
