"""The running statistics of SB3's ``VecNormalize`` as JSON, so that loading executes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from acktr.errors import DamagedCheckpointError
from acktr.files.durable import write_file
from acktr.files.reading import parse_json, read_plain

_MAX_FILE = 2**26  # bytes
_SETTINGS = (
    "norm_obs",
    "norm_reward",
    "clip_obs",
    "clip_reward",
    "gamma",
    "epsilon",
    "norm_obs_keys",
)


def normalization_state(env: VecNormalize) -> dict[str, Any]:
    """Return the running statistics as plain values; Python's floats survive JSON bit for bit."""
    statistics: dict[str, Any] = {"returns": _to_plain(env.ret_rms)}
    if env.norm_obs:
        observations: Any = env.obs_rms
        if isinstance(observations, dict):
            statistics["observations"] = {k: _to_plain(rms) for k, rms in observations.items()}
        else:
            statistics["observations"] = _to_plain(observations)
    return statistics


def set_normalization_state(env: VecNormalize, state: dict[str, Any]) -> None:
    """Undo :func:`normalization_state`.

    :raises ValueError: also KeyError and TypeError: the statistics are of other observations
    """
    _fill(env.ret_rms, state["returns"])
    if env.norm_obs:
        observations: Any = env.obs_rms
        if isinstance(observations, dict):
            for key, rms in observations.items():
                _fill(rms, state["observations"][key])
        else:
            _fill(observations, state["observations"])


def normalization_content(env: VecNormalize) -> dict[str, Any]:
    """Return settings and running statistics as plain values.

    :param env: the wrapper that has them
    """
    return {
        "settings": {name: getattr(env, name) for name in _SETTINGS},
        **normalization_state(env),
    }


def save_normalization(env: VecNormalize, path: Path) -> None:
    """Write settings and running statistics.

    :param env: the wrapper whose statistics are written
    :param path: the file to write
    """
    write_file(path, json.dumps(normalization_content(env)).encode())


def load_normalization(env: VecNormalize, path: Path) -> None:
    """Put saved statistics into a wrapper that was built with the same settings.

    :param env: the wrapper to fill
    :param path: what :func:`save_normalization` wrote
    :raises DamagedCheckpointError: if the file is missing, damaged, or of other shapes
    """
    try:
        content = parse_json(read_plain(path, _MAX_FILE))
    except (OSError, ValueError) as error:
        raise _refusal(str(path), error) from error
    put_normalization(env, content, str(path))


def put_normalization(env: VecNormalize, content: Any, where: str) -> None:
    """Put statistics into a wrapper that was built with the same settings.

    :param env: the wrapper to fill
    :param content: what :func:`normalization_content` returned
    :param where: names it in the message
    :raises DamagedCheckpointError: if they are damaged, or of other shapes
    """
    try:
        set_normalization_state(env, content)
    except (ValueError, LookupError, TypeError) as error:
        raise _refusal(where, error) from error


def _refusal(where: str, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The normalisation statistics {where} cannot be used ({error}): restore the file, or train "
        "again."
    )


def _to_plain(rms: RunningMeanStd) -> dict[str, Any]:
    return {"mean": rms.mean.tolist(), "var": rms.var.tolist(), "count": float(rms.count)}


def _fill(rms: RunningMeanStd, saved: dict[str, Any]) -> None:
    mean = np.asarray(saved["mean"], dtype=np.float64)
    var = np.asarray(saved["var"], dtype=np.float64)
    if mean.shape != rms.mean.shape or var.shape != rms.mean.shape:
        raise ValueError(f"shape {mean.shape} where the environment has {rms.mean.shape}")
    count = float(saved["count"])
    # "not": NaN is neither.
    if np.isnan(mean).any() or not (var >= 0).all() or not count >= 0:
        raise ValueError("NaN, or a variance or a count below 0")
    rms.mean, rms.var, rms.count = mean, var, count
