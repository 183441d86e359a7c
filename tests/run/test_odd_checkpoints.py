"""Re-signed checkpoints with one odd value: refused in a sentence or gone on from, no traceback."""

import json
import random
import shutil

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from acktr.cli import main
from acktr.errors import CheckpointError, DamagedCheckpointError
from acktr.files import bundle
from acktr.files.checkpoints import CheckpointStore
from tests.helpers.runs import new, train

pytestmark = pytest.mark.usefixtures("no_pictures", "known_versions")


TOY = "tests.helpers.toy_envs:Toy-v0"
SETTINGS = ("normalize=true", "natural.kfac_kwargs.momentum=0.5", "critic.kind=adam", "n_timesteps=96")
NAN = {"$": "float", "value": "nan"}
ODD = [None, "x", [], {}, NAN, -1, 10**30, 1e300, True, {"$": "tuple", "items": []}, {"$": "zzz"}, 10**8]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that was stopped, its checkpoint's files, and the paths of all values in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acktr.run.training.plot_learning_curve", lambda run: None)
        path = new(tmp_path_factory.mktemp("saved") / "run")
        train(path, TOY, *SETTINGS, stop_at=2)
    newest = CheckpointStore(path / "checkpoints").paths()[-1]
    files = {file.name: file.read_bytes() for file in newest.iterdir()}
    places = [
        (name, place)
        for name, data in sorted(files.items())
        if name.endswith(".json")
        for place in leaves(json.loads(data))
        if name != bundle.MANIFEST or place[:1] == ("info",)
    ]
    return path, newest.name, files, places


def leaves(tree, path=()):
    yield path
    if isinstance(tree, dict):
        for key in tree:
            yield from leaves(tree[key], (*path, key))
    elif isinstance(tree, list):
        for index in {0, len(tree) - 1} if tree else ():
            yield from leaves(tree[index], (*path, index))


def put(tree, path, value):
    if not path:
        return value
    target = tree
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return tree


def forged(saved, folder, name, place, value):
    """Copy the run, with one value of its one checkpoint changed and signed again."""
    path, newest, files, _ = saved
    shutil.copytree(path, folder / "run")
    files = {**files, name: json.dumps(put(json.loads(files[name]), place, value)).encode()}
    manifest = json.loads(files[bundle.MANIFEST])
    contents = {name: data for name, data in files.items() if name != bundle.MANIFEST}
    manifest["files"] = {n: {"size": len(d), "sha256": bundle._digest(d)} for n, d in contents.items()}
    manifest.pop("checksum")
    manifest["checksum"] = bundle._digest(
        json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()
    )
    shutil.rmtree(folder / "run/checkpoints")
    (folder / "run/checkpoints" / newest).mkdir(parents=True)
    for name, data in {**contents, bundle.MANIFEST: json.dumps(manifest).encode()}.items():
        (folder / "run/checkpoints" / newest / name).write_bytes(data)
    return folder / "run"


def resume(path):
    return train(path, TOY, *SETTINGS, resume=True)


def test_the_forger_can_forge(saved, tmp_path):
    path = forged(saved, tmp_path, "run.json", ("seconds",), 5.0)
    model, told = resume(path)
    assert told[-1].endswith("exactly, environments included.")
    assert model.num_timesteps == 96


@pytest.mark.parametrize("draw", range(8))
def test_one_odd_value_anywhere(saved, tmp_path, draw):
    chosen = random.Random(f"odd {draw}")
    for number in range(3):
        (name, place), value = chosen.choice(saved[3]), chosen.choice(ODD)
        path = forged(saved, tmp_path / str(number), name, place, value)
        try:
            _, told = resume(path)
        except CheckpointError as error:
            told = [str(error)]
        assert told[-1].startswith("Resumed at step") or "\n" not in told[-1]


