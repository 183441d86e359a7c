"""Runs on the Hugging Face Hub: a finished one goes up, and what comes down is checked first.

Whatever lies in a repository may be somebody else's. Files of known names and bounded sizes are fetched,
and nothing else; what they hold is read as any run of somebody else's is, so that no code runs; and the
directory takes its place only once all of it is there and readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import acktr
from acktr.envs.lookup import is_installed
from acktr.errors import AcktrError, CheckpointError, ConfigurationError, UnsafeCheckpointError
from acktr.files.bundle import largest_file
from acktr.files.model_file import foreign_refusal, is_foreign, read_model
from acktr.files.reading import MAX_TEXT, parse_json, read_plain
from acktr.presets.schema import complete
from acktr.run.card import card
from acktr.run.directory import Run
from acktr.run.quiet import quiet

_MEBI = 2**20
_MAX_MODEL = min(2**32, largest_file())
# What is shared, and the most bytes of each. Last the file by which a directory is known as a run.
_LIMITS: dict[str, float] = {
    "model.zip": _MAX_MODEL,
    "best_model.zip": _MAX_MODEL,
    "vecnormalize.json": 64 * _MEBI,  # of runs from before the model's file held its statistics
    "best_vecnormalize.json": 64 * _MEBI,
    "result.json": MAX_TEXT,
    "versions.json": MAX_TEXT,
    "progress.csv": 256 * _MEBI,
    "episodes.csv": 256 * _MEBI,
    "evaluations.csv": 256 * _MEBI,
    "learning_curve.png": 16 * _MEBI,
    "episode.mp4": 512 * _MEBI,
    "config.yaml": MAX_TEXT,
}
_NEEDED = ("model.zip", "config.yaml")
_ON_THE_HUB = {"episode.mp4": "replay.mp4"}  # the film that the Hub shows above a card
_CARD = "README.md"
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt", ".zip")


def push(run: Run, repo: str, *, private: bool = False) -> str:
    """Share a run: its model, settings, figures, tables, picture and film, with a card, in one commit.

    What was there of an earlier run is replaced; other files in the repository stay.

    :param run: one whose training has left a model
    :param repo: ``ORG/NAME``, made where it does not exist
    :param private: make a private one, and never publish into one that is not
    :return: the address of its page
    :raises ConfigurationError: the package is missing, the Hub cannot be reached or refuses
    :raises CheckpointError: the run cannot be used, or is not safe to be shared
    """
    _check(repo)
    files = _collect(run, repo)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with _asking(repo, "pushed") as api:
        api.whoami()  # before anything is made: who is not logged in makes nothing
        api.create_repo(repo, private=private or None, exist_ok=True)
        info = api.model_info(repo)
        if private and info.private is False:
            raise ConfigurationError(
                f"{repo} exists and is public: make it private on its page, or choose another name."
            )
        ours = {_ON_THE_HUB.get(name, name) for name in _LIMITS}
        there = {sibling.rfilename for sibling in info.siblings or ()}
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in sorted((ours & there) - files.keys())]
        api.create_commit(repo, operations, commit_message=f"A run by acktr {acktr.__version__}")
        return f"{api.endpoint}/{repo}"


def pull(repo: str, out: Path | None = None) -> Run:
    """Fetch a run that :func:`push` has shared.

    :param repo: ``ORG/NAME``
    :param out: the run directory to make; by default ``runs/NAME``
    :return: the run
    :raises ConfigurationError: the package is missing, there is something at ``out``, the Hub cannot be
        reached or has no such repository
    :raises CheckpointError: the repository holds no run, or one that cannot be used; nothing is left of
        it here
    """
    _check(repo)
    out = Path("runs", repo.partition("/")[2]) if out is None else out
    _refuse_taken(out)
    with _asking(repo, "pulled") as api:
        info = api.model_info(repo)
        there = [sibling.rfilename for sibling in info.siblings or ()]
        _refuse_other(repo, there)
        wanted = [name for name in _LIMITS if _ON_THE_HUB.get(name, name) in there]
        paths = [_ON_THE_HUB.get(name, name) for name in wanted]
        found = api.get_paths_info(repo, paths, revision=info.sha)
        sizes = {file.path: getattr(file, "size", None) for file in found}
    for name, path in zip(wanted, paths, strict=True):
        _refuse_size(repo, name, sizes.get(path))
    with _staged(out) as (folder, staging):
        with _asking(repo, "pulled") as api:
            for path in paths:  # of this one commit, whatever is pushed meanwhile
                api.hf_hub_download(repo, path, revision=info.sha, local_dir=folder)
        for name, path in zip(wanted, paths, strict=True):
            file = folder / path
            if file.is_symlink() or not file.is_file():
                raise UnsafeCheckpointError(f"{path} of {repo} is no plain file: nothing was kept.")
            _refuse_size(repo, name, file.stat().st_size)
            os.replace(file, staging / name)
        try:
            _check_run(Run(staging))
        except CheckpointError as error:
            # The place where it was looked at is none that anybody knows.
            raise type(error)(str(error).replace(str(staging), repo)) from error
    return Run.open(out)


def _check(repo: str) -> None:
    """Refuse what cannot be asked for, before anything is read or sent."""
    if not is_installed("huggingface_hub"):
        raise ConfigurationError(
            'The Hub needs huggingface_hub, which is not installed: run `pip install "acktr[hub]"`.'
        )
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problem = str(error).partition(":")[0].rstrip(".")
        raise ConfigurationError(f"{repo!r} is no name of a repository: {problem}.") from error
    if repo.count("/") != 1:
        raise ConfigurationError(f"{repo!r} is no name of a repository: give it as ORG/NAME.")


# Going up -----------------------------------------------------------------------------------


def _collect(run: Run, repo: str) -> dict[str, bytes]:
    """Read what is shared of a run, by its name on the Hub.

    :raises CheckpointError: it cannot be used, or a link in it leads elsewhere
    """
    if not run.model_path().is_file():
        raise CheckpointError(
            f"{run.path} has no model.zip: train to the end, or stop with Ctrl-C, which saves one."
        )
    _check_run(run)
    files = {}
    for name, limit in _LIMITS.items():
        path = run.path / name
        if path.is_symlink():
            raise UnsafeCheckpointError(
                f"{path} is a link, and what it leads to would be published: put the file in its place."
            )
        if not path.exists():
            continue
        try:
            files[_ON_THE_HUB.get(name, name)] = read_plain(path, int(limit))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be shared: {error.strerror or error}.") from error
    if "versions.json" in files:
        files["versions.json"] = _without_command(files["versions.json"])
    files[_CARD] = card(repo, run.read_configuration(), files).encode()
    return files


def _without_command(data: bytes) -> bytes:
    """Leave out how the run was started: paths of a user's own machine; the card says it by settings."""
    try:
        versions = parse_json(data)
        versions.pop("command", None)
    except (AttributeError, ValueError):
        return b"{}\n"
    return (json.dumps(versions, indent=2) + "\n").encode()


