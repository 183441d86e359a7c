"""Weights & Biases and MLflow: whatever is logged arrives there too, as one more output of SB3's logger.

A tracker that fails while training runs is told once, and training goes on without it.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    Figure,
    HParam,
    Image,
    KVWriter,
    Logger,
    Video,
    filter_excluded_keys,
)

from acktr.envs.lookup import is_installed
from acktr.errors import ConfigurationError
from acktr.files.durable import write_file
from acktr.files.reading import MAX_TEXT, parse_json, read_plain
from acktr.presets import Configuration
from acktr.run.directory import Run
from acktr.run.quiet import quiet
from acktr.run.tables import ProgressTable

_PROJECT = "acktr"
_STEPS = "time/total_timesteps"
_ROWS = 100  # MLflow takes no more parameters at once


class Tracker(KVWriter):
    """A run in a tracker.

    :param path: the run directory
    :param settings: of the run, as plain values
    :param ident: of the tracked run; ``None`` makes one
    """

    name: str
    ident: str
    _is_lost = False

    @abstractmethod
    def __init__(self, path: Path, settings: Mapping[str, Any], ident: str | None) -> None: ...

    @abstractmethod
    def _log(self, values: dict[str, Any], step: int) -> None: ...

    @abstractmethod
    def film(self, path: Path) -> None:
        """Add a film.

        :param path: the mp4 file
        """

    @abstractmethod
    def _end(self) -> None: ...

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Send the values of one dump; settings are known already."""
        if self._is_lost:
            return
        values = filter_excluded_keys(key_values, key_excluded, self.name)
        try:
            with quiet():
                self._log({k: v for k, v in values.items() if not isinstance(v, HParam)}, step)
        except Exception as error:  # a network that is gone, a full disk, a quota
            self._is_lost = True
            text = f"{self.name} takes nothing more ({_reason(error)}). Training goes on without it."
            warnings.warn(text, UserWarning, stacklevel=2)

    def close(self) -> None:
        """End the tracked run; it can be gone on with."""
        try:
            with quiet():
                self._end()
        except Exception as error:
            text = f"{self.name} could not be closed ({_reason(error)})."
            warnings.warn(text, UserWarning, stacklevel=2)