CASES = [
    ("run.json", ("seconds",), "x"),
    ("run.json", ("seconds",), NAN),
    ("run.json", ("seconds",), 1e300),
    ("run.json", ("episodes", "count"), -1),
    ("run.json", ("episodes", "last_returns"), ["x"]),
    ("run.json", ("evaluations", "rows"), None),
    ("run.json", ("evaluations", "n_calls"), "x"),
    ("run.json", ("logger", "name_to_value", "train/kl"), []),
    ("run.json", ("logger", "name_to_excluded", "train/kl"), 5),
    ("run.json", ("progress_rows",), 1.5),
    ("run.json", (), None),
    ("run.json", ("configuration", "n_envs"), "x"),
    ("run.json", ("configuration", "natural"), []),
    ("run.json", ("configuration", "critic", "kind"), "euclidean"),
    ("learner.json", ("num_timesteps",), "x"),
    ("learner.json", ("parts",), []),
    ("learner.json", ("parts", "trust_region"), {}),
    ("learner.json", ("parts", "trust_region", "scale"), NAN),
    ("learner.json", ("parts", "trust_region", "rescales"), -1),
    ("learner.json", ("parts", "discount", "endings"), [True]),
    ("learner.json", ("parts", "advantage_scale", "variance"), -1.0),
    ("learner.json", ("parts", "advantage_scale", "count"), "x"),
    ("learner.json", ("parts", "value_scale", "bellman_std"), None),
    ("learner.json", ("parts", "noise", "scale"), 0.0),
    ("learner.json", (), []),
    ("optimizer.json", ("param_groups", 0, "step"), "x"),
    ("optimizer.json", ("counters",), 5),
    ("optimizer.json", ("curvature_calls",), []),
    ("critic_optimizer.json", ("param_groups", 0, "betas"), {"$": "tuple", "items": [1.0, 1.0]}),
    ("policy.json", (), {}),
    ("rank-0.json", (), 5),
    ("rank-0.json", ("attributes",), {}),
    ("rank-0.json", ("attributes", "_last_obs"), "x"),
    ("rank-0.json", ("attributes", "ep_info_buffer"), [1]),
    ("rank-0.json", ("random", "python", 1, 624), 10**8),
    ("rank-0.json", ("random", "numpy", "state", "pos"), 100_000_000),
    ("rank-0.json", ("random", "actions", "state", "inc"), -1),
    ("rank-0.json", ("random", "torch"), None),
    ("manifest.json", ("info", "updates"), "x"),
    ("manifest.json", ("info", "steps"), "x"),
    ("manifest.json", ("info", "reasons"), [5]),
    ("manifest.json", ("info", "versions"), [5]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {'.'.join(map(str, case[1]))}")
def test_an_odd_value_is_refused(saved, tmp_path, case):
    with pytest.raises(CheckpointError) as caught:
        resume(forged(saved, tmp_path, *case))
    assert "\n" not in str(caught.value)


def test_parameters_that_are_not_finite(saved, tmp_path, monkeypatch):
    load = bundle.load_tensors

    def nan(data, component, where):
        tensors = load(data, component, where)
        return {k: x * np.nan if component == "policy" else x for k, x in tensors.items()}

    path = forged(saved, tmp_path, "run.json", ("seconds",), 5.0)
    monkeypatch.setattr(bundle, "load_tensors", nan)
    with pytest.raises(DamagedCheckpointError, match="are not finite"):
        resume(path)


def test_statistics_that_are_none_begin_anew_or_are_refused(saved, tmp_path):
    place = ("environment", "wrappers", 0, "obs_rms", "object", "count")
    try:
        model, told = resume(forged(saved, tmp_path, "rank-0.json", place, NAN))
    except CheckpointError:
        return
    assert "their state does not fit here" in told[-1]
    env = model.get_vec_normalize_env()
    assert isinstance(env, VecNormalize)
    assert np.isfinite(env.obs_rms.count)


def test_the_terminal_obeys_nothing_of_a_checkpoint(saved, tmp_path, capfd):
    reason = "\x1b[2J\x1b]0;owned\x07 ‮ and \r more"
    path = forged(saved, tmp_path, "manifest.json", ("info", "reasons"), [reason])
    command = ["train", TOY, "--resume", "--out", str(path), "--no-progress"]
    assert main(command) == 0
    told = "".join(capfd.readouterr())
    assert "not bit for bit" in told
    assert all(line.isprintable() for line in told.split("\n"))
