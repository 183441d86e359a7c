"""A whole experiment: environments and model from a configuration, trained in a run directory."""

import contextlib
from collections.abc import Callable, Sequence

from stable_baselines3.common.callbacks import BaseCallback

from acktr import distributed
from acktr.devices import check_device
from acktr.envs.lookup import MAX_EVALUATION_ENVS
from acktr.presets import Configuration
from acktr.run.build import build_environment, build_model, choose_policy
from acktr.run.directory import Run
from acktr.run.trackers import check_tracker
from acktr.run.training import Result, follow_training, run_training


class Experiment:
    """Environments and model of one run, built and checked before anything is written.

    :param configuration: the settings
    :raises ConfigurationError: if they cannot be built
    """

    def __init__(self, configuration: Configuration) -> None:
        check_device(configuration.device)  # ACKTR may take another, and the run would not say which
        check_tracker(configuration.tracker)
        n_eval_envs = min(configuration.n_eval_episodes, MAX_EVALUATION_ENVS)
        with contextlib.ExitStack() as opened:
            # Each rank steps environments of its own.
            seed = distributed.own_seed(configuration.seed, configuration.n_envs)
            self.env = build_environment(configuration.model_copy(update={"seed": seed}))
            opened.callback(self.env.close)
            self.eval_env = build_environment(configuration, training=False, n_envs=n_eval_envs)
            opened.callback(self.eval_env.close)
            # What "auto" stood for belongs into the configuration that the run keeps.
            self.configuration = configuration.model_copy(
                update={
                    "policy": choose_policy(configuration, self.env.observation_space),
                    "backend": self.env.backend,  # type: ignore[attr-defined]
                }
            )
            self.model = build_model(self.configuration, self.env)
            # Nothing was refused: from here on close() does it.
            opened.pop_all()

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
        self.eval_env.close()

    def train(
        self,
        run: Run,
        *,
        callbacks: Sequence[BaseCallback] = (),
        should_stop: Callable[[], bool] = lambda: False,
        resume: bool = False,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> Result:
        """Train to the end and leave everything in the run directory.

        :param run: the run directory
        :param callbacks: further SB3 callbacks
        :param should_stop: asked between two updates; when true, training ends, a checkpoint and the
            model are saved, and the final evaluation is left out
        :param resume: go on from the newest valid checkpoint of the directory, if there is one
        :param tell: called with a sentence about what is resumed, and whether exactly
        :raises ConfigurationError: another process trains in the directory, or it holds a run already
        :raises CheckpointError: no checkpoint can be used, or one could not be written
        :raises DivergenceError: if a value is not finite; the model before it is saved
        """
        return run_training(
            self.model,
            self.eval_env,
            self.configuration,
            run,
            callbacks=callbacks,
            should_stop=should_stop,
            resume=resume,
            tell=tell,
        )

    def follow(self, should_stop: Callable[[], bool]) -> None:
        """Train on a rank other than the first, whose :meth:`train` leaves the run directory.

        :param should_stop: asked between two updates
        """
        follow_training(self.model, self.configuration, should_stop)
