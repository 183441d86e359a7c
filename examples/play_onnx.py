"""An episode of CartPole by onnxruntime and numpy alone: neither torch nor acktr is imported.

    acktr train CartPole-v1
    acktr export runs/CartPole-v1-1 cartpole.onnx
    python examples/play_onnx.py cartpole.onnx

The physics are those of gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983).
"""

import sys
from collections.abc import Sequence

import numpy as np
import onnxruntime


def step(state: np.ndarray, action: int) -> np.ndarray:
    """Return the next position, speed, angle and angular speed ``(4,)``; action 0 is left, 1 right."""
    _, speed, angle, turn = state
    sine, cosine = np.sin(angle), np.cos(angle)
    force = 10.0 if action == 1 else -10.0
    pull = (force + 0.05 * turn**2 * sine) / 1.1
    turned = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    pushed = pull - 0.05 * turned * cosine / 1.1
    return state + 0.02 * np.array([speed, pushed, turn, turned])


def main(arguments: Sequence[str] | None = None) -> int:
    """Play an episode and return its length, 500 at most."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    session = onnxruntime.InferenceSession(path)
    print(f"trained on {session.get_modelmeta().custom_metadata_map['env_id']}")
    state = np.random.default_rng(0).uniform(-0.05, 0.05, 4)
    steps = 0
    while steps < 500 and abs(state[0]) <= 2.4 and abs(state[2]) <= np.radians(12):
        (actions,) = session.run(None, {"observation": state[None].astype(np.float32)})
        state, steps = step(state, int(actions[0])), steps + 1
    print(f"{steps} steps")
    return steps


if __name__ == "__main__":
    main()
