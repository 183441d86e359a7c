"""ACKTR in RL Baselines3 Zoo: ``python -m acktr.zoo train …`` is the Zoo's ``rl_zoo3 train …``.

The Zoo has no plugins. Here ACKTR joins its algorithms and its samplers for Optuna, and the Zoo's own
program does the rest. It takes :data:`hyperparams`, which are the presets' settings.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from acktr.envs.lookup import find_spec, is_atari, is_installed
from acktr.errors import AcktrError, ConfigurationError
from acktr.learner.algorithm import ACKTR
from acktr.learner.settings import Natural
from acktr.presets import resolve
from acktr.presets.classes import resolve_classes
from acktr.schedules import Linear

_COMMANDS = ("train", "enjoy", "plot_train", "plot_from_file", "all_plots")
_RECORD = "record_video"  # the Zoo has it as a module, and not among its program's commands
_MUJOCO = "gymnasium.envs.mujoco"
_NOT_ARGUMENTS = {"stats_window_size", "verbose"}  # the Zoo gives one of them, and none needs the other


class _Hyperparams(dict[str, Any]):
    """Settings by environment, of which the Zoo takes ``default`` where there are none.

    It holds the preset of each, whose settings are made when they are asked for: those of MuJoCo's tasks
    cannot be where MuJoCo is not installed, and the Zoo changes what it takes.
    """

    def __getitem__(self, env_id: str) -> dict[str, Any]:
        preset = super().__getitem__(env_id)
        return settings_of("CartPole-v1" if env_id == "default" else env_id, preset)

    def __missing__(self, env_id: str) -> dict[str, Any]:
        raise _no_atari(env_id)


def _no_atari(env_id: str) -> ConfigurationError:
    return ConfigurationError(
        f"The Zoo asks for settings of {env_id!r}, and Atari's preset is made for acktr's own "
        "environments: use `acktr train`."
    )


def settings_of(env_id: str, preset: str) -> dict[str, Any]:
    """Return the settings of a preset as the Zoo takes them: arguments of ACKTR, and of its own.

    :param env_id: whose section of the preset it is, if it has one
    :param preset: by name
    """
    configuration = resolve(env_id, preset=preset).configuration
    arguments = configuration.algorithm_arguments()
    arguments["policy_kwargs"] = resolve_classes(arguments["policy_kwargs"]) or None
    normalize = configuration.normalize.model_dump(exclude_none=True)
    normalize["norm_obs"] = bool(normalize["norm_obs"])  # "auto": these tasks observe numbers
    settings = {key: value for key, value in arguments.items() if key not in _NOT_ARGUMENTS}
    settings |= {"n_timesteps": configuration.n_timesteps, "n_envs": configuration.n_envs}
    settings["policy"] = "MlpPolicy" if configuration.policy == "auto" else configuration.policy
    if normalize["norm_obs"] or normalize["norm_reward"]:
        settings["normalize"] = normalize
    return settings


def _all_settings() -> _Hyperparams:
    found = _Hyperparams(default="defaults")
    for env_id, spec in gym.registry.items():
        entry = str(spec.entry_point)
        if entry.startswith(_MUJOCO):
            found[env_id] = "mujoco"
        elif entry.startswith("gymnasium.envs.classic_control"):
            found[env_id] = "classic"
    return found


def sample(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Draw settings for a trial of Optuna, as the Zoo's own samplers do.

    :param trial: of Optuna
    :param n_actions: of no importance here
    :param n_envs: likewise
    :param additional_args: likewise
    """
    drawn = {
        "target_kl": trial.suggest_float("target_kl", 1e-3, 0.1, log=True),
        "damping": trial.suggest_float("damping", 1e-3, 1.0, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.3, log=True),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 4, 9),
    }
    return convert(drawn)


def convert(drawn: dict[str, Any]) -> dict[str, Any]:
    """Turn what was drawn into arguments of ACKTR, as the Zoo's ``--trial-id`` needs it.

    :param drawn: the parameters of a trial
    """
    return {
        "target_kl": Linear(drawn["target_kl"]),
        "natural": Natural(damping=drawn["damping"]),
        "gamma": 1 - drawn["one_minus_gamma"],
        "gae_lambda": 1 - drawn["one_minus_gae_lambda"],
        "n_steps": 2 ** drawn["n_steps_pow"],
    }


def check_installed() -> None:
    """Refuse to go on without the Zoo.

    :raises ConfigurationError: with the pip line
    """
    if not is_installed("rl_zoo3"):
        raise ConfigurationError(
            'The Zoo needs rl_zoo3, which is not installed: run `pip install "acktr[zoo]"`.'
        )


def check_environment(env_id: str) -> None:
    """Refuse an environment that the Zoo has no settings of.

    :raises ConfigurationError: it is unknown, or one of Atari's
    """
    if is_atari(find_spec(env_id)):
        raise _no_atari(env_id)


def register() -> None:
    """Make ACKTR known to the Zoo in this process.

    :raises ConfigurationError: the Zoo is not installed
    """
    check_installed()
    from rl_zoo3 import ALGOS, hyperparams_opt

    ALGOS["acktr"] = ACKTR
    samplers: Any = hyperparams_opt.HYPERPARAMS_SAMPLER
    converters: Any = hyperparams_opt.HYPERPARAMS_CONVERTER
    samplers["acktr"], converters["acktr"] = sample, convert


def main(arguments: Sequence[str]) -> int:
    """Run a command of the Zoo.

    :param arguments: the command and its arguments; ``--algo acktr`` and the settings are added where
        they are left out
    :return: the exit code
    """
    try:
        command, *rest = arguments or [""]
        if command in ("-h", "--help"):
            names = ",".join((*_COMMANDS, _RECORD))
            print(f"python -m acktr.zoo {{{names}}} ...: RL Baselines3 Zoo, with ACKTR.")
            return 0
        if command not in (*_COMMANDS, _RECORD):
            known = ", ".join((*_COMMANDS, _RECORD))
            raise ConfigurationError(f"The Zoo has no {command!r} here: use {known}.")
        register()
        if command == _RECORD and not is_installed("moviepy"):
            raise ConfigurationError(
                'A film needs moviepy, which is not installed: run `pip install "acktr[video]"`.'
            )
        from rl_zoo3.cli import main as run

        # Before what the user says, which comes last and counts.
        if command == "train" and _algorithm(rest) == "acktr":
            rest = ["--conf-file", "acktr.zoo", *rest]
        if command in ("train", "enjoy", "plot_train", _RECORD):
            rest = ["--algo", "acktr", *rest]
        before, sys.argv = sys.argv, ["rl_zoo3", command, *rest]
        try:
            if command == _RECORD:
                sys.argv = sys.argv[1:]
                runpy.run_module("rl_zoo3.record_video", run_name="__main__")
            else:
                run()
        finally:
            sys.argv = before
    except AcktrError as error:
        print(f"acktr: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _algorithm(arguments: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="acktr")
    known: str = parser.parse_known_args(arguments)[0].algo
    return known


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
else:
    hyperparams = _all_settings()
