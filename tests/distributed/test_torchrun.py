"""``torchrun -m acktr train``: one run directory, exact resume, and recovery from a killed rank."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acktr.files.checkpoints import CheckpointStore

pytestmark = pytest.mark.distributed
TRAIN = ["-m", "acktr", "train", "CartPole-v1", "--seed", "1", "--no-progress"]
SMALL = [
    "--set",
    "n_steps=16",
    "n_envs=2",
    "eval_interval=0",
    "n_final_eval_episodes=2",
    "backend=gymnasium",
]


def torchrun(folder, *arguments, launcher=("--nproc-per-node", "2"), variables=(), **kwargs):
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *TRAIN, *arguments, *SMALL]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **dict(variables)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finished(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def newest(run):
    return sorted(run.glob("checkpoints/step-*"))[-1]


def test_two_ranks_train_one_model_and_resume_it_exactly(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--steps", "640", "--set", "checkpoint_steps=320"]
    output = finished(torchrun(tmp_path, "--out", str(whole), *arguments))
    assert output.count("Done after 640 steps") == 1  # one rank speaks for all
    checkpoint = newest(whole)
    assert {"rank-0.json", "rank-1.json"} <= {path.name for path in checkpoint.iterdir()}
    assert json.loads((checkpoint / "manifest.json").read_text())["info"]["world_size"] == 2
    expected = load_file(checkpoint / "policy.safetensors")

    shutil.copytree(whole, parts)
    shutil.rmtree(newest(parts))
    output = finished(torchrun(tmp_path, "--out", str(parts), *arguments, "--resume"))
    assert "Resumed at step 320" in output
    assert "exactly, environments included" in output
    found = load_file(newest(parts) / "policy.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    alone = subprocess.run(
        [sys.executable, *TRAIN, "--out", str(parts), "--steps", "700", "--resume", *SMALL],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert "made by 2 processes and this is 1" in alone.stderr


def children(pid):
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listing.stdout.split()]


def wait_for(condition, process, seconds=120):
    for _ in range(int(10 * seconds)):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError("nothing came of it")


def test_a_killed_rank_is_replaced_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    process = torchrun(
        tmp_path, "--out", str(out), "--steps", "10000", "--set", "checkpoint_steps=640",
        launcher=("--nproc-per-node", "2", "--max-restarts", "1"),
    )  # fmt: skip
    wait_for(lambda: len(list(out.glob("checkpoints/step-*"))) >= 2, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    output = finished(process)
    assert "Resumed at step" in output
    assert "exactly" in output
    assert json.loads((out / "result.json").read_text())["steps"] >= 10000
    with (out / "episodes.csv").open() as file:
        steps = [int(float(row["steps"])) for row in csv.DictReader(file)]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_within_seconds(tmp_path):
    out = tmp_path / "run"
    process = torchrun(
        tmp_path, "--out", str(out), "--steps", "1000000", "--set", "checkpoint_steps=640",
        variables={"ACKTR_TIMEOUT": "10"},
    )  # fmt: skip
    ranks = []
    try:
        wait_for(lambda: list(out.glob("checkpoints/step-*")), process)
        ranks = children(process.pid)
        os.kill(ranks[1], signal.SIGSTOP)
        # The launcher gives the stopped rank 30 seconds to end before it kills it.
        output, _ = process.communicate(timeout=75)
        left = [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    finally:
        for pid in (process.pid, *ranks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert process.returncode != 0
    assert re.search(r'File ".*acktr/(distributed|kfac/comm)\.py"', output)  # of the rank that waited
    assert "Timed out" in output
    assert not left
    checkpoint, skipped = CheckpointStore(out / "checkpoints").newest()
    assert checkpoint is not None
    assert skipped == []


def test_sigterm_saves_once_and_all_ranks_end(tmp_path):
    out = tmp_path / "run"
    process = torchrun(tmp_path, "--out", str(out), "--steps", "1000000")
    wait_for(lambda: (out / "progress.csv").exists(), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0  # torchrun says 1, whatever its workers say
    assert output.count("stopping after this update") == 1
    assert "Stopped after" in output
    assert len(list(out.glob("checkpoints/step-*"))) == 1
