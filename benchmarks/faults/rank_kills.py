"""Kills of one rank of two: ``python -m benchmarks.faults.rank_kills [--kills 20] [--out DIR]``.

A training of two ranks is started under ``torchrun --max-restarts 1``. A rank drawn at random is killed
with SIGKILL at a random moment after the first checkpoint. The run must go on by itself from its newest
checkpoint and end with the parameters and tables of the run whose ranks were left alone. Rows that are
there already are kept. It ends with 1 if one did not recover.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.measure import OUT, append, existing, fingerprint, write_manifest

COLUMNS = ("environment", "number", "rank", "seconds", "exit_code", "resumed", "parameters", "tables")
STEPS = {"CartPole-v1": 24_000, "HalfCheetah-v5": 24_000}
SETTINGS = ("checkpoint_steps=2000", "eval_interval=0", "n_final_eval_episodes=0", "backend=gymnasium")


def launch(out: Path, env_id: str) -> subprocess.Popen[str]:
    """Start two ranks that may be started again once."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"),
        *("-m", "acktr", "train", env_id, "--no-progress", "--out", str(out)),
        *("--steps", str(STEPS[env_id]), "--set", *SETTINGS),
    ]
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks, in their order."""
    listing = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=False
    )
    return sorted(int(line) for line in listing.stdout.split())


def measure(numbers: range, seed: int) -> Iterator[dict[str, Any]]:
    """Kill one rank of each run, in turn over the environments."""
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, tuple[Any, Any, float]] = {}
        for number in numbers:
            env_id = list(STEPS)[number % len(STEPS)]
            if env_id not in whole:
                path = Path(folder, f"whole-{env_id}")
                process = launch(path, env_id)
                output, _ = process.communicate()
                if process.returncode:
                    raise RuntimeError(
                        f"Two ranks on {env_id} ended with {process.returncode}: {output}"
                    )
                seconds = json.loads((path / "result.json").read_text())["seconds"]
                whole[env_id] = *fingerprint(path), seconds
            learned, tables, duration = whole[env_id]
            draw = random.Random(f"{seed} {number}")
            path = Path(folder, f"killed-{number}")
            process = launch(path, env_id)
            while process.poll() is None and not list(path.glob("checkpoints/step-*")):
                time.sleep(0.01)
            moment, rank = draw.uniform(0.0, 0.8 * duration), draw.randrange(2)
            time.sleep(moment)
            victims = ranks_of(process.pid)
            if len(victims) == 2:
                os.kill(victims[rank], signal.SIGKILL)
            output, _ = process.communicate()
            done = process.returncode == 0
            again, tables_again = fingerprint(path) if done else (None, None)
            shutil.rmtree(path, ignore_errors=True)
            yield {
                "environment": env_id,
                "number": number,
                "rank": rank,
                "seconds": round(moment, 2),
                "exit_code": process.returncode,
                "resumed": "Resumed at step" in output,
                "parameters": "equal" if again == learned else "differ",
                "tables": "equal" if tables_again == tables else "differ",
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "rank_kills.csv"
    append(table, COLUMNS, measure(range(len(existing(table)), options.kills), options.seed))
    rows = existing(table)
    recovered = sum(row["parameters"] == row["tables"] == "equal" for row in rows)
    summary = {"kills": len(rows), "recovered": recovered}
    command = f"python -m benchmarks.faults.rank_kills --kills {options.kills} --seed {options.seed}"
    write_manifest(options.out / "rank_kills.json", command, summary)
    print(json.dumps(summary))
    return int(recovered < len(rows))


if __name__ == "__main__":
    sys.exit(main())
