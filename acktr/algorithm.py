"""ACKTR (Wu et al. 2017, arXiv 1708.05144) as a Stable-Baselines3 algorithm.

Each iteration: collect one rollout, estimate advantages, then one natural-gradient step on the whole
batch for the actor, inside a KL trust region, and one or more for the critic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.distributions import Normal

from acktr import distributed, foreign
from acktr.actor import update_actor
from acktr.adapted import AdaptedAlgorithm
from acktr.advantages import normalize_advantages, set_discount
from acktr.checkpoint.algorithm_file import SafeAlgorithm
from acktr.critic import update_critic
from acktr.devices import usable_device
from acktr.images import standardize_images
from acktr.kfac import KFAC, Graphs
from acktr.metrics import record_update
from acktr.noise import fade_noise, resolve_log_std
from acktr.optimizers import build_optimizers
from acktr.options import check_arguments
from acktr.outputs import Evaluation, Outputs
from acktr.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from acktr.precision import available_precision, run_trunk_in_bfloat16
from acktr.rollout import RolloutBatch, RolloutStorage, collect_rollout
from acktr.schedules import Scheduled
from acktr.timing import Timed
from acktr.update import learns
from acktr.value_scale import choose_value_scale, exact_parameters, sigma, update_scale

_BATCH_SIZE, _LEAST_STEPS = 512, 16  # of a rollout, where n_steps is not given
_COMPARE_PERIOD = 100  # updates between two comparisons of the parameters of all ranks


class ACKTR(Timed, Scheduled, AdaptedAlgorithm, SafeAlgorithm):
    """Actor-critic with Kronecker-factored natural gradients inside a KL trust region.

    Where actor and critic share no parameter (``MlpPolicy``) each has its own optimiser and trust
    region; on a shared trunk (``CnnPolicy``) one optimiser takes the Fisher of the joint distribution
    of action and value (paper, sec. 3.1).

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment, vector environment or registered id
    :param learning_rate: eta_max, the actor's largest step; number, schedule or ``"lin_0.25"`` (to 0)
    :param n_steps: steps of each environment per rollout; the batch is ``n_steps * n_envs``,
        with ``None`` 512, but of 16 steps at least
    :param gamma: discount factor; number, schedule, ``"rise_0.99_0.998"`` or ``"auto_0.99_0.998"``, long
        at once where episodes end by time alone (:func:`acktr.schedules.as_discount`); ``VecNormalize``
        follows a schedule, and by name the horizon stays within the time limit of an episode
    :param gae_lambda: lambda of GAE; 1 gives k-step returns, ``"auto_0.95_0.9"`` is 0.95, and 0.9 where
        long episodes end by time alone (:func:`acktr.advantages.set_discount`)
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss on a shared trunk
    :param target_kl: radius of the trust region, nats per update; number, schedule or ``"lin_0.02"``
        (:func:`acktr.schedules.as_schedule` has the names that schedules may have)
    :param std_scale: of a Gaussian policy's noise beside what it learns, :func:`acktr.noise.fade_noise`;
        schedule or ``"late_1_0.5"``, which halves it in the second half; a number changes nothing
    :param kl_feedback: hold the *measured* KL at ``target_kl`` by scaling the bound that K-FAC is given
    :param corrected_learning_rate: eta_max in natural gradients as the measured KL corrects them
        (:mod:`acktr.kl`), beside ``learning_rate``; number, schedule or ``"lin_10"``; ``None`` for none
    :param damping: lambda of the actor's Fisher, or of the joint one
    :param cg_iterations: conjugate-gradient iterations that correct K-FAC's direction for the actor, or
        for both on a shared trunk, by the exact Fisher of the batch (:mod:`acktr.kfac.exact`); 0 for
        K-FAC's own direction
    :param sub_sampling_factor: the dearest curvature is taken of one sample in so many, drawn anew for
        each update: the exact Fisher where there is one, else K-FAC's statistics and measured KL
    :param precision: ``"fp32"`` or ``"bf16"``: trunks under autocast and K-FAC's statistics in bfloat16,
        where the hardware has it (see :mod:`acktr.precision`); heads, losses and inverses stay in fp32
    :param cuda_graphs: let a CUDA device repeat the updates by itself (see :mod:`acktr.kfac.graphs`);
        elsewhere training goes on without, after a warning
    :param critic_norm: ``"gauss-newton"`` (K-FAC) or ``"euclidean"`` (first order: Adam)
    :param critic_std: sigma of the critic's Gaussian output, or ``"adaptive"`` for the running standard
        deviation of the Bellman error (the paper's "adaptive Gauss-Newton", sec. 5.3)
    :param normalize_value_targets: the critic predicts returns in units of their running standard
        deviation, about their mean (PopArt, :mod:`acktr.value_scale`), ``critic_std`` too; ``None``:
        where ``VecNormalize`` does not scale the rewards, :func:`acktr.value_scale.choose_value_scale`
    :param critic_learning_rate: of Adam, or eta_max of a separate critic with K-FAC; number, schedule or
        ``"lin_0.00025"``; ``None`` for 1e-3 and 0.3
    :param critic_damping: lambda of a separate critic's Gauss-Newton matrix
    :param critic_trust_region: bound on the KL of one update of a separate critic,
        ``E[(change of V)^2] / (2 sigma^2)``, as a fraction of its loss
        ``E[(return - V)^2] / (2 sigma^2)``, so that it does not depend on the scale of rewards;
        ``None`` for none
    :param n_critic_updates: updates per rollout of a critic that learns by itself, 4 if ``None``
    :param critic_batch_size: samples of each of them: they go through the shuffled rollout in parts, as
        often as they need; ``None`` for the whole rollout each time
    :param normalize_advantage: to mean 0 and standard deviation 1: ``"running"`` by the root mean square
        of those of all rollouts, so that noise makes small steps, ``True`` by that of each rollout
    :param kfac_kwargs: further arguments of :class:`acktr.kfac.KFAC` (``momentum``, ``inverse``, ...)
    :param critic_kfac_kwargs: those in which a separate critic differs, and its ``cg_iterations``
    :param use_sde: must be False: gSDE is not supported, and refused by name
    :param stats_window_size: episodes in the logged averages
    :param tensorboard_log: where TensorBoard's files go
    :param policy_kwargs: for the policy; ``log_std_init`` is a number or, without one, ``"auto"``
        (:func:`acktr.noise.auto_log_std`); not ``optimizer_class``, the optimiser is K-FAC
    :param verbose: 0 none, 1 info, 2 debug
    :param seed: of everything random
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``; CUDA that is not here is the CPU, with a warning
    :param _init_setup_model: build the networks now
    :raises acktr.errors.ConfigurationError: an argument out of its range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    _implied: ClassVar[Mapping[str, Any]] = {"normalize_value_targets": False}
    _mark = "kfac_kwargs"

    @foreign.explain_arguments
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 1.0,
        n_steps: int | None = None,
        gamma: float | str | Schedule = 0.99,
        gae_lambda: float | str = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        target_kl: float | str | Schedule = 0.01,
        std_scale: float | str | Schedule = 1.0,
        kl_feedback: bool = True,
        corrected_learning_rate: float | str | Schedule | None = None,
        damping: float = 0.1,
        cg_iterations: int = 0,
        sub_sampling_factor: int = 1,
        precision: str = "fp32",
        cuda_graphs: bool = False,
        critic_norm: str = "gauss-newton",
        critic_std: float | str = 1.0,
        normalize_value_targets: bool | None = None,
        critic_learning_rate: float | str | Schedule | None = None,
        critic_damping: float = 0.1,
        critic_trust_region: float | None = 0.05,
        n_critic_updates: int | None = None,
        critic_batch_size: int | None = None,
        normalize_advantage: bool | str = "running",
        kfac_kwargs: dict[str, Any] | None = None,
        critic_kfac_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
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
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # strings: _setup_lr_schedule
            n_steps=n_steps,  # None: _setup_model
            gamma=gamma,  # schedules: set_discount
            gae_lambda=gae_lambda,  # a name: set_discount
            ent_coef=ent_coef,
            vf_coef=vf_coef,
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
        self.std_scale = std_scale
        self.kl_feedback = kl_feedback
        self.corrected_learning_rate = corrected_learning_rate
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.sub_sampling_factor = sub_sampling_factor
        self.precision = precision
        self.cuda_graphs = cuda_graphs
        self.critic_norm = critic_norm
        self.critic_std = critic_std
        self.normalize_value_targets = normalize_value_targets
        self.critic_learning_rate = critic_learning_rate
        self.critic_damping = critic_damping
        self.critic_trust_region = critic_trust_region
        self.n_critic_updates = n_critic_updates
        self.critic_batch_size = critic_batch_size
        self.normalize_advantage = normalize_advantage
        self.kfac_kwargs = kfac_kwargs or {}
        self.critic_kfac_kwargs = critic_kfac_kwargs or {}
        self.advantage_variance = 0.0  # mean over all rollouts, with normalize_advantage="running"
        self.advantage_count = 0
        self.noise_scale: float | None = None  # what std_scale has multiplied the noise with
        self.kl_scale = 1.0  # what the feedback multiplies target_kl with
        self.kl_rescales = 0  # steps rescaled since the start
        self._shared_moments: distributed.SharedMoments | None = None
        self.time_limit: int | None = None  # of an episode of the environment, if it is known
        self.endings: distributed.Flags = (False, False)  # episodes seen cut by time, and ended before
        self.defer_checks = False  # whether a look at a value would wait for the device
        self._graphs: dict[str, Graphs] = {}  # of the actor and of the critic, if they are asked for
        self.bellman_std = 1.0  # running sigma of the critic when critic_std is "adaptive"
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        self.n_steps = self.n_steps or max(_BATCH_SIZE // self.n_envs, _LEAST_STEPS)
        self.policy_kwargs = self._complete_policy_kwargs(self.policy_kwargs, self.action_space)
        super()._setup_model()
        foreign.check_built_policy(self.policy)
        foreign.warn_of_masks(self.env)
        self.outputs = Outputs(self.policy)  # before normalised values, which all begin as 0
        choose_value_scale(self)
        self.used_precision = available_precision(self.precision, self.device)
        if self.used_precision == "bf16":
            run_trunk_in_bfloat16(self.policy)
        distributed.share_parameters(self.policy)
        self.defer_checks = self.device.type != "cpu"
        self.notes: list[str] = []  # what a user should know of how the model is built
        build_optimizers(self)
        if self.verbose >= 1:
            print(*self.notes, sep="\n", end="\n" if self.notes else "")

    @staticmethod
    def _complete_policy_kwargs(given: Mapping[str, Any], action_space: spaces.Space) -> dict[str, Any]:
        return resolve_log_std(given, action_space)

    @property
    def shared(self) -> bool:
        """Whether actor and critic have parameters in common."""
        return self.outputs.shared

    @property
    def kfac(self) -> KFAC:
        """The actor's optimiser; on a shared trunk with a Gauss-Newton critic, that of both."""
        return cast(KFAC, self.policy.optimizer)

    @property
    def critic_optimizer(self) -> torch.optim.Optimizer | None:
        """What steps the parameters that only the critic has; ``None`` if K-FAC steps them too."""
        return cast("torch.optim.Optimizer | None", getattr(self.policy, "critic_optimizer", None))

    def _set_critic_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        # It lives beside `optimizer` on the policy: on `self`, save() would pickle it.
        self.policy.__dict__["critic_optimizer"] = optimizer

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed everything random; each rank draws other actions in other episodes."""
        n_envs = 1 if self.env is None else self.env.num_envs
        super().set_random_seed(None if seed is None else distributed.own_seed(int(seed), n_envs))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_shared_moments", "_graphs", "outputs", "notes"]

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
        """Collect one rollout, see :func:`acktr.rollout.collect_rollout`; all ranks go on, or none."""
        if self._shared_moments is None or self._shared_moments.env is not self._vec_normalize_env:
            self._shared_moments = distributed.SharedMoments(self._vec_normalize_env)
        try:
            if self.noise_scale is None:
                fade_noise(self)  # in force is what the schedule said last
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            fade_noise(self)
            set_discount(self, rollout_buffer)
            went_on = collect_rollout(self, env, callback, rollout_buffer, n_rollout_steps)
        except Exception as error:
            try:
                distributed.vote(distributed.FAILED, self.endings, self._shared_moments)
            except RuntimeError as lost:  # the others are gone: what failed here is what to tell
                raise error from lost
            raise
        state = distributed.GO_ON if went_on else distributed.STOP
        state, self.endings = distributed.vote(state, rollout_buffer.endings, self._shared_moments)
        return state == distributed.GO_ON

    def train(self) -> None:
        """Update the critic, then the actor, on the last rollout."""
        self.check_schedules()
        self.policy.set_training_mode(True)
        batch = self.rollout_buffer.batch()  # type: ignore[attr-defined]  # a RolloutStorage
        self.rollout_buffer.ask(None)  # type: ignore[attr-defined]  # it will be another policy
        standardize_images(self.policy, batch.observations)
        update_scale(self, batch)
        normalize = normalize_advantages(self, batch)
        losses, kl = {}, 0.0
        if self.critic_optimizer is not None and learns(self.critic_optimizer):
            rate = self.critic_lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.critic_optimizer, rate)
            losses["value_loss"] = update_critic(self, batch)
        batch = normalize()  # what this sent has travelled with the critic's first message
        self._update_learning_rate(self.kfac)
        target_kl = self.target_kl_schedule(self._current_progress_remaining)
        if learns(self.kfac):
            actor_losses, kl = update_actor(self, batch, target_kl)
            losses.update(actor_losses)
        fade_noise(self)
        self._n_updates += 1
        if self._n_updates % _COMPARE_PERIOD == 0:
            distributed.check_same(self.policy.parameters())
        record_update(self, batch, losses, kl, target_kl)

    def _model(self, batch: RolloutBatch) -> Evaluation:
        """Evaluate the actor on a batch, and in the joint model the critic: p(a|s) N(v|V(s), sigma^2).

        Where the critic of a shared trunk learns by itself, this keeps the actor's step from moving the
        values.
        """
        evaluated = self.outputs.evaluate(batch.observations, batch.actions)
        if evaluated.values is not None:
            evaluated.distributions.append(self._value_distribution(evaluated.values))
        return evaluated

    def _distributions(self, batch: RolloutBatch) -> list[Any]:
        """The distributions of :meth:`_model` alone."""
        if self.shared:
            return self._model(batch).distributions
        return self.outputs.distributions(batch.observations, batch.actions)

    def _values(self, batch: RolloutBatch) -> Tensor:
        """Values of the batch's observations, ``(B,)``."""
        return self.outputs.values(batch.observations)

    def _value_loss(self, values: Tensor, batch: RolloutBatch) -> Tensor:
        """Negative log-likelihood of the returns under N(V, sigma^2), without its constant."""
        return 0.5 * ((batch.returns - values) / sigma(self, values)).square().mean()

    def _value_distribution(self, values: Tensor) -> Normal:
        # A check would look at all values from the host; the loss is looked at anyway.
        return Normal(values, sigma(self, values), validate_args=False)

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
        if distributed.rank() and not self._custom_logger:
            self.set_logger(Logger(None, []))  # the first rank speaks for all
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
