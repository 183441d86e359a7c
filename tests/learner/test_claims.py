"""Files that say of a model what none is: refused before anything is built or run (31 to 33)."""

import io
import json
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from acktr import ACKTR
from acktr.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from acktr.files import allowed as classes
from acktr.files import codec
from tests.helpers.saved_models import build, forge, rebuilt


@pytest.fixture(scope="module")
def unused():
    """The file of a small model without curvature."""
    buffer = io.BytesIO()
    build().save(buffer)
    return buffer.getvalue()


def saying(content, **values):
    """The file with other attributes, its checksums forged; ``a__b`` reaches into a mapping."""

    def change(members):
        data = json.loads(members["data.json"])
        for name, value in values.items():
            *path, last = name.split("__") if not name.startswith("_") else [name]
            target = data
            for key in path:
                target = target[key]
            target[last] = value
        members["data.json"] = json.dumps(data).encode()
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    return rebuilt(content, change)


def space(**values):
    return {"$": "space", "space": values}


def a_class(name):
    return {"$": "class", "name": name}


# Sizes --------------------------------------------------------------------------------------

HUGE = {
    "two wide layers": {"policy_kwargs__net_arch": [16_000, 16_000]},
    "a wide layer": {"policy_kwargs__net_arch": [10**6]},
    "an absurd layer": {"policy_kwargs__net_arch": [10**12]},
    "many layers": {"policy_kwargs__net_arch": [8] * 10**5},
    "one observation of many": {"observation_space": space(type="Discrete", n=10**7, start=0)},
    "one action of many": {"action_space": space(type="Discrete", n=10**7, start=0)},
    "many bits": {"observation_space": space(type="MultiBinary", n=10**7)},
    "more bits": {"observation_space": space(type="MultiBinary", n=10**9)},
    "bits to set": {"action_space": space(type="MultiBinary", n=10**8)},
    "bits in many dimensions": {"observation_space": space(type="MultiBinary", n=[10**4, 10**4])},
    "steps": {"n_steps": 10**9},
    "environments": {"n_envs": 10**9},
    "wide features": {
        "policy_kwargs__features_extractor_class": a_class(
            "stable_baselines3.common.torch_layers.NatureCNN"
        ),
        "policy_kwargs__features_extractor_kwargs": {"features_dim": 10**9},
    },
}


@pytest.mark.parametrize("values", HUGE.values(), ids=HUGE)
def test_a_file_asks_for_no_more_than_it_holds(unused, values):
    file, begun = saying(unused, **values), time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpointError, match="No model can be built"):
            ACKTR.load(file, device="cpu")
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 30  # and not minutes


def test_a_rollout_has_a_limit_of_its_own(monkeypatch, unused):
    monkeypatch.setattr("acktr.learner.claims.MAX_ROLLOUT", 500)
    with pytest.raises(DamagedCheckpointError, match="pass n_steps if that is meant"):
        ACKTR.load(io.BytesIO(unused), device="cpu")


def test_who_gives_the_number_of_steps_means_it(unused):
    assert ACKTR.load(saying(unused, n_steps=10**9), n_steps=16, device="cpu").n_steps == 16


def test_the_networks_that_are_built_afterwards_may_have_any_size(unused):
    with pytest.raises(DamagedCheckpointError):
        ACKTR.load(saying(unused, policy_kwargs__net_arch=[10**6]), device="cpu")
    assert torch.nn.Linear(1000, 1000).weight.numel() == 10**6


# Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("learn", "train", "predict", "save", "collect_rollouts", "policy_aliases"),
        *("_setup_model", "__class__", "__dict__", "set_parameters", "dump_logs", "a b", "\x1b[2J"),
    ],
)  # fmt: skip
def test_no_attribute_of_a_file_takes_the_place_of_a_method(unused, name):
    def change(members):
        data = {**json.loads(members["data.json"]), name: 5}
        members["data.json"] = json.dumps(data).encode()
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    with pytest.raises(UnsafeCheckpointError, match="nothing that a file may set") as caught:
        ACKTR.load(rebuilt(unused, change))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "policy",
        "env",
        "device",
        "rollout_buffer",
        "_logger",
        "_custom_logger",
        "_vec_normalize_env",
        "kfac",
        "shared",
        "outputs",
        "adapter",
        "action_noise",
        "rollout_buffer_class",
        "used_precision",
        "lr_schedule",
    ],
)
def test_what_is_never_saved_is_not_loaded(unused, name):
    model = ACKTR.load(saying(unused, **{name: 5}), env=build().env, device="cpu")
    assert getattr(model, name, None) != 5
    model.learn(16)


def test_where_a_model_writes_is_up_to_who_loads_it(tmp_path, monkeypatch, unused):
    monkeypatch.chdir(tmp_path)
    model = ACKTR.load(saying(unused, tensorboard_log=str(tmp_path / "there")), env=build().env)
    assert model.tensorboard_log is None
    model.learn(16)
    assert not list(tmp_path.iterdir())
    chosen = ACKTR.load(io.BytesIO(unused), tensorboard_log=str(tmp_path / "here"))
    assert chosen.tensorboard_log == str(tmp_path / "here")


def test_an_attribute_of_ones_own_is_loaded(tmp_path):
    model = build()
    model.note = {"made": [1, 2]}
    model.save(tmp_path / "m")
    assert ACKTR.load(tmp_path / "m").note == {"made": [1, 2]}


# Kinds --------------------------------------------------------------------------------------

ODD = {
    "num_timesteps": [-1, None, "x", 1.5, 2**70, True],
    "parts": [None, 5, {}, {"discount": {}}],
    "parts__trust_region": [None, 5, {"scale": 1.0}],
    "parts__trust_region__scale": [None, "x", [], 0, -1.0, {"$": "float", "value": "nan"}],
    "parts__trust_region__rescales": [None, "x", -1, 0.5],
    "parts__advantage_scale__variance": [None, "x", -1.0, {"$": "float", "value": "nan"}],
    "parts__advantage_scale__count": [None, "x", -1, 0.5],
    "parts__value_scale__bellman_std": [None, "x", 0, -1.0, {"$": "float", "value": "inf"}],
    "parts__value_scale__begun": [None, "x", 1],
    "parts__noise__scale": ["x", 0, -1.0, [], {"$": "float", "value": "nan"}],
    "parts__discount__endings": [None, [], 5, {"$": "tuple", "items": [1, 2, 3]}],
    "parts__discount__time_limit": ["x", -1, []],
    "ep_info_buffer": [5, [1], {"$": "deque", "items": [1], "maxlen": 3}],
    "ep_success_buffer": ["x", {"$": "deque", "items": ["x"], "maxlen": 3}],
    "_last_obs": [5, [], {}],
    "_stats_window_size": [None, 2**70, "x"],
    "seed": ["x", -1, 2**70],
    "gamma": [None, [], 2.0, "x"],
    "target_kl": [None, [], -1],
    "n_steps": ["x", -1, [], 1.5],
    "n_envs": ["x", -1, 0, None],
    "natural": [None, 5, {}, {"$": "settings", "name": "Linear", "values": {"start": 1, "end": 0}}],
    "natural__values": [None, 5, {"zzz": 1}, {"damping": -1}, {"damping": "x"}],
    "natural__values__kfac_kwargs": [5, {"inverse": "x"}, {"stat_decay": None}, {"zzz": 1}],
    "natural__name": [None, 5, "AdamCritic", "zzz"],
    "critic": [None, 5, {}, {"$": "settings", "name": "Natural", "values": {}}],
    "critic__values": [None, {"zzz": 1}, {"learning_rate": -1}, {"std": "x"}],
    "policy_kwargs": [5, {"zzz": 1}, {"net_arch": [0]}, {"net_arch": [-1]}, {"net_arch": ["a"]}],
    "policy_class": [None, a_class("torch.nn.modules.linear.Linear"), "x"],
    "critic__values__learning_rate": [a_class("stable_baselines3.common.buffers.RolloutBuffer"), None],
    "observation_space": [None, 5, space(type="Discrete", n=-1, start=0), space(type="zzz")],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in ODD.items() for v in values])
