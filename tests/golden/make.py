"""Make the golden files of the present format: ``python -m tests.golden.make`` in a checkout.

They stay as they are for as long as their version of the format is read; a new version adds files.
"""

import json
from pathlib import Path

import numpy as np
import torch

from acktr import ACKTR, Natural, NaturalCritic
from acktr.files.bundle import VERSION
from acktr.files.checkpoints import CheckpointStore, pack_checkpoint
from acktr.run.state import capture_learner
from tests.helpers import small_envs

HERE = Path(__file__).parent
OBSERVATIONS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


class Small(small_envs.Small):
    """Their environment, by the name that the files of version 1 have for it."""

    __module__ = "tests.small_envs"


def build() -> ACKTR:
    return ACKTR(
        "MlpPolicy",
        small_envs.small_env(cls=Small),
        n_steps=8,
        seed=0,
        natural=Natural(kfac_kwargs={"momentum": 0.5}),
        # As when the files of version 1 were made: momentum the actor's alone, returns as they are.
        critic=NaturalCritic(kfac_kwargs={"momentum": 0.0}, normalize_targets=False),
        policy_kwargs={"net_arch": [2]},
    )


def answers(model: ACKTR) -> dict:
    with torch.no_grad():
        values = model.policy.predict_values(torch.as_tensor(OBSERVATIONS)).flatten().tolist()
    return {"values": values, "steps": model.num_timesteps, "kl_scale": model.parts.trust_region.scale}


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained = build().learn(64)
    trained.save(HERE / f"model-v{VERSION}.zip")
    components, _ = capture_learner(trained)
    store = CheckpointStore(HERE / f"checkpoints-v{VERSION}")
    store.save(64, pack_checkpoint(64, components, {"exact": True, "updates": 4}))
    (HERE / f"answers-v{VERSION}.json").write_text(json.dumps(answers(trained), indent=1) + "\n")
