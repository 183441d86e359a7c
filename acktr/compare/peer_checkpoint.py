"""The file that a peer goes on from after its process was killed, written every few minutes."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from acktr.compare.curve import LearningCurve
from acktr.envs.normalization import normalization_state, set_normalization_state
from acktr.errors import CheckpointWriteError
from acktr.files.durable import open_plain, write_file

FILE = "peer.pt"
SECONDS_BETWEEN = 300.0


class PeerCheckpoint(BaseCallback):
    """Saves a peer and its learning curve, between an update and the next rollout.

    The file holds the parameters, the state of their optimiser, what ``VecNormalize`` has measured, the
    curve, and what an off-policy peer has in its replay buffer. It does not hold environments and random
    numbers: a peer goes on in new episodes.

    :param folder: where the file :data:`FILE` is written
    :param curve: of the same training
    """

    def __init__(self, folder: Path, curve: LearningCurve) -> None:
        super().__init__()
        self._path = folder / FILE
        self._curve = curve
        self._saved_at = time.monotonic()

    def _on_rollout_start(self) -> None:
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN:
            self.save()

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Write the file, in place of an earlier one.

        :raises CheckpointWriteError: it cannot be written; the earlier one is whole
        """
        normalize = self.model.get_vec_normalize_env()
        data = io.BytesIO()
        torch.save(
            {
                "num_timesteps": self.model.num_timesteps,
                "parameters": self.model.get_parameters(),
                "variables": _variables(self.model),
                "replay": _replay(self.model),
                "statistics": None if normalize is None else normalization_state(normalize),
                "curve": self._curve.state_dict(),
            },
            data,
        )
        try:
            write_file(self._path, data.getvalue())
        except OSError as error:
            raise CheckpointWriteError(
                f"{self._path} cannot be written ({error.strerror or error}): make room, and "
                "give the same command again, which goes on from the checkpoint before."
            ) from error
        self._saved_at = time.monotonic()


def restore(model: BaseAlgorithm, curve: LearningCurve, folder: Path, seed: int) -> None:
    """Put a new model and a new curve where a :class:`PeerCheckpoint` saved them, if it did.

    :param model: made with the settings and the environments of the one that was saved
    :param curve: of the same length
    :param folder: of the file
    :param seed: of the training; the steps done are added, so that no random number comes twice
    """
    path = folder / FILE
    if not path.exists():
        return
    with open_plain(path) as file:
        saved = torch.load(file, map_location=model.device, weights_only=True)
    model.set_parameters(saved["parameters"], device=model.device)
    for name, value in saved["variables"].items():
        getattr(model, name).data.copy_(value)
    _put_replay(model, saved["replay"])
    model.num_timesteps = saved["num_timesteps"]
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        set_normalization_state(normalize, saved["statistics"])
    curve.load_state_dict(saved["curve"])
    curve.resumed_at.append(model.num_timesteps)
    model.set_random_seed(seed + model.num_timesteps)


_OF_STEPS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _variables(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the tensors that are in no network: the logarithm of SAC's entropy coefficient."""
    names = model._get_torch_save_params()[1]
    found = {name: getattr(model, name, None) for name in names}
    return {name: value.detach() for name, value in found.items() if value is not None}


def _replay(model: BaseAlgorithm) -> dict[str, Any] | None:
    """Return the part of a replay buffer that is filled; ``None`` where a peer has none."""
    buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
    if buffer is None:
        return None
    n = buffer.size()

    def filled(values: Any) -> Any:
        # Observations may be a mapping of arrays.
        if isinstance(values, Mapping):
            return {key: filled(value) for key, value in values.items()}
        return torch.from_numpy(values[:n])

    steps = {name: filled(getattr(buffer, name)) for name in _OF_STEPS}
    return {"pos": buffer.pos, "full": buffer.full, "steps": steps}


def _put_replay(model: BaseAlgorithm, saved: Mapping[str, Any] | None) -> None:
    buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
    if buffer is None or saved is None:
        return

    def put(into: Any, values: Any) -> None:
        if isinstance(values, Mapping):
            for key, value in values.items():
                put(into[key], value)
        else:
            into[: len(values)] = values.numpy()

    for name, values in saved["steps"].items():
        put(getattr(buffer, name), values)
    buffer.pos, buffer.full = saved["pos"], saved["full"]