class Wandb(Tracker):
    """A run in Weights & Biases, of the project ``acktr``, or of ``WANDB_PROJECT``."""

    name = "wandb"

    def __init__(self, path: Path, settings: Mapping[str, Any], ident: str | None) -> None:
        import wandb

        self.ident = ident or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=path.name,
            id=self.ident,
            resume="allow",
            dir=str(path),
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def _log(self, values: dict[str, Any], step: int) -> None:
        # Of a step before the last one it takes nothing: after a resume these are what it has.
        self._run.log({key: self._shown(value) for key, value in values.items()}, step=step)

    def _shown(self, value: Any) -> Any:
        import wandb

        if isinstance(value, Figure):
            # Given a figure, it looks for matplotlib.pyplot, which is not imported here.
            return wandb.Image(_drawn(value))
        if isinstance(value, Image):
            return wandb.Image(_picture(value))
        if isinstance(value, Video):
            return wandb.Video(io.BytesIO(_gif(value)), format="gif")
        return value

    def film(self, path: Path) -> None:
        """Add a film."""
        import wandb

        self._run.log({"film": wandb.Video(str(path), format="mp4")})

    def _end(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run in MLflow, of the experiment ``acktr``, or of ``MLFLOW_EXPERIMENT_NAME``."""

    name = "mlflow"

    def __init__(self, path: Path, settings: Mapping[str, Any], ident: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        self._last = -1.0
        if ident is not None:
            self.ident = ident
            self._client.update_run(ident, status="RUNNING")
            self._last = self._client.get_run(ident).data.metrics.get(_STEPS, -1.0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self.ident = self._client.create_run(experiment, run_name=path.name).info.run_id
        parameters = [Param(_key(key), str(value)[:500]) for key, value in flat(settings)]
        for start in range(0, len(parameters), _ROWS):
            self._client.log_batch(self.ident, params=parameters[start : start + _ROWS])

    def _log(self, values: dict[str, Any], step: int) -> None:
        from mlflow.entities import Metric, RunTag

        if _STEPS in values and step <= self._last:
            return  # after a resume: it has them
        now, metrics, tags = int(time.time() * 1000), [], []
        for key, value in ((_key(key), value) for key, value in values.items()):
            if isinstance(value, Figure):
                self._client.log_figure(self.ident, value.figure, f"{key}-{step}.png")
            elif isinstance(value, Image):
                self._client.log_image(self.ident, _picture(value), f"{key}-{step}.png")
            elif isinstance(value, Video):
                self._file(f"{key}-{step}.gif", _gif(value))
            elif isinstance(value, bool | int | float | np.generic):
                metrics.append(Metric(key, float(value), now, step))
            else:
                tags.append(RunTag(key, str(value)))
        self._client.log_batch(self.ident, metrics=metrics, tags=tags)

    def _file(self, name: str, data: bytes) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(data)
            self._client.log_artifact(self.ident, str(path), str(Path(name).parent))

    def film(self, path: Path) -> None:
        """Add a film."""
        self._client.log_artifact(self.ident, str(path))

    def _end(self) -> None:
        self._client.set_terminated(self.ident)


_TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that cannot be used, before anything is trained or written.

    :param name: of it, ``None`` for none
    :raises ConfigurationError: it is not installed, wants a login, or its server does not answer
    """
    if name is None:
        return
    if not is_installed(name):
        package = f"acktr[{name}]" if name in _TRACKERS else name
        raise ConfigurationError(
            f'tracker={name} needs {name}, which is not installed: run `pip install "{package}"`.'
        )
    try:
        with quiet():
            if name == "wandb":
                _check_wandb()
            elif name == "mlflow":
                _check_mlflow()
    except ConfigurationError:
        raise
    except Exception as error:  # whatever its HTTP client or its database raises
        raise ConfigurationError(f"tracker={name} cannot be used ({_reason(error)}).") from error


def _check_wandb() -> None:
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
        raise ConfigurationError(
            "tracker=wandb wants a login: run `wandb login`, or set WANDB_MODE=offline."
        )


def _check_mlflow() -> None:
    from mlflow import MlflowClient

    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "1"  # its seven last four minutes
    try:
        MlflowClient().search_experiments(max_results=1)
    finally:
        if before is None:
            del os.environ[name]


def open_tracker(run: Run, configuration: Configuration, resumed: bool) -> Tracker | None:
    """Begin a tracked run, or go on with the one of a run that is resumed; ``None`` without a tracker.

    :param run: the run directory, which keeps the name of the tracked run
    :param configuration: the settings
    :param resumed: whether it goes on
    :raises ConfigurationError: the tracker refuses
    """
    if configuration.tracker not in _TRACKERS:
        return None
    ident = tracked(run, configuration.tracker) if resumed else None
    tracker = _open(configuration.tracker, run, configuration.model_dump(mode="json"), ident)
    content = {"tracker": tracker.name, "id": tracker.ident}
    write_file(run.path / "tracker.json", (json.dumps(content) + "\n").encode())
    return tracker


def _open(name: str, run: Run, settings: Mapping[str, Any], ident: str | None) -> Tracker:
    try:
        with quiet():
            return _TRACKERS[name](run.path, settings, ident)
    except Exception as error:
        raise ConfigurationError(f"tracker={name} cannot be used ({_reason(error)}).") from error


def tracked(run: Run, name: str) -> str | None:
    """Return by which name a tracker knows a run; ``None`` if it does not.

    :param run: the run directory
    :param name: of the tracker
    """
    try:
        content = parse_json(read_plain(run.path / "tracker.json", MAX_TEXT))
        ident = content["id"] if content["tracker"] == name else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return ident if isinstance(ident, str) and re.fullmatch(r"[\w-]{1,64}", ident) else None


def track_film(run: Run, path: Path) -> None:
    """Add a film of a run to the tracked run, if there is one.

    :param run: the run directory
    :param path: the film
    :raises ConfigurationError: the tracker refuses
    """
    settings = run.read_configuration()
    name = str(settings.get("tracker"))
    ident = tracked(run, name) if name in _TRACKERS else None
    if ident is None:
        return
    check_tracker(name)
    tracker = _open(name, run, settings, ident)
    try:
        with quiet():
            tracker.film(path)
    except Exception as error:
        raise ConfigurationError(f"{name} does not take the film ({_reason(error)}).") from error
    finally:
        tracker.close()


def tell_trackers(logger: Logger, values: dict[str, Any], step: int) -> None:
    """Send values of a whole run to TensorBoard and the tracker; the table is of updates alone.

    :param logger: of the run
    :param values: by name
    :param step: steps so far
    """
    for output in logger.output_formats:
        if not isinstance(output, ProgressTable):
            output.write(values, dict.fromkeys(values, ()), step)


def hyperparameters(settings: Mapping[str, Any]) -> HParam:
    """Turn settings into what TensorBoard shows as hyperparameters."""
    shown = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in flat(settings)}
    return HParam(shown, {"rollout/ep_rew_mean": 0.0, "final/mean_return": 0.0})


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings with dotted names, as ``--set`` takes them."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name)


def _drawn(figure: Figure) -> Any:
    from PIL import Image as Picture

    data = io.BytesIO()
    figure.figure.savefig(data, format="png")
    return Picture.open(data)


def _picture(image: Image) -> np.ndarray:
    """Return a picture as ``(H, W, C)`` or ``(H, W)``."""
    array = np.asarray(image.image)
    return array.transpose(1, 2, 0) if image.dataformats == "CHW" else array


def _gif(video: Video) -> bytes:
    """Encode the first of the films that SB3 hands over as ``(N, T, C, H, W)``."""
    from PIL import Image as Picture

    frames = np.asarray(video.frames)[0].transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        frames = (np.clip(frames, 0.0, 1.0) * 255).astype(np.uint8)
    first, *others = [Picture.fromarray(frame.squeeze()) for frame in frames]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=others, duration=1000 / video.fps, loop=0)
    return data.getvalue()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}"[:300]
