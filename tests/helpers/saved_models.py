"""Small models, how two of them are compared, and their files with something changed."""

import io
import json
import zipfile

import torch

from acktr import ACKTR
from acktr.files import bundle
from tests.helpers.small_envs import VECTOR, small_env

NET = {"net_arch": [4]}


def build(action="Discrete", observation=VECTOR, policy="MlpPolicy", n_envs=2, **arguments):
    arguments.setdefault("policy_kwargs", NET)
    env = small_env(action, observation, n_envs=n_envs)
    return ACKTR(policy, env, n_steps=8, seed=0, device="cpu", **arguments)


def states(model):
    structure, tensors, _ = bundle.encode(model.get_parameters())
    return structure, tensors


def assert_same_state(a, b):
    (one, first), (other, second) = states(a), states(b)
    assert one == other
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def rebuilt(content, change):
    """The members of a file, changed, as a zip file again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def forge(files, manifest):
    body = json.loads(manifest)
    files = {key: value for key, value in files.items() if key != "manifest.json"}
    body["files"] = {k: {"size": len(v), "sha256": bundle._digest(v)} for k, v in files.items()}
    body.pop("checksum")
    body["checksum"] = bundle._digest(bundle._dump(body, sort_keys=True))
    return json.dumps(body).encode()
