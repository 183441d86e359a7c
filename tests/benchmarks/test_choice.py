"""The table by which an algorithm is chosen."""

import pytest

from benchmarks import suites
from benchmarks.suites.choice import missing, table, text
from benchmarks.suites.data import SuiteData
from tests.helpers.small_suite import small_suite


def test_the_suite_is_what_the_page_promises():
    suite = suites.load("off_policy")
    trials = suite.trials()
    assert {trial.env_id for trial in trials} == {"HalfCheetah-v5", "Walker2d-v5", "Hopper-v5"}
    assert {trial.algo for trial in trials} == {"acktr", "ppo", "sac", "tqc"}
    assert {trial.n_timesteps for trial in trials} == {300_000}
    assert len(trials) == 3 * 4 * 2


def test_returns_after_the_same_seconds(tmp_path):
    """ACKTR makes its million steps in 100 s, the others a tenth of theirs, less the point there."""
    data = small_suite(tmp_path, {("HalfCheetah-v5", x): (1000.0, 1000.0) for x in ("acktr", "ppo")})
    rows = table(data).splitlines()[2:]
    after = -285 + (1000 + 285) * 0.1
    assert rows == [
        "| HalfCheetah-v5 | acktr | 2/4 | 1000 | 100 | 1000 |",
        f"| HalfCheetah-v5 | ppo | 2/4 | 1000 | 1,000 | {after:.0f} |",
    ]
    assert missing(data) == (
        "Not measured yet: acktr on HalfCheetah-v5 (2 of 4 seeds), "
        "ppo on HalfCheetah-v5 (2 of 4 seeds), trpo on HalfCheetah-v5 (4 of 4 seeds), "
        "acktr on Reacher-v5 (4 of 4 seeds), ppo on Reacher-v5 (4 of 4 seeds), "
        "trpo on Reacher-v5 (4 of 4 seeds)."
    )


def test_without_ours_seconds_say_nothing(tmp_path):
    data = small_suite(tmp_path, {("HalfCheetah-v5", "ppo"): (1000.0,)})
    assert table(data).splitlines()[2:] == ["| HalfCheetah-v5 | ppo | 1/4 | 1000 | – | – |"]


def test_what_is_not_measured_is_said(tmp_path):
    nothing = SuiteData("small", small_suite(tmp_path / "a", {}).suite, tmp_path / "none")
    assert text(nothing) == (
        "**Nothing of this is measured yet**: acktr, ppo, trpo on HalfCheetah-v5, Reacher-v5, 24 runs."
    )
    finals = {
        (env, x): (1.0,) for env in ("HalfCheetah-v5", "Reacher-v5") for x in ("acktr", "ppo", "trpo")
    }
    assert missing(small_suite(tmp_path / "b", finals, seeds=1)) == "All of it is measured."


@pytest.mark.parametrize("algo", ["sac", "tqc"])
def test_peers_have_the_zoos_settings(algo):
    from acktr.compare.trial import complete_settings

    trials = [trial for trial in suites.load("off_policy").trials() if trial.algo == algo]
    settings = [complete_settings(trial) for trial in trials]
    assert {found["learning_starts"] for found in settings} == {10_000}
    assert all(not found.get("normalize") for found in settings)
