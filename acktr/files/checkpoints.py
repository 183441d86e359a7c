"""The checkpoints of a run: one directory each, written whole, the newest valid one found again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from acktr.errors import (
    CheckpointError,
    CheckpointVersionError,
    CheckpointWriteError,
    DamagedCheckpointError,
)
from acktr.files.bundle import (
    MANIFEST,
    MAX_MANIFEST,
    Manifest,
    check_file,
    pack,
    read_manifest,
    unpack,
)
from acktr.files.durable import refuse_links, remove, remove_directory, write_directory

_NAME = re.compile(r"step-(\d+)")


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    :param path: its directory
    :param steps: environment steps, of all environments together
    :param info: what its manifest tells: ``exact``, ``score``, ``versions``, ...
    :param components: its trees by name
    """

    path: Path
    steps: int
    info: dict[str, Any]
    components: dict[str, Any]


class CheckpointStore:
    """The directory that holds the checkpoints of one run.

    :param path: the directory; made with the first checkpoint
    :param keep_last: so many of the newest are kept
    :param keep_best: and so many of those with the best score
    """

    def __init__(self, path: Path, keep_last: int = 3, keep_best: int = 1) -> None:
        self.path = path
        self.keep_last = keep_last
        self.keep_best = keep_best

    def save(self, steps: int, files: Mapping[str, bytes]) -> Path:
        """Write a checkpoint, and only then remove those that are no longer kept.

        :param steps: environment steps, of all environments together
        :param files: what :func:`pack_checkpoint` returned
        :return: its directory
        :raises CheckpointWriteError: it could not be written; the others are as they were
        :raises UnsafeCheckpointError: the place of all is a link
        """
        path = self.path_of(steps)
        refuse_links(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_directory(path, files)
        except OSError as error:
            raise CheckpointWriteError(
                f"The checkpoint {path} could not be written ({error.strerror or error}): make room, or "
                "look at who may write there; the earlier checkpoints are as they were."
            ) from error
        self._prune()
        return path

    def path_of(self, steps: int) -> Path:
        """Name the directory of a checkpoint."""
        return self.path / f"step-{steps:012d}"

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Read the newest checkpoint that is valid.

        :return: it, or ``None`` if there is no checkpoint at all; and of each newer one that was
            skipped a sentence that says why
        :raises DamagedCheckpointError: there are checkpoints, and none is valid
        :raises CheckpointVersionError: one is of a format that is not read: it is not damaged, and
            going on from an older one would lose it
        :raises UnsafeCheckpointError: the place of all is a link
        """
        refuse_links(self.path)
        skipped: list[str] = []
        for path in reversed(self.paths()):
            try:
                return read_checkpoint(path), skipped
            except CheckpointVersionError:
                raise
            except CheckpointError as error:
                skipped.append(str(error))
        if skipped:
            raise DamagedCheckpointError(
                f"None of the {len(skipped)} checkpoints in {self.path} can be used: {' '.join(skipped)}"
            )
        return None, []

    def paths(self) -> list[Path]:
        """Return the directories of all checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def clean(self) -> None:
        """Remove what a killed process has left half-written or half-removed."""
        refuse_links(self.path)
        if self.path.is_dir():
            for path in self.path.glob(".step-*"):
                remove(path)

    def set_aside_after(self, steps: int) -> None:
        """Rename what lies beyond a checkpoint that a run goes on from: it was skipped as unusable.

        :raises OSError: it cannot be renamed
        """
        refuse_links(self.path)
        for path in self.paths():
            if int(path.name.removeprefix("step-")) > steps:
                place, number = path.with_name(f"unusable-{path.name}"), 1
                while os.path.lexists(place):
                    place, number = path.with_name(f"unusable-{path.name}-{number}"), number + 1
                path.rename(place)

    def _prune(self) -> None:
        paths = self.paths()
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        best = sorted(scores, key=lambda path: scores[path])[len(scores) - self.keep_best :]
        for path in paths[: -self.keep_last]:
            if self.keep_best == 0 or path not in best:
                try:
                    remove_directory(path)
                except OSError:
                    continue  # kept too long is better than training ended


def pack_checkpoint(
    steps: int, components: Mapping[str, Any], info: Mapping[str, Any]
) -> dict[str, bytes]:
    """Turn the state of a run into the files of a checkpoint, from now on independent of it.

    :param steps: environment steps, of all environments together
    :param components: trees by name
    :param info: plain values for the manifest; ``score`` decides which checkpoints are the best
    """
    return pack("checkpoint", components, {"steps": steps, **info})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check one checkpoint.

    :param path: its directory
    :raises CheckpointError: of the kind that tells why it cannot be used
    """
    manifest = _read_manifest(path)
    files = {name: _read(path, name, size) for name, (size, _) in manifest.files.items()}
    for name, data in files.items():
        check_file(name, data, manifest, str(path))
    components = unpack(files, manifest, str(path))
    steps = manifest.info.get("steps")
    if type(steps) is not int:
        raise DamagedCheckpointError(f"The manifest of {path} does not tell the steps.")
    return Checkpoint(path, steps, manifest.info, components)


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir() or path.is_symlink():
        raise DamagedCheckpointError(f"{path} is no directory of a checkpoint.")
    if not (path / MANIFEST).exists():
        raise DamagedCheckpointError(f"{path} has no {MANIFEST}: it was not written to its end.")
    return read_manifest(_read(path, MANIFEST, None), "checkpoint", str(path))


def _read(path: Path, name: str, size: int | None) -> bytes:
    file = path / name
    try:
        # A link would lead out of the checkpoint, a pipe would be waited for.
        if file.is_symlink() or not file.is_file():
            raise DamagedCheckpointError(f"{name} of {path} is missing, or is no plain file.")
        actual = file.stat().st_size
        if size is None:
            size = min(actual, MAX_MANIFEST)
        if actual != size:
            raise DamagedCheckpointError(
                f"{name} of {path} has {actual} bytes where {size} are expected: it was cut off or "
                "changed."
            )
        return file.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{name} of {path} cannot be read ({error.strerror}).") from error


def _score(path: Path) -> float | None:
    try:
        score = _read_manifest(path).info.get("score")
    except CheckpointError:
        return None
    return float(score) if isinstance(score, int | float) else None
