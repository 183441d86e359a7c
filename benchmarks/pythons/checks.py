"""What :mod:`benchmarks.pythons` runs on every Python: the README's examples, training, every extra."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

STEPS = "20000"
README = Path(__file__).resolve().parents[2] / "README.md"
# Pythons for which every requirement of an extra is excluded by its markers: it installs nothing there.
INSTALLS_NOTHING = {"envpool": ("3.10",)}


class Check(NamedTuple):
    """What is run, by the interpreter of an environment, in an empty directory of that environment.

    :param name: a heading of the table
    :param arguments: of the interpreter
    :param exit_code: that it must end with
    :param says: what must be in its output
    """

    name: str
    arguments: tuple[str, ...]
    exit_code: int = 0
    says: str = ""


def command(name: str, *arguments: str, exit_code: int = 0, says: str = "") -> Check:
    """Return a check of the command line, named by what the user types."""
    return Check(name, ("-m", "acktr", *arguments), exit_code, says)


_SAVE_AND_LOAD = """
import numpy as np
from acktr import ACKTR
from acktr.envs import make_vec_env
env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
model = ACKTR("MlpPolicy", env, seed=0)
model.learn(2_000)
model.save("cartpole")
loaded = ACKTR.load("cartpole", env=env)
observations = env.observation_space.sample()
actions = [m.predict(observations, deterministic=True)[0] for m in (model, loaded)]
np.testing.assert_array_equal(*actions)
loaded.learn(2_000, reset_num_timesteps=False)
assert loaded.num_timesteps >= 4_000
"""

# Longer than the other trainings, so that the signal comes before the end.
_STOP_AND_RESUME = """
import json, pathlib, subprocess, sys, time
command = [sys.executable, "-m", "acktr", "train", "CartPole-v1", "--out", "stopped", "--resume"]
command += ["--steps", "100000", "--no-progress"]
table = pathlib.Path("stopped", "progress.csv")
with subprocess.Popen(command) as training:
    while training.poll() is None and not (table.exists() and table.stat().st_size > 2_000):
        time.sleep(0.05)
    training.terminate()
assert training.returncode == 143, f"SIGTERM ended training with {training.returncode}"
subprocess.run(command, check=True)
assert json.loads(pathlib.Path("stopped", "result.json").read_text())["steps"] >= 100_000
"""

_TRACKED = """
import os
os.environ["WANDB_MODE"] = "offline"
os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
from acktr.cli import main
settings = ["--set", "tracker={}", "eval_interval=0", "n_final_eval_episodes=1"]
assert main(["train", "CartPole-v1", "--steps", "2000", "--out", "run", "--no-progress", *settings]) == 0
"""


def readme_blocks(text: str | None = None) -> tuple[str, ...]:
    """Return the Python of the README, its training shortened.

    :param text: the README; read where it is not given
    """
    text = README.read_text(encoding="utf-8") if text is None else text
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return tuple(re.sub(r"learn\([\d_]+", f"learn({STEPS}", block) for block in blocks)


def checks(python: str) -> Mapping[str, tuple[Check, ...]]:
    """Return what is run, by the extra that is installed; ``""`` is the wheel alone.

    :param python: the minor version, such as "3.12"
    """
    example, kfac = readme_blocks()
    short = ("--set", "eval_interval=0", "n_final_eval_episodes=1")
    native = ("train", "CartPole-v1", "--backend", "envpool", "--steps", STEPS, "--out", "native")
    # What must be said where the extra cannot bring EnvPool: not to install it again.
    no_wheel = {"exit_code": 2, "says": f"Python {python}"} if _nothing("envpool", python) else {}
    return {
        "": (
            command(f"acktr train CartPole-v1 --steps {STEPS}", *_train("CartPole-v1")),
            command("acktr evaluate", "evaluate", "run", "--episodes", "2"),
            command("acktr plot", "plot", "run"),
            Check("save, load, go on", ("-c", _SAVE_AND_LOAD)),
            Check("SIGTERM, --resume", ("-c", _STOP_AND_RESUME)),
            Check("README, K-FAC on its own", ("-c", kfac)),
        ),
        "video": (
            command("acktr train CartPole-v1", *_train("CartPole-v1", "2000"), *short),
            command("acktr record", "record", "run"),
        ),
        "mujoco": (
            Check("README, ACKTR", ("-c", example)),
            command("acktr train HalfCheetah-v5", *_train("HalfCheetah-v5"), *short),
            command("acktr record", "record", "run"),
        ),
        "pixels": (
            command(
                "acktr train Reacher-v5, pixels",
                *_train("Reacher-v5", "512"),
                *(*short, "pixels=true", "n_steps=32"),
            ),
        ),
        "atari": (command("acktr train ALE/Pong-v5", *_train("ALE/Pong-v5", "2000"), *short[:2]),),
        "envpool": (command("acktr train CartPole-v1 --backend envpool", *native, **no_wheel),),
        "compare": (
            command(
                "acktr compare CartPole-v1",
                *("compare", "CartPole-v1", "--steps", "4000", "--seeds", "1", "--jobs", "1"),
            ),
        ),
        "benchmarks": (
            Check("import scipy, seaborn", ("-c", "import scipy.stats, seaborn")),
            command("acktr train LunarLander-v3", *_train("LunarLander-v3", "2000"), *short),
        ),
        "general": (
            Check(
                "import of the tasks",
                ("-c", "import acktr, gymnasium_robotics, minatar, minigrid, mpe2, shimmy"),
            ),
        ),
        "onnx": (
            command("acktr train CartPole-v1", *_train("CartPole-v1", "2000"), *short),
            command("acktr export", "export", "run", "policy.onnx"),
        ),
        "report": (
            command("acktr train CartPole-v1", *_train("CartPole-v1", "2000"), *short),
            command("acktr report", "report", "run"),
        ),
        "zoo": (
            Check(
                "python -m acktr.zoo train",
                ("-m", "acktr.zoo", "train", "--algo", "acktr", "--env", "CartPole-v1", "-n", "2000"),
            ),
        ),
        "hub": (
            Check("import huggingface_sb3", ("-c", "import acktr, huggingface_hub, huggingface_sb3")),
            # Without a network: its client looks at the name first.
            command("acktr pull", "pull", "a--b/c", exit_code=2, says="no name of a repository"),
        ),
        "wandb": (Check("tracker=wandb", ("-c", _TRACKED.format("wandb"))),),
        "mlflow": (Check("tracker=mlflow", ("-c", _TRACKED.format("mlflow"))),),
    }


def _train(env_id: str, steps: str = STEPS) -> tuple[str, ...]:
    return ("train", env_id, "--steps", steps, "--out", "run", "--no-progress")


def _nothing(extra: str, python: str) -> bool:
    return python in INSTALLS_NOTHING.get(extra, ())
