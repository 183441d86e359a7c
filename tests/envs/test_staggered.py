"""Resets at different times: when they come, what a learner sees of them, and who is left alone."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from acktr import ACKTR, distributed
from acktr.envs import make_vec_env
from acktr.envs.staggered import stagger, staggering
from acktr.envs.state import NotCapturable, capture, restore
from acktr.errors import ConfigurationError, WorkerError
from tests.helpers.small_envs import ACTIONS, MIXED, VECTOR, Small

LENGTH, N_ENVS = 12, 4
# Episodes of 12 steps begin together; the second ones are cut after 3, 6, 9 and none.
ENDS = [(12, [0, 1, 2, 3]), (15, [0]), (18, [1]), (21, [2]), (24, [3]), (27, [0]), (30, [1])]


def build(cls=DummyVecEnv, monitor=True, space=VECTOR, n_envs=N_ENVS, **kwargs):
    def one():
        env = Small(space, ACTIONS["Box"], LENGTH, **kwargs)
        return Monitor(env) if monitor else env

    env = cls([one] * n_envs)
    env.seed(0)
    return env


class Ends(BaseCallback):
    """Notes at which step of an environment episodes end, and the infos of the last step."""

    def __init__(self):
        super().__init__()
        self.ends, self.infos = [], {}

    def _on_step(self):
        over = np.flatnonzero(self.locals["dones"]).tolist()
        if over:
            step = self.num_timesteps // self.training_env.num_envs
            self.ends.append((step, over))
            self.infos.update({(step, i): self.locals["infos"][i] for i in over})
        return True


def learned(env, steps=30, **kwargs):
    seen = Ends()
    model = ACKTR(
        "MultiInputPolicy" if env.observation_space == MIXED else "MlpPolicy", env, seed=0, **kwargs
    )
    model.learn(steps * env.num_envs, seen)
    return model, seen


@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_episodes_that_began_together_end_at_different_times(cls):
    env = VecNormalize(build(cls))
    _, seen = learned(env, n_steps=10)
    assert seen.ends[: len(ENDS)] == ENDS
    cut, whole = seen.infos[15, 0], seen.infos[27, 0]
    assert cut["TimeLimit.truncated"]
    assert "episode" not in cut
    assert cut["terminal_observation"].shape == VECTOR.shape
    assert whole["TimeLimit.truncated"]
    assert whole["episode"]["l"] == LENGTH
    env.close()


@pytest.mark.parametrize("backend", ["gymnasium", "subproc"])
def test_our_own_engines_take_part(backend):
    env = make_vec_env("Pendulum-v1", 2, 0, backend=backend)
    _, seen = learned(env, 420, n_steps=64)
    assert seen.ends == [(200, [0, 1]), (300, [0]), (400, [1])]
    env.close()


def test_wrappers_see_the_cut_as_any_other_end():
    env = VecFrameStack(build(), 2)
    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append((self.locals["new_obs"].copy(), self.locals["infos"]))
            return True

    ACKTR("MlpPolicy", env, seed=0, n_steps=15).learn(15 * N_ENVS, Look())
    stacked, infos = seen[14]  # after step 15
    width = VECTOR.shape[0]
    assert (stacked[0, :width] == 0).all()
    assert (stacked[0, width:] != 0).any()
    assert (stacked[1, :width] != 0).any()  # which goes on
    np.testing.assert_array_equal(infos[0]["terminal_observation"][:width], seen[13][0][0, width:])


def test_dictionaries_begin_anew_part_by_part():
    env = build(space=MIXED)
    _, seen = learned(env, 16, n_steps=16)
    assert seen.ends == ENDS[:2]
    last = seen.infos[15, 0]["terminal_observation"]
    assert {key: part.shape for key, part in last.items()} == {
        k: s.shape for k, s in MIXED.spaces.items()
    }


def test_what_an_environment_tells_at_its_reset_is_kept():
    class Tells(Small):
        def reset(self, *, seed=None, options=None):
            observation, _ = super().reset(seed=seed)
            return observation, {"episode": self.episodes}

    env = DummyVecEnv([lambda: Tells(VECTOR, ACTIONS["Box"], LENGTH)] * 2)
    learned(env, 19, n_steps=19)
    assert [info["episode"] for info in env.reset_infos] == [3, 2]


def test_episodes_that_end_of_themselves_are_left_alone():
    runs = []
    for staggered in (True, False):
        env = build(ends="terminated")
        model, seen = learned(env, 40, n_steps=20, staggered_resets=staggered)
        assert all(over == [0, 1, 2, 3] for _, over in seen.ends)
        runs.append([p.detach().clone() for p in model.policy.parameters()])
    assert all((a == b).all() for a, b in zip(*runs, strict=True))


def test_none_is_cut_where_none_shall_be():
    _, seen = learned(build(), n_steps=10, staggered_resets=False)
    assert all(over == [0, 1, 2, 3] for _, over in seen.ends)


def test_who_evaluates_on_the_environments_of_training_sees_whole_episodes():
    env = build()
    model, _ = learned(env, 12, n_steps=12)
    _, lengths = evaluate_policy(model, env, 12, return_episode_rewards=True)
    assert lengths == [LENGTH] * 12
    env.reset()
    seen = Ends()
    model.set_env(build())
    model.learn(30 * N_ENVS, seen)  # in others, which set_env brought
    assert seen.ends[: len(ENDS)] == ENDS


def test_evaluations_that_training_calls_have_no_wrapper_to_miss():
    env, other = VecNormalize(build()), VecNormalize(build(n_envs=1), training=False)
    seen = EvalCallback(other, n_eval_episodes=2, eval_freq=10, verbose=0)
    ACKTR("MlpPolicy", env, n_steps=10).learn(30 * N_ENVS, seen)
    assert seen.last_mean_reward == pytest.approx(seen.best_mean_reward, abs=20)


def test_a_monitor_that_refuses_is_not_asked():
    env = DummyVecEnv(
        [lambda: Monitor(Small(VECTOR, ACTIONS["Box"], LENGTH), allow_early_resets=False)] * 2
    )
    _, seen = learned(env, n_steps=10)
    assert all(over == [0, 1] for _, over in seen.ends)


def test_an_environment_alone_is_left_alone():
    assert stagger(build(n_envs=1)) is None
    assert stagger(VecNormalize(build())) is not None


def test_it_is_made_once():
    env = VecNormalize(build())
    assert stagger(env) is stagger(env.venv) is staggering(env)


def test_places_are_counted_over_all_ranks(monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    env = build()
    staggered = stagger(env)
    staggered.cutting = True
    env.reset()
    ends = []
    for step in range(1, 31):
        _, _, dones, _ = env.step(np.zeros((N_ENVS, 2), np.float32))
        ends += [(step, i) for i in np.flatnonzero(dones)]
    # 5/8, 6/8, 7/8 and all of 12 steps
    assert [step for step, _ in ends[4:8]] == [12 + 8, 12 + 9, 12 + 11, 12 + 12]


def test_an_environment_that_cannot_begin_anew_is_named():
    class Stubborn(Small):
        def reset(self, *, seed=None, options=None):
            if 0 < getattr(self, "time", 0) < self.length:
                raise RuntimeError("not before the end")
            return super().reset(seed=seed)

    env = DummyVecEnv([lambda: Stubborn(VECTOR, ACTIONS["Box"], LENGTH)] * 2)
    with pytest.raises(WorkerError, match=r"Environment 0 could not begin .*staggered_resets=False"):
        learned(env, n_steps=10)


def test_no_switch_but_true_and_false():
    with pytest.raises(ConfigurationError, match="staggered_resets must be True or False"):
        ACKTR("MlpPolicy", build(), staggered_resets=1)


def test_the_state_of_environments_has_it():
    def ends(env, n):
        found = []
        for _ in range(n):
            _, _, dones, _ = env.step(np.zeros((2, 1), np.float32))
            found.append(dones.tolist())
        return found

    def pendulums():
        env = make_vec_env("Pendulum-v1", 2, 0, backend="gymnasium")
        stagger(env).cutting = True
        env.reset()
        return env

    env = pendulums()
    ends(env, 250)
    state = capture(env)
    expected = ends(env, 300)
    assert [True, False] in expected
    other = pendulums()
    restore(other, state)
    assert ends(other, 300) == expected
    del state["environments"]["staggered"]  # as files of before
    restore(other, state)
    assert [True, False] not in ends(other, 300)
    state["environments"]["staggered"] = {"cuts": np.zeros(3)}
    with pytest.raises(NotCapturable, match="what is counted of episodes"):
        restore(other, state)
