"""Kills and changed files of policies that remember, and of those with masks.

    python -m benchmarks.faults.policies [--kills 6] [--mutations 1000] [--seed 0] [--out DIR]

As :mod:`benchmarks.faults.measure` does it for policies that do neither. ``policy_kills.csv`` has a row
for each run that was killed and resumed, ``policy_mutations.csv`` one for each kind of file and change.
Changes are also made to members of a file whose checksums are made to fit: such a file is refused, or
is data alone, another model. Every refusal must be one line. It ends with 1 if anything was not as it
must be.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acktr.errors import AcktrError, CheckpointError
from benchmarks.faults.measure import (
    CHANGES,
    KILL_COLUMNS,
    MUTATION_COLUMNS,
    OUT,
    append,
    attempt,
    command,
    existing,
    load_model,
    measure_kills,
    mutate,
    run,
    summarise,
    write_manifest,
)

CARTPOLE, JOBSHOP = "benchmarks.memory_tasks:novel-CartPole-v1", "benchmarks.masked_tasks:jobshop-6x4-v0"
MEMORY = ("policy=MlpLstmPolicy", "policy_kwargs.lstm_hidden_size=8")
BOTH = ("policy=MlpGruPolicy", "policy_kwargs.lstm_hidden_size=8")
SMALL = ("checkpoint_steps=512", "n_envs=4", "n_steps=64", "policy_kwargs.net_arch=[8]")
# What a row calls it, task, steps of a run that is killed, settings.
KINDS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("memory", CARTPOLE, 8192, (*SMALL, *MEMORY)),
    ("masks", JOBSHOP, 4096, SMALL),
    ("memory and masks", JOBSHOP, 4096, (*SMALL, *BOTH)),
)
RUNS = tuple((task, "gymnasium", steps, settings) for _, task, steps, settings in KINDS)
FORGED = ", checksums made to fit"


def kills(numbers: range, seed: int) -> Iterator[dict[str, Any]]:
    """Kill runs of each kind in turn; name them by their kind."""
    for row in measure_kills(numbers, seed, RUNS):
        yield {**row, "environment": f"{row['environment']}, {KINDS[row['number'] % len(KINDS)][0]}"}


def mutations(number: int, seed: int, known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Change the saved model of each kind so many times, half of them with checksums that fit."""
    each = -(-number // (2 * len(CHANGES)))
    with tempfile.TemporaryDirectory() as folder:
        for name, task, _, settings in KINDS:
            files = [f"model.zip, {name}{forged}" for forged in ("", FORGED)]
            if all((file, change) in known for change in CHANGES for file in files):
                continue
            path = Path(folder, name.replace(" ", "-"))
            run(command(path, task, "gymnasium", 512, settings))
            data = (path / "model.zip").read_bytes()
            expected = load_model(data)
            for change in CHANGES:
                for file in files:
                    if (file, change) in known:
                        continue
                    draw = random.Random(f"{seed} {file} {change}")
                    counts = Counter(
                        try_forged(data, change, draw)
                        if file.endswith(FORGED)
                        else attempt(_load, mutate(data, change, draw), expected)
                        for _ in range(each)
                    )
                    yield {"file": file, "change": change, "number": each} | {
                        outcome: counts[outcome] for outcome in MUTATION_COLUMNS[3:]
                    }


def _load(data: bytes) -> Any:
    """Load a model; whatever refuses it in more than one line is no refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_model(data)
    except AcktrError as error:
        if len(str(error).splitlines()) != 1:
            raise RuntimeError(f"This is not one line: {error}") from error
        raise CheckpointError(str(error)) from error


def try_forged(data: bytes, change: str, draw: random.Random) -> str:
    """Change a member and make the checksums fit: what then loads is a model, with values of its own."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    mine = [name for name in members if name.endswith((".json", ".safetensors"))]
    name = draw.choice([name for name in mine if name != "manifest.json"])
    members[name] = mutate(members[name], change, draw)
    body = json.loads(members["manifest.json"])
    files = {name: members[name] for name in mine if name != "manifest.json"}
    body["files"] = {k: {"size": len(v), "sha256": _digest(v)} for k, v in files.items()}
    del body["checksum"]
    body["checksum"] = _digest(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())
    members["manifest.json"] = json.dumps(body).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    outcome = attempt(_load, buffer.getvalue(), None)
    return "same" if outcome == "wrong" else outcome


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not measured yet.

    :return: 1 if anything was not as it must be, else 0
    """
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.policies", description=about)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--mutations", type=int, default=1000, help="of the file of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    killed, changed = options.out / "policy_kills.csv", options.out / "policy_mutations.csv"
    append(killed, KILL_COLUMNS, kills(range(len(existing(killed)), options.kills), options.seed))
    known = {(row["file"], row["change"]) for row in existing(changed)}
    if options.mutations:
        append(changed, MUTATION_COLUMNS, mutations(options.mutations, options.seed, known))
    summary = summarise(existing(killed), existing(changed))
    said = f"--kills {options.kills} --mutations {options.mutations} --seed {options.seed}"
    write_manifest(
        options.out / "policies.json", f"python -m benchmarks.faults.policies {said}", summary
    )
    print(json.dumps(summary, indent=2))
    bad = any(summary["mutations"][name] for name in ("wrong", "executed", "crashed"))
    return int(bad or summary["resumed and equal"] != summary["kills"])


if __name__ == "__main__":
    raise SystemExit(main())