def test_odd_values_are_named(unused, name, value):
    with pytest.raises(CheckpointError) as caught:
        ACKTR.load(saying(unused, **{name: value}), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["container.ModuleList", "loss.CrossEntropyLoss", "activation.GLU"])
def test_an_activation_that_is_none(unused, name):
    with pytest.raises(DamagedCheckpointError, match="No model can be built"):
        ACKTR.load(saying(unused, policy_kwargs__activation_fn=a_class(f"torch.nn.modules.{name}")))


def test_an_extractor_that_is_none(unused):
    relu = a_class("torch.nn.modules.activation.ReLU")
    with pytest.raises(DamagedCheckpointError, match="features_dim"):
        ACKTR.load(saying(unused, policy_kwargs__features_extractor_class=relu))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("param_groups", 0, "momentum"), "x"),
        (("param_groups", 0, "step"), -1),
        (("param_groups", 0, "damping"), 10**30),
        (("counters", "rejected_steps"), {"$": "float", "value": "nan"}),
        (("param_groups",), 5),
        (("param_groups", 0), None),
        (("state",), [1]),
        (("state",), {"$": "dict", "items": [[0, {"momentum_buffer": 5}]]}),
        (("state",), {"$": "dict", "items": [[99, {}]]}),
        ((), None),
    ],
)
def test_an_odd_optimizer_is_named(unused, path, value):
    def change(members):
        tree = json.loads(members["policy.optimizer.json"])
        target, *_ = [tree]
        for key in path[:-1]:
            target = target[key]
        if path:
            target[path[-1]] = value
        members["policy.optimizer.json"] = json.dumps(tree if path else value).encode()
        files = {key: value for key, value in members.items() if key.endswith((".json", ".safetensors"))}
        members["manifest.json"] = forge(files, members["manifest.json"])

    with pytest.raises(CheckpointError):
        ACKTR.load(rebuilt(unused, change), device="cpu")


# Names of dtypes ----------------------------------------------------------------------------


def test_the_name_of_a_dtype_imports_nothing():
    code = (
        "import sys; from acktr.files.codec import decode\n"
        "before = set(sys.modules)\n"
        "for name in ('_dynamo', 'onnx', 'compiler', 'nn', '_inductor', 'load'):\n"
        "    try:\n"
        "        decode({'$': 'dtype', 'name': name}, {})\n"
        "    except KeyError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
        "assert set(sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_dtypes_come_from_a_table():
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        assert classes.find_dtype(classes.dtype_name(dtype)) is dtype
    for name in ("float64", "uint8", "bool", "int64"):
        assert str(classes.find_array_dtype(name)) == name
    for name in ("O", "object", "V8", "S5", "f4,f4", "M8[s]", [], None):
        with pytest.raises((KeyError, TypeError)):
            classes.find_array_dtype(name)
        with pytest.raises((KeyError, TypeError)):
            codec.decode({"$": "array", "name": "a", "dtype": name}, {"a": torch.zeros(8)})


# Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    import os

    path = tmp_path / "m.zip"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**33)
    model = build()
    for load in (ACKTR.load, model.set_parameters):
        with pytest.raises(DamagedCheckpointError, match=r"m\.zip"):
            load(path)


def test_a_member_that_no_machine_has_room_for(monkeypatch, unused):
    monkeypatch.setattr("acktr.files.bundle.largest_file", lambda: 1000)
    with pytest.raises(UnsafeCheckpointError, match="bytes, more than half of this machine's memory"):
        ACKTR.load(io.BytesIO(unused))


def test_the_terminal_obeys_nothing_in_the_name_of_a_member(unused):
    buffer = io.BytesIO(unused)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("\x1b[2J‮.json", b"")
    with pytest.raises(UnsafeCheckpointError) as caught:
        ACKTR.load(buffer)
    assert str(caught.value).isprintable()
