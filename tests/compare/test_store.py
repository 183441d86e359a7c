"""The store: whole at any moment, sorted, and nothing twice."""

import json

import numpy as np
import pytest

from acktr.compare.store import Store
from acktr.compare.trial import Trial
from acktr.errors import CheckpointError, ConfigurationError
from tests.helpers.small_suite import SESSION, outcome


def add(store, seed=0, final=100.0, label="ppo", settings=None):
    trial = Trial("HalfCheetah-v5", "ppo", seed, 1_000_000, label)
    store.add(trial, outcome(trial, final), settings or {"a": 1}, SESSION)
    return trial


def test_rows_are_sorted_and_replaced(tmp_path):
    store = Store(tmp_path)
    assert store.rows() == []
    for seed in (10, 2, 1):
        trial = add(store, seed)
    add(store, 2, final=3.0, label="acktr")
    add(store, 2, final=50.0, settings={"a": 2})
    rows = store.rows()
    assert [(row["label"], row["seed"]) for row in rows] == [
        ("acktr", "2"), ("ppo", "1"), ("ppo", "2"), ("ppo", "10")
    ]  # fmt: skip
    assert store.find(trial) == rows[1]
    assert rows[2]["last_100_return"] == "50"
    assert rows[2]["commit"] == "0123456789abcdef+"
    assert json.loads((tmp_path / "settings" / f"{rows[2]['settings']}.json").read_text()) == {"a": 2}
    assert json.loads((tmp_path / "manifest.json").read_text()) == {rows[0]["session"]: SESSION}
    # Nothing half-written is left.
    assert not list(tmp_path.rglob(".*.csv*"))


def test_curves(tmp_path):
    store = Store(tmp_path)
    curve = store.curve(add(store).key)
    assert set(curve) == {"steps", "seconds", "cpu_seconds", "return"}
    assert len(curve["steps"]) == 100
    assert np.isnan(curve["return"][0])
    assert curve["return"][-1] == 100.0


def test_merge(tmp_path):
    ours, theirs = Store(tmp_path / "ours"), Store(tmp_path / "theirs")
    kept = add(ours, 0, final=1.0)
    add(ours, 1, final=1.0)
    trial = add(theirs, 1, final=2.0, settings={"a": 2})
    (theirs.path / "curves" / f"{kept.key}.csv").write_text("of no row there")
    sessions = theirs.manifest()
    (theirs.path / "manifest.json").write_text(json.dumps({**sessions, "of no row there": {}}))
    assert ours.merge(theirs) == 1
    assert ours.manifest().keys() >= sessions.keys()
    assert "of no row there" not in ours.manifest()
    assert ours.curve(kept.key)["return"][-1] == 1.0
    assert [row["last_100_return"] for row in ours.rows()] == ["1", "2"]
    assert ours.curve(trial.key)["return"][-1] == 2.0
    assert len(list((tmp_path / "ours" / "settings").iterdir())) == 2
    with pytest.raises(CheckpointError, match="holds no results"):
        ours.merge(Store(tmp_path / "nowhere"))
    lost = add(theirs, 2, final=3.0).key
    add(theirs, 1, final=3.0)
    (theirs.path / "curves" / f"{lost}.csv").unlink()
    with pytest.raises(CheckpointError, match=f"{lost}.csv is missing, though a row names it"):
        ours.merge(theirs)
    assert ours.curve(trial.key)["return"][-1] == 2.0


def test_git_leaves_the_files_of_trials_alone(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    assert (tmp_path / "trials" / ".gitignore").read_text() == "*\n"


def test_a_lock_is_held_once(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    with store.lock("x", wait=False) as first, store.lock("x", wait=False) as second:
        assert (first, second) == (True, False)
    with store.lock("x", wait=False) as again:
        assert again


def test_refusals(tmp_path):
    (tmp_path / "runs.csv").write_text("env,seed\n")
    with pytest.raises(CheckpointError, match="is not a table of trials"):
        Store(tmp_path).rows()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Store(tmp_path / "runs.csv").prepare()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "null"])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    store = Store(tmp_path)
    add(store)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is (damaged|no manifest)"):
        store.manifest()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        add(store, 1)
    assert len(store.rows()) == 1
