"""Short runs of a tiny environment, and what is read of their directories."""

import csv
import warnings

from acktr.learner.timing import ACTIVITIES
from acktr.presets import resolve
from acktr.run.directory import Run
from acktr.run.experiment import Experiment

TOY = "tests.helpers.toy_envs:Toy-v0"
SMALL = (
    "n_timesteps=480",
    "n_envs=2",
    "n_steps=16",
    "eval_interval=160",
    "n_eval_episodes=1",
    "n_final_eval_episodes=1",
    "policy_kwargs.net_arch=[8]",
    "checkpoint_steps=96",
)
# Of the tiny environment: what a schedule is at depends on where a run has got to.
SCHEDULES = ("target_kl=lin_0.02", "gamma=auto_0.99_0.998", "std_scale=late_1_0.5")
# As few evaluations and checkpoints as there can be.
QUICK = ("n_timesteps=160", "eval_interval=64", "checkpoint_steps=64", "n_final_eval_episodes=0")
TIMES = {"seconds", "time/fps", "time/time_elapsed", *(f"time/{x}" for x in ACTIVITIES)}


def train(path, env_id, *overrides, stop_at=None, **arguments):
    """Train in this process; ``stop_at`` updates the run is asked to stop."""
    schedules = SCHEDULES if env_id == TOY else ()
    configuration = resolve(env_id, overrides=[*SMALL, *schedules, *overrides]).configuration
    told = []
    with warnings.catch_warnings(), Experiment(configuration) as experiment:
        warnings.filterwarnings("ignore", message="precision='bf16' needs hardware")
        model = experiment.model
        stops = {} if stop_at is None else {"should_stop": lambda: model._n_updates >= stop_at}
        experiment.train(Run(path), tell=told.append, **stops, **arguments)
    return model, told


def new(path):
    return Run.create("x", path).path


def rows(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def content(path):
    return {
        file.relative_to(path): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "run.lock"
    }
