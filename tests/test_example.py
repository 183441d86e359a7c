"""The examples run and show what they claim, in their quick form."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import acktr
from acktr.run.export import export_model

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(request):
    name = getattr(request, "param", "kfac_autoencoder")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_kfac_needs_three_times_fewer_steps_than_the_best_adam(example, tmp_path, capsys):
    ratios = example.main(["--quick", "--out", str(tmp_path / "figure.png")])
    assert ratios.keys() == {4.0, 2.0}
    assert min(ratio for found in ratios.values() for ratio in found) >= 3.0
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "K-FAC steps" in printed
    assert "min / median / max" in printed


def test_the_loss_is_zero_for_a_perfect_copy(example):
    images = example.draw_curves(5, 0)
    assert images.shape == (5, 64)
    assert 0 <= images.min() <= images.max() <= 1
    logits = images.clamp(1e-7, 1 - 1e-7).logit()
    assert example.nats_per_image(logits, images) == pytest.approx(0.0, abs=1e-3)
    assert example.nats_per_image(logits + 1.0, images) > 0.1


def test_a_run_counts_steps_to_a_loss(example):
    run = example.Run("x", [5.0, 3.0, 4.0, 1.0], [0.0, 0.1, 0.2, 0.3])
    assert [run.steps_to(t) for t in (5.0, 3.5, 2.0, 0.5)] == [0, 1, 3, None]
    assert example.fastest([run], 0.5) == (None, 4)


@pytest.mark.parametrize("example", ["play_onnx"], indirect=True)
def test_an_episode_without_torch(example, tmp_path):
    # The physics are gymnasium's.
    env = gym.make("CartPole-v1")
    state = env.reset(seed=0)[0].astype(float)
    for action in (0, 1, 1, 1, 0, 1):
        state, there = example.step(state, action), env.step(action)[0]
        assert state == pytest.approx(there, abs=1e-5)
    path = tmp_path / "cartpole.onnx"
    export_model(acktr.ACKTR("MlpPolicy", env, seed=0), path, about={"env_id": "CartPole-v1"})
    code = (
        f"import runpy, sys; sys.argv[1:] = [{str(path)!r}];"
        f"runpy.run_path({str(EXAMPLES / 'play_onnx.py')!r}, run_name='__main__');"
        "assert not {'torch', 'acktr', 'gymnasium', 'stable_baselines3'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert said.startswith("trained on CartPole-v1\n")
    assert 1 <= int(said.split()[-2]) <= 500


@pytest.mark.parametrize("example", ["invalid_actions"], indirect=True)
def test_masks_are_ahead_of_rules_that_have_to_be_found(example, capsys):
    scores = example.main(["--quick"])
    assert scores[True] > scores[False] + 0.2
    assert "without masks: " in capsys.readouterr().out


@pytest.mark.parametrize("example", ["memory"], indirect=True)
def test_who_remembers_turns_right(example, capsys):
    scores = example.main(["--quick"])
    assert scores["MlpLstmPolicy"] > 0.9
    assert scores["MlpPolicy"] < 0.7
    assert "MlpPolicy: " in capsys.readouterr().out
