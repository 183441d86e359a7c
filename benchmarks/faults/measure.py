"""What faults do to a run: kills at random moments, and files that were changed.

    python -m benchmarks.faults [--kills 100] [--mutations 10000] [--seed 0] [--out DIR]

``kills.csv`` has a row for each kill: ``acktr train`` is killed with SIGKILL at a random moment and
resumed to its end; its parameters, the state of its optimisers and its tables are compared with those
of the run that was not. ``mutations.csv`` has a row for each kind of change of a checkpoint or a saved
model: how many were refused with the typed error, how many meant nothing (the same values were
loaded), and how many ran code, crashed otherwise, or loaded other values, of which there must be none.

Rows that are there already are kept: an interrupted measurement goes on. It ends with 1 if anything was
not as it must be.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from acktr.errors import CheckpointError
from acktr.files.checkpoints import CheckpointStore, read_checkpoint
from acktr.learner.timing import ACTIVITIES
from acktr.run.directory import versions

OUT = Path(__file__).resolve().parents[1] / "results" / "faults"
KILL_COLUMNS = ("environment", "backend", "number", "seconds", "steps", "exact", "parameters", "tables")
MUTATION_COLUMNS = ("file", "change", "number", "refused", "same", "wrong", "executed", "crashed")
# Environment, backend, steps, and settings that make checkpoints frequent.
SHORT = ("eval_interval=2000", "n_eval_episodes=1", "n_final_eval_episodes=0")
MOMENTUM = "natural.kfac_kwargs.momentum=0.5"
RUNS = (
    ("CartPole-v1", "gymnasium", 20_000, ("checkpoint_steps=1000",)),
    (
        "HalfCheetah-v5",
        "gymnasium",
        12_000,
        ("checkpoint_steps=1000", MOMENTUM),
    ),
    ("HalfCheetah-v5", "envpool", 12_000, ("checkpoint_steps=1000",)),
)
_CLOCKS = {"seconds", "time/fps", "time/time_elapsed", *(f"time/{x}" for x in ACTIVITIES)}
_MARK = "ACKTR_FAULTS_EXECUTED"


# Kills --------------------------------------------------------------------------------------


def command(out: Path, env_id: str, backend: str, steps: int, settings: tuple[str, ...]) -> list[str]:
    return [
        *(sys.executable, "-m", "acktr", "train", env_id, "--resume", "--no-progress"),
        *("--out", str(out), "--steps", str(steps), "--backend", backend, "--set", *settings, *SHORT),
    ]


def fingerprint(run: Path) -> tuple[str, list[Any]]:
    """Digest of everything learned, and the tables without their clocks."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(run / "model.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("policy"):
                digest.update(archive.read(name))
    tables = []
    for name in ("progress.csv", "episodes.csv", "evaluations.csv"):
        with (run / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
            tables.append([{k: v for k, v in row.items() if k not in _CLOCKS} for row in rows])
    return digest.hexdigest(), tables


def run(arguments: list[str]) -> str:
    """Run a command to its end; returns its standard error."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stderr


def run_and_kill(arguments: list[str], path: Path, seconds: float) -> None:
    """Run a command and kill it so many seconds after its training began."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, **quiet) as process:
        while process.poll() is None and not (path / "config.yaml").exists():
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()


def measure_kills(numbers: range, seed: int, runs: tuple[Any, ...] = RUNS) -> Iterator[dict[str, Any]]:
    """Kill runs of each kind in turn, each at a moment between the beginning and the end of training."""
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[int, tuple[tuple[str, list[Any]], float]] = {}
        for number in numbers:
            kind = number % len(runs)
            if kind not in whole:
                path = Path(folder, f"whole-{kind}")
                run(command(path, *runs[kind]))
                seconds = json.loads((path / "result.json").read_text())["seconds"]
                whole[kind] = fingerprint(path), seconds
            (learned, tables), duration = whole[kind]
            moment = random.Random(f"{seed} {number}").uniform(0.0, duration)
            path = Path(folder, f"killed-{number}")
            arguments = command(path, *runs[kind])
            run_and_kill(arguments, path, moment)
            reached = _newest_step(path)
            told = run(arguments)
            again, tables_again = fingerprint(path)
            shutil.rmtree(path)
            yield {
                "environment": runs[kind][0],
                "backend": runs[kind][1],
                "number": number,
                "seconds": round(moment, 2),
                "steps": reached,
                "exact": "exactly" in told or reached == 0,
                "parameters": "equal" if again == learned else "differ",
                "tables": "equal" if tables_again == tables else "differ",
            }


def _newest_step(run: Path) -> int:
    checkpoint, _ = CheckpointStore(run / "checkpoints").newest()
    return checkpoint.steps if checkpoint else 0


# Mutations ----------------------------------------------------------------------------------


class Payload:
    """Leaves a mark in the environment if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, (_MARK, "1")


def mutate(data: bytes, change: str, draw: random.Random) -> bytes:
    mutated, position = bytearray(data), draw.randrange(len(data))
    if change == "bit flipped":
        mutated[position] ^= 1 << draw.randrange(8)
    elif change == "byte changed":
        mutated[position] ^= draw.randrange(1, 256)
    elif change == "cut off":
        del mutated[position:]
    elif change == "part removed":
        del mutated[position : position + draw.randrange(1, 64)]
    elif change == "part inserted":
        mutated[position:position] = draw.randbytes(draw.randrange(1, 64))
    elif change == "part overwritten":
        mutated[position : position + 16] = draw.randbytes(16)
    elif change == "pickle inserted":
        mutated[position : position + draw.randrange(200)] = pickle.dumps(Payload())
    elif change == "number changed":
        digits = [i for i, byte in enumerate(mutated) if 48 <= byte <= 57] or [position]
        mutated[draw.choice(digits)] = draw.randrange(48, 58)
    else:
        mutated = bytearray(draw.randbytes(draw.randrange(2000)))
    return bytes(mutated)


CHANGES = (
    *("bit flipped", "byte changed", "cut off", "part removed", "part inserted", "part overwritten"),
    *("pickle inserted", "number changed", "all random"),
)


def values(tree: Any) -> Any:
    """Return what a tree holds, in a form that can be compared."""
    from acktr.files.codec import encode

    structure, tensors, _ = encode(tree)
    return structure, {name: (x.dtype, x.tolist()) for name, x in tensors.items()}


def load_model(data: bytes) -> Any:
    """Load a saved model and return what it learned."""
    from acktr import ACKTR

    return values(ACKTR.load(io.BytesIO(data), device="cpu").get_parameters())


def measure_mutations(number: int, seed: int, known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Change a saved model and the files of a checkpoint, and load them; all but what is known."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "run")
        settings = ("checkpoint_steps=256", "n_envs=2", "n_steps=16", "policy_kwargs.net_arch=[8]")
        run(command(made, "CartPole-v1", "gymnasium", 512, settings))
        path = CheckpointStore(made / "checkpoints").paths()[-1]
        model = (made / "model.zip").read_bytes()

        def load_file(name: str) -> Callable[[bytes], Any]:
            def load(data: bytes) -> Any:
                (path / name).write_bytes(data)
                return values(read_checkpoint(path).components)

            return load

        targets: list[tuple[str, bytes, Callable[[bytes], Any]]] = [("model.zip", model, load_model)]
        targets += [(f.name, f.read_bytes(), load_file(f.name)) for f in sorted(path.iterdir())]
        each = -(-number // (len(targets) * len(CHANGES)))
        for name, data, load in targets:
            expected = load(data)
            for change in CHANGES:
                if (name, change) in known:
                    continue
                draw = random.Random(f"{seed} {name} {change}")
                counts = Counter(
                    attempt(load, mutate(data, change, draw), expected) for _ in range(each)
                )
                if name != "model.zip":
                    (path / name).write_bytes(data)
                yield {"file": name, "change": change, "number": each} | {
                    outcome: counts[outcome] for outcome in MUTATION_COLUMNS[3:]
                }


def attempt(load: Callable[[bytes], Any], data: bytes, expected: Any) -> str:
    """Load changed data and say what became of it."""
    try:
        loaded = load(data)
    except CheckpointError:
        outcome = "refused"
    except Exception:
        outcome = "crashed"
    else:
        outcome = "same" if loaded == expected else "wrong"
    if _marked():
        os.unsetenv(_MARK)
        return "executed"
    return outcome


def _marked() -> bool:
    # putenv goes past os.environ: a child sees it. Asked through libc to be quick.
    import ctypes

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return getenv(_MARK.encode()) is not None


# Tables -------------------------------------------------------------------------------------


def append(path: Path, columns: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
    """Append rows to a table, each complete on disk."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
            print(*row.values(), sep=", ", flush=True)


def existing(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarise(kills: list[dict[str, str]], mutations: list[dict[str, str]]) -> dict[str, Any]:
    equal = [r for r in kills if r["parameters"] == r["tables"] == "equal"]
    counts = {name: sum(int(row[name]) for row in mutations) for name in MUTATION_COLUMNS[2:]}
    return {"kills": len(kills), "resumed and equal": len(equal), "mutations": counts}


def write_manifest(path: Path, command: str, summary: dict[str, Any]) -> None:
    """Write what gave a table: command, date and versions, and what it says in short."""
    installed = versions()
    del installed["command"]  # its first word is a path of this machine
    today = date.today().isoformat()
    manifest = {"command": command, "date": today, "summary": summary, "versions": installed}
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=about)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kills, mutations = arguments.out / "kills.csv", arguments.out / "mutations.csv"
    left = range(len(existing(kills)), arguments.kills)
    append(kills, KILL_COLUMNS, measure_kills(left, arguments.seed))
    known = {(row["file"], row["change"]) for row in existing(mutations)}
    if arguments.mutations:
        found = measure_mutations(arguments.mutations, arguments.seed, known)
        append(mutations, MUTATION_COLUMNS, found)
    summary = summarise(existing(kills), existing(mutations))
    command = f"--kills {arguments.kills} --mutations {arguments.mutations} --seed {arguments.seed}"
    write_manifest(arguments.out / "manifest.json", f"python -m benchmarks.faults {command}", summary)
    print(json.dumps(summary, indent=2))
    bad = any(summary["mutations"][name] for name in ("wrong", "executed", "crashed"))
    return int(bad or summary["resumed and equal"] != summary["kills"])
