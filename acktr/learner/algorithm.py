"""ACKTR (Wu et al. 2017, arXiv 1708.05144) as a Stable-Baselines3 algorithm.

Each iteration: collect one rollout, estimate advantages, then one natural-gradient step on the whole
batch for the actor, inside a KL trust region, and one or more for the critic. This is SB3's face: it
builds the parts, each of which owns its state, and calls them in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from acktr import distributed
from acktr.devices import usable_device
from acktr.envs.limits import time_limit
from acktr.errors import DivergenceError
from acktr.kfac import KFAC
from acktr.learner import foreign
from acktr.learner.actor import ActorLimits
from acktr.learner.adapted import AdaptedAlgorithm
from acktr.learner.figures import figures_of
from acktr.learner.noise import begin_noise, resolve_log_std
from acktr.learner.parts import build_parts
from acktr.learner.remembering import RememberingAlgorithm, check_memory, with_damping
from acktr.learner.saving import SafeAlgorithm
from acktr.learner.settings import Critic, Natural, NaturalCritic, check_arguments
from acktr.learner.timing import ACTOR, COLLECTING, CRITIC, REST, Timed
from acktr.networks.bfloat16 import available_precision, run_trunk_in_bfloat16
from acktr.networks.images import standardize_images
from acktr.networks.outputs import Outputs
from acktr.networks.recurrent import POLICIES, plain
from acktr.networks.value_head import choose_value_head, exact_parameters
from acktr.rollout.collect import End, collect_rollout
from acktr.rollout.steps import Translator
from acktr.rollout.storage import RolloutStorage
from acktr.schedules import Horizon, TraceDecay, as_schedule, clamped

_BATCH_SIZE, _LEAST_STEPS = 512, 16  # of a rollout, where n_steps is not given
_COMPARE_PERIOD = 100  # updates between two comparisons of the parameters of all ranks


class ACKTR(Timed, AdaptedAlgorithm, RememberingAlgorithm, SafeAlgorithm):
    """Actor-critic with Kronecker-factored natural gradients inside a KL trust region.

    Where actor and critic share no parameter (``MlpPolicy``) each has its own optimiser and trust
    region; on a shared trunk (``CnnPolicy``) one optimiser takes the Fisher of the joint distribution
    of action and value (paper, sec. 3.1).

    What may be a schedule is a callable of the share of training that is left, from 1 to 0, or an object
    of :mod:`acktr.schedules`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, one that remembers such as
        ``"MlpLstmPolicy"`` (:mod:`acktr.networks.recurrent`), or a policy class
    :param env: environment, vector environment or registered id
    :param learning_rate: eta_max, the actor's largest step; number or schedule
    :param n_steps: steps of each environment per rollout; the batch is ``n_steps * n_envs``,
        with ``None`` 512, but of 16 steps at least
    :param gamma: discount factor, which ``VecNormalize`` follows; number, or schedule as ``Horizon``
    :param gae_lambda: lambda of GAE; 1 gives k-step returns, a :class:`~acktr.schedules.TraceDecay` is
        smaller where long episodes end by time alone
    :param target_kl: radius of the trust region, nats per update; number or schedule
    :param ent_coef: weight of the entropy bonus
    :param normalize_advantage: to mean 0 and standard deviation 1: ``"running"`` by the root mean square
        of those of all rollouts, so that noise makes small steps, ``True`` by that of each rollout
        (:class:`acktr.learner.advantages.AdvantageScale`)
    :param noise_color: beta of a Gaussian policy's noise, whose spectrum is ``1/f^beta``; 0 for white,
        below 1 (:mod:`acktr.rollout.noise`)
    :param std_scale: of a Gaussian policy's noise beside what it learns: a schedule, such as
        :class:`~acktr.schedules.Late` (:class:`acktr.learner.noise.Noise`); a number changes nothing
    :param natural: how the natural gradient is computed, and what else bounds it
    :param critic: how the critic learns: :class:`~acktr.learner.settings.NaturalCritic`, the default, or
        :class:`~acktr.learner.settings.AdamCritic`
    :param use_masking: ask environments that have ``action_masks()`` which actions are allowed, and let
        the policy be that without the others (:mod:`acktr.networks.masks`); with ``False`` nobody asks
    :param stats_window_size: episodes in the logged averages
    :param tensorboard_log: where TensorBoard's files go
    :param policy_kwargs: for the policy; ``log_std_init`` is a number or, without one, ``"auto"``
        (:func:`acktr.learner.noise.auto_log_std`); not ``optimizer_class``, the optimiser is K-FAC
    :param verbose: 0 none, 1 info, 2 debug
    :param seed: of everything random
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``; CUDA that is not here is the CPU, with a warning
    :param _init_setup_model: build the networks now
    :raises acktr.errors.ConfigurationError: an argument out of its range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES
    learning_rate: Any
    gamma: Any
    gae_lambda: Any

    @foreign.explain_arguments
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1.0,
        n_steps: int | None = None,
        gamma: float | Schedule = Horizon(0.99, 0.998, "start", 300_000),  # noqa: B008
        gae_lambda: float | TraceDecay = 0.95,
        target_kl: float | Schedule = 0.01,
        ent_coef: float = 0.0,
        normalize_advantage: bool | str = "running",
        noise_color: float = 0.0,
        std_scale: float | Schedule = 1.0,
        natural: Natural = Natural(),  # noqa: B008
        critic: Critic = NaturalCritic(),  # noqa: B008
        use_masking: bool = True,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        foreign.check_policy(policy, self.policy_aliases)
        check_arguments(locals())
        before = dict(vars(self))  # a subclass's own
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,  # None: _setup_model
            gamma=gamma,  # what changes: Discount
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,  # the critic's settings
            max_grad_norm=float("inf"),  # the trust region bounds the step
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=RolloutStorage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=usable_device(device),
            _init_setup_model=False,
        )
        self.target_kl = target_kl
        self.normalize_advantage = normalize_advantage
        self.noise_color = noise_color
        self.std_scale = std_scale
        self.use_masking = use_masking
        self.natural, self.critic = replace(natural), replace(critic)  # with mappings of its own
        self.notes: list[str] = []  # what a user should know of how the model is built
        self._last_lstm_states = None
        self._shared_moments: distributed.SharedMoments | None = None
        self.house = {"house", "_logger", "_clock_ahead", *self._set_since(before)}  # some by learn()
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        before = dict(vars(self))  # a subclass may have set its own before it builds the networks
        self.n_steps = self.n_steps or max(_BATCH_SIZE // self.n_envs, _LEAST_STEPS)
        self.policy_kwargs, searches = resolve_log_std(
            self.policy_kwargs, self.action_space, self.noise_color
        )
        super()._setup_model()
        if searches:
            begin_noise(self.policy)
        foreign.check_built_policy(self.policy)
        self.natural, self.critic = with_damping(self.policy, self.natural, self.critic)
        check_memory(self.policy, self.natural, self.critic)
        self.masks_of(self.env)  # which may be none for these actions
        self.outputs = Outputs(self.policy)  # before normalised values, which all begin as 0
        normalizer = self.get_vec_normalize_env()
        scaled = normalizer is not None and normalizer.norm_reward
        chosen = choose_value_head(self.policy, self.critic.normalize_targets, scaled)
        self.critic = replace(self.critic, normalize_targets=chosen)
        self.used_precision = available_precision(self.natural.precision, self.device)
        if self.used_precision == "bf16":
            run_trunk_in_bfloat16(self.policy)
        distributed.share_parameters(self.policy)
        self.parts = build_parts(
            self.policy,
            self.outputs,
            self.natural,
            self.critic,
            self.normalize_advantage,
            self.lr_schedule(1.0),
            self.used_precision,
            searches,
        )
        self.notes = self.parts.notes
        self.house |= self._set_since(before)
        if self.verbose >= 1:
            print(*self.notes, sep="\n", end="\n" if self.notes else "")

    def _set_since(self, before: Mapping[str, Any]) -> set[str]:
        """Name the attributes that are not what they were."""
        return {name for name, x in vars(self).items() if name not in before or before[name] is not x}

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = as_schedule(self.learning_rate, "learning_rate")

    @property
    def shared(self) -> bool:
        """Whether actor and critic have parameters in common."""
        return self.outputs.shared

    @property
    def kfac(self) -> KFAC:
        """The actor's optimiser; on a shared trunk with a natural critic, that of both."""
        return cast(KFAC, self.policy.optimizer)

    @property
    def critic_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser of what only the critic has; ``None`` if the actor's K-FAC has that too."""
        return cast("torch.optim.Optimizer | None", getattr(self.policy, "critic_optimizer", None))

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Return the parameters of policy and optimisers by name, with the moments of its values."""
        parameters = super().get_parameters()
        return {**parameters, "policy": exact_parameters(self.policy, parameters["policy"])}

    def _check_arguments(self) -> None:
        check_arguments({"stats_window_size": self._stats_window_size, **vars(self)})

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        if self.critic_optimizer is not None:
            names.append("policy.critic_optimizer")
        return names, []

    # ------------------------------------------------------------------ learning

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutStorage,  # type: ignore[override]  # what __init__ gave SB3 to build
        n_rollout_steps: int,
    ) -> bool:
        """Collect one rollout (:mod:`acktr.rollout.collect`); all ranks go on, or none."""
        if self._shared_moments is None or self._shared_moments.env is not self._vec_normalize_env:
            self._shared_moments = distributed.SharedMoments(self._vec_normalize_env)
        try:
            with self._stopwatch.doing(COLLECTING):
                end = self._collect(env, callback, rollout_buffer, n_rollout_steps)
        except Exception as error:
            try:
                distributed.vote(distributed.FAILED, self.parts.discount.endings, self._shared_moments)
            except RuntimeError as lost:  # the others are gone: what failed here is what to tell
                raise error from lost
            raise
        state = distributed.GO_ON if end.complete else distributed.STOP
        state, self.parts.discount.endings = distributed.vote(state, end.endings, self._shared_moments)
        return state == distributed.GO_ON

    def _collect(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutStorage, n_rollout_steps: int
    ) -> End:
        if self.parts.noise.scale is None:
            self._follow_noise()  # in force is what the schedule said last
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._follow_noise()
        progress = self._current_progress_remaining
        samples = self._n_updates * n_rollout_steps * env.num_envs * distributed.size()
        gamma, gae_lambda = self.parts.discount.of_rollout(
            self.gamma, self.gae_lambda, progress, samples
        )
        rollout_buffer.gamma, rollout_buffer.gae_lambda = gamma, gae_lambda
        normalize = self.get_vec_normalize_env()
        if normalize is not None and (callable(self.gamma) or callable(normalize.gamma)):
            # Rewards in units of what the same horizon sums up to: values stay on one scale.
            normalize.gamma = gamma
        self.policy.set_training_mode(False)
        masks = self.masks_of(env)
        assert self._last_episode_starts is not None
        sampler = self.sampler(n_rollout_steps, self._last_episode_starts)
        rollout_buffer.begin(self.outputs, n_rollout_steps, masks is not None, sampler.memory)
        callback.update_locals({"self": self, "callback": callback})
        callback.on_rollout_start()

        def on_step(names: dict[str, Any]) -> bool:
            self.num_timesteps += env.num_envs * distributed.size()
            callback.update_locals(names)
            if self.parts.noise.searches:
                paid = names["rewards"] if normalize is None else normalize.get_original_reward()
                self.parts.noise.look(paid, names["infos"], names["dones"])
            with self._stopwatch.doing(REST):
                goes_on = callback.on_step()
            if goes_on:
                self._update_info_buffer(names["infos"], names["dones"])
            # Who goes on learning after a stop begins where the environments are.
            self._last_obs, self._last_episode_starts = names["new_obs"], names["dones"]
            return goes_on

        end = collect_rollout(
            env,
            rollout_buffer,
            self.outputs,
            sampler,
            Translator(self.adapter, self.device, masks),
            self._last_obs,
            self._last_episode_starts,
            self.parts.discount.endings,
            self.num_timesteps,
            on_step,
        )
        self.keep(end.memory)
        if end.complete:
            callback.update_locals(end.names)
            callback.on_rollout_end()
        return end

    def train(self) -> None:
        """Update the critic, then the actor, on the last rollout.

        :raises ConfigurationError: a setting cannot be what it is now; nothing was changed
        :raises DivergenceError: a value is not finite; the step that it belongs to is not taken
        """
        self.parts.check_kept(vars(self))  # whatever is wrong with a setting, nothing has changed yet
        limits = self._limits()
        critic_rate = self.critic.rate(self._current_progress_remaining)
        self.policy.set_training_mode(True)
        storage = cast(RolloutStorage, self.rollout_buffer)
        batch = storage.batch()
        storage.close()  # it will be another policy
        standardize_images(self.policy, plain(batch.observations))
        self.parts.value_scale.follow(batch, filter(None, (self.kfac, self.critic_optimizer)))
        normalized = self.parts.advantage_scale.begin(batch.advantages)
        losses, kl = {}, 0.0
        try:
            if self.parts.critic_update is not None and self.parts.critic_update.learns:
                with self._stopwatch.doing(CRITIC):
                    losses["value_loss"] = self.parts.critic_update.fit(batch, critic_rate)
            # What this sent has travelled with the critic's first message.
            batch = batch._replace(advantages=normalized())
            tells = self.parts.noise.search(self.policy, len(batch.returns) * distributed.size())
            if self.parts.actor_update.learns and tells:
                with self._stopwatch.doing(ACTOR):
                    of_actor, kl = self.parts.actor_update.update(batch, limits)
                losses.update(of_actor)
        except DivergenceError as error:
            raise DivergenceError(f"At step {self.num_timesteps:,}: {error}") from error
        self._follow_noise()
        self._n_updates += 1
        if self._n_updates % _COMPARE_PERIOD == 0:
            distributed.check_same(self.policy.parameters())
        figures = {"kl": kl, "target_kl": limits.target_kl, "learning_rate": limits.rate}
        measured = figures_of(self.parts, storage, batch, self.kfac, self.critic_optimizer)
        for name, value in {**losses, **figures, **measured}.items():
            self.logger.record(f"train/{name}", value.item() if hasattr(value, "item") else value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _limits(self) -> ActorLimits:
        left, corrected = self._current_progress_remaining, self.natural.corrected_learning_rate
        as_schedule(self.std_scale, "std_scale", positive=True)(left)
        unlimited = math.inf if corrected is None else corrected
        return ActorLimits(
            target_kl=as_schedule(self.target_kl, "target_kl")(left),
            rate=as_schedule(self.lr_schedule, "learning_rate")(left),
            corrected_rate=as_schedule(unlimited, "natural.corrected_learning_rate")(left),
            ent_coef=self.ent_coef,
        )

    def _follow_noise(self) -> None:
        self.parts.noise.follow(self.policy, self.std_scale, self._current_progress_remaining)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the end, where SB3's figure is negative.
        self._current_progress_remaining = clamped(1.0 - num_timesteps / max(total_timesteps, 1))

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        assert self.env is not None
        self.parts.discount.time_limit = time_limit(self.env)
        return super()._setup_learn(*args, **kwargs)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str = "ACKTR",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> ACKTR:
        """Learn for a number of steps, counted over all environments of all ranks."""
        assert self.env is not None, "You must set the environment before calling learn()"
        foreign.check_dtype(self.policy)
        foreign.warn_of_moved(vars(self).keys() - self.house)
        if distributed.rank() and not self._custom_logger:
            self.set_logger(Logger(None, []))  # the first rank speaks for all
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
