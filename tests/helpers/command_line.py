"""``acktr train`` on a tiny environment, in this process or one of its own."""

import io
import subprocess
import sys
import time

from acktr.cli import main
from acktr.files.checkpoints import CheckpointStore
from tests.helpers.runs import TOY

SMALL = ("n_envs=2", "n_steps=8", "n_eval_episodes=1", "n_final_eval_episodes=2")
PRESSES = "tests.helpers.toy_envs:PressesCtrlC-v0"


def train(path, *arguments, env_id=TOY, steps="64"):
    where = [] if path is None else ["--out", str(path)]
    settings = ["--no-progress", "--set", "checkpoint_steps=16", *SMALL]
    return main(["train", env_id, "--steps", steps, *where, *settings, *arguments])


def start(path, env_id, *arguments):
    command = [sys.executable, "-m", "acktr", "train", env_id, "--out", str(path), "--no-progress"]
    return subprocess.Popen(
        [*command, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0
    )


def wait_for(process, path, condition):
    deadline = time.monotonic() + 120
    while not condition(path):
        assert time.monotonic() < deadline
        assert process.poll() is None or condition(path)
        time.sleep(0.01)


def steps_of_checkpoints(path):
    return [int(p.name.removeprefix("step-")) for p in CheckpointStore(path / "checkpoints").paths()]


class Broken(io.StringIO):
    """Raises whatever is asked for."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    flush = writelines = lambda self, *_: self.write("")