# Coming down --------------------------------------------------------------------------------


def _check_run(run: Run) -> None:
    """Refuse a directory that is not a run which can be used; no code of it runs.

    :raises CheckpointError: saying why
    """
    settings = run.read_configuration()
    try:
        complete(settings)
    except ConfigurationError as error:
        raise CheckpointError(f"{run.path}/config.yaml cannot be used: {error}") from error
    for best in (False, True):
        path = run.model_path(best)
        if path.exists() or not best:
            if is_foreign(path):
                raise foreign_refusal(str(path))
            read_model(path)


def _refuse_taken(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigurationError(f"{out} exists already: give another directory with --out.")


def _refuse_other(repo: str, there: list[str]) -> None:
    """Refuse a repository that holds no run."""
    missing = [name for name in _NEEDED if name not in there]
    if not missing:
        return
    pickles = [name for name in there if name.lower().endswith(_PICKLES) and name not in _LIMITS]
    if "model.zip" in missing and pickles:
        raise UnsafeCheckpointError(
            f"{repo} holds no run of acktr's, but {pickles[0]!r}, which may have to be unpickled, and "
            "that can run any code: nothing was fetched."
        )
    raise CheckpointError(
        f"{repo} holds no run of acktr's ({' and '.join(missing)} missing): give one that `acktr push` "
        "has made."
    )


def _refuse_size(repo: str, name: str, size: int | None) -> None:
    if size is None:
        raise UnsafeCheckpointError(f"{name} of {repo} is no file: nothing was kept.")
    if size > _LIMITS[name]:
        raise UnsafeCheckpointError(
            f"{name} of {repo} has {size:,} bytes, more than the {_LIMITS[name]:,.0f} that are fetched: "
            "nothing was kept."
        )


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """Make two directories beside a place, and put the second there if all went well.

    :param out: the place
    """
    made = [path for path in out.parents if not path.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            staging = Path(folder, "run")
            staging.mkdir()
            yield Path(folder), staging
            if out.is_dir():
                out.rmdir()  # Windows replaces no directory, not even an empty one
            os.rename(staging, out)
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            problem = error.strerror or error
            raise ConfigurationError(
                f"{out} cannot be made ({problem}): give another directory with --out."
            ) from error
        raise


# The client ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _asking(repo: str, done: str) -> Iterator[Any]:
    """Ask the Hub; what its client raises becomes a sentence.

    :param repo: which is asked about
    :param done: what was to be done with it
    :raises ConfigurationError: saying what is wrong
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="acktr", library_version=acktr.__version__)
    try:
        with quiet():
            yield api
    except AcktrError:
        raise
    except Exception as error:  # whatever its HTTP client, sockets and TLS raise
        raise ConfigurationError(_said(error, errors, repo, done, api.endpoint)) from error


def _said(error: BaseException, errors: Any, repo: str, done: str, endpoint: str) -> str:
    """Say what is wrong, by the first of the errors of which one led to the next."""
    while error.__cause__ is not None and not isinstance(error, errors.HfHubHTTPError):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(getattr(error, "server_message", None) or error).split()).rstrip(".")
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is only for those whom its owner lets in: ask on {endpoint}/{repo}, and {log_in}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no repository {repo}, or you may not see it: look at its name, or {log_in}."
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"{repo} cannot be {done} without a token that the Hub knows: {log_in}."
    if status == 403:
        return (
            f"{repo} cannot be {done}, for your token does not allow it: take one that may write there."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repo} cannot be {done} while HF_HUB_OFFLINE is set: unset it."
    return f"{repo} could not be {done} by way of {endpoint} ({type(error).__name__}: {reason[:300]})."
