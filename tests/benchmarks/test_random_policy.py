"""The zero of normalised scores."""

from benchmarks import random_policy, suites
from benchmarks.suites import data


def test_every_task_has_its_score():
    tasks = {env_id for name in random_policy.SUITES for env_id in suites.load(name).envs}
    assert set(data.random_policy()) == tasks


def test_a_seed_says_what_it_plays(monkeypatch):
    monkeypatch.setattr(random_policy, "EPISODES", 5)
    returns = random_policy.play("CartPole-v1")
    assert returns == random_policy.play("CartPole-v1")
    assert len(set(returns)) > 1
    assert all(5 < value < 100 for value in returns)
