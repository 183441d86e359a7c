"""Where torch computes: what is asked for, or one sentence; what a run says of it is true."""

import pytest
import torch

from acktr import ACKTR
from acktr.cli import main
from acktr.devices import check_device, usable_device
from acktr.errors import ConfigurationError
from acktr.run.directory import Run
from acktr.run.play import evaluate
from tests.helpers.small_envs import small_env

TOY = "tests.helpers.toy_envs:Toy-v0"
ABSENT = ("mps", "xpu", "meta", "gpu", "tpu9", "cpu:1", "")


@pytest.fixture(params=["none", "two GPUs"])
def machine(request, monkeypatch):
    """A machine without an accelerator, and one with two."""
    count = 2 if request.param == "two GPUs" else 0
    found = torch.device("cuda") if count else None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(count))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    return count


def test_what_is_there_is_used_and_what_is_not_is_refused(machine):
    choices = "auto or cpu or cuda or cuda:0 or cuda:1" if machine else "auto or cpu"
    absent = (*ABSENT, "cuda:2") if machine else (*ABSENT, "cuda", "cuda:0")
    for device in ("auto", *choices.split(" or "), torch.device("cpu")):
        check_device(device)
        assert usable_device(device) == device
    for device in absent:
        with pytest.raises(
            ConfigurationError, match=rf"no device '{device}' here.*: choose {choices}\.$"
        ):
            check_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")])
def test_absent_cuda_is_the_cpu_as_in_stable_baselines3_but_said(device):
    with pytest.warns(UserWarning, match="There is no device 'cuda.*: computing on the CPU"):
        model = ACKTR("MlpPolicy", small_env(), n_steps=8, device=device)
    assert model.device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "tpu9", "meta"])
def test_other_devices_are_refused_by_the_class(device):
    with pytest.raises(ConfigurationError, match=f"There is no device '{device}' here"):
        ACKTR("MlpPolicy", small_env(), n_steps=8, device=device)


@pytest.mark.parametrize("how", ["--device", "--set"])
def test_the_command_line_leaves_nothing(how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    device = "cuda:97"
    arguments = [how, device] if how == "--device" else [how, f"device={device}"]
    assert main(["train", TOY, "--steps", "64", *arguments]) == 2
    error = capsys.readouterr().err
    assert "There is no device 'cuda:97' here" in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_machine_can_be_played(tmp_path, capsys):
    settings = ("n_envs=2", "n_steps=8", "n_final_eval_episodes=0", "eval_interval=0")
    assert main(["train", TOY, "--steps", "16", "--out", str(tmp_path), "--set", *settings]) == 0
    path = tmp_path / "config.yaml"
    text = path.read_text()
    assert "device: auto\n" in text
    path.write_text(text.replace("device: auto", "device: cuda:97"))
    assert len(evaluate(Run.open(tmp_path), 1).returns) == 1
