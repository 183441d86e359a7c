"""Ids that make several environments at a time and none alone."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from acktr.cli import main
from acktr.compare.peers import build_env
from acktr.envs import make_vec_env
from acktr.envs.code import environment_code
from acktr.errors import ConfigurationError
from acktr.run.build import make

_LENGTHS = (3, 5)
_BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Pairs(gym.vector.VectorEnv):
    """Environments in pairs: the first is cut after 3 steps, the second ends after 5."""

    def __init__(
        self, num_envs, max_episode_steps=None, space=_BOX, mode=AutoresetMode.SAME_STEP, broken=False
    ):
        if broken:
            raise KeyError("no such scene")
        self.metadata = {"autoreset_mode": mode}
        self.num_envs = num_envs + num_envs % 2
        self.single_observation_space, self.single_action_space = space, spaces.Discrete(2)
        self.observation_space = batch_space(space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.lengths = np.resize(_LENGTHS, self.num_envs)
        self.shown = np.zeros((self.num_envs, 2), np.float32)  # one memory for all answers

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.times = np.zeros(self.num_envs, int)
        self._draw(np.arange(self.num_envs))
        return self.shown, {}

    def _draw(self, indices):
        self.shown[indices] = self.np_random.uniform(-1, 1, (len(indices), 2))

    def step(self, actions):
        self.times += 1
        self._draw(np.arange(self.num_envs))
        ends = self.times >= self.lengths
        infos = {"final_obs": self.shown.copy(), "_final_obs": ends} if ends.any() else {}
        self._draw(np.flatnonzero(ends))
        self.times[ends] = 0
        odd = np.arange(self.num_envs) % 2 == 1
        return self.shown, actions.astype(float), ends & odd, ends & ~odd, infos


gym.register("Pairs-v0", entry_point=None, vector_entry_point=Pairs)


def test_they_step_as_others_do():
    env = make_vec_env("Pairs-v0", 3, seed=0)
    assert (env.num_envs, env.backend) == (4, "gymnasium")
    first = env.reset()
    for time in range(1, 6):
        observations, rewards, dones, infos = env.step(np.array([1, 1, 0, 0]))
        assert rewards.tolist() == [1, 1, 0, 0]
        assert dones.tolist() == [time == 3, time == 5] * 2
    assert infos[1]["episode"]["r"] == infos[1]["episode"]["l"] == 5
    assert infos[1]["TimeLimit.truncated"] is False
    assert not np.array_equal(infos[1]["terminal_observation"], observations[1])
    env.seed(0)
    again = env.reset()
    env.step(np.zeros(4, int))
    assert np.array_equal(first, again)
    env.close()


def test_what_time_ends_is_told():
    env = make_vec_env("Pairs-v0", 2, seed=0)
    env.reset()
    for _ in range(3):
        infos = env.step(np.zeros(2, int))[3]
    assert infos[0]["TimeLimit.truncated"] is True
    env.close()


def test_acktr_learns_and_peers_have_the_same():
    model = make("Pairs-v0", preset="classic", n_envs=3, backend="gymnasium")
    model.learn(model.n_steps * model.n_envs)
    assert model.n_envs == 4
    model.env.close()
    env = build_env("Pairs-v0", {}, 3, 0)
    assert env.num_envs == 4
    env.close()


def test_the_command_line_trains_and_evaluates(tmp_path):
    run = str(tmp_path / "run")
    arguments = ["Pairs-v0", "--steps", "300", "--out", run]
    assert main(["train", *arguments]) == 0
    assert main(["evaluate", run, "--episodes", "3"]) == 0
    assert __name__ in environment_code("Pairs-v0", {})  # so that a resumed run sees a change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "subproc"}, "does not have Pairs-v0: choose from auto, gymnasium"),
        ({"wrapper": lambda env: env}, "makes no environment alone that could be wrapped"),
        ({"pixels": True}, "makes no environment alone that could be drawn"),
        ({"env_kwargs": {"broken": True}}, "Pairs-v0 cannot be built: KeyError: 'no such scene'"),
        (
            {"env_kwargs": {"mode": AutoresetMode.NEXT_STEP}},
            "the autoreset mode NEXT_STEP: acktr needs SAME_STEP",
        ),
        ({"env_kwargs": {"space": spaces.Dict({"a": _BOX})}}, "observes a Dict: make each"),
        ({"env_kwargs": {"space": spaces.Text(3)}}, "Pairs-v0 .*Text"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_vec_env("Pairs-v0", 2, **arguments)
