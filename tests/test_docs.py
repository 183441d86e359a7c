"""The documentation keeps its word: its Python runs, and its tables leave nothing out."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import A2C, PPO

from acktr import ACKTR, Natural, NaturalCritic
from acktr.cli import _COMMANDS
from acktr.kfac import layers
from acktr.presets.schema import setting_names
from tests.helpers.recording import RecordingEngine

ROOT = Path(__file__).parents[1]
# Blocks of one page run one after another, as a reader would type them.
PAGES = (
    "README.md",
    "acktr/kfac/README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/policies.md",
    "docs/migrating.md",
    "docs/environments.md",
    "docs/kfac.md",
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Shown are runs of use, run are the shortest that fill a rollout.
SHORTER = (
    (re.compile(r"learn\([\d_]+"), "learn(600"),
    (re.compile(r", progress_bar=True"), ""),
    (re.compile(r"range\(100\)"), "range(3)"),
    (re.compile(r"n_eval_episodes=\d+"), "n_eval_episodes=1"),
    (re.compile(r"_freq=[\d_]+"), "_freq=50"),
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layers, "_REGISTRY", dict(layers._REGISTRY))
    if page == "README.md":
        pytest.importorskip("mujoco")
    if "tensorboard_log" in read(page):
        pytest.importorskip("tensorboard")
    if not torch.cuda.is_available():
        monkeypatch.setattr("acktr.kfac.graphs.CudaEngine", RecordingEngine)
    importlib.import_module("ale_py")  # registers its games once, and they must stay
    known = set(gym.registry)
    blocks = BLOCK.findall(read(page))
    assert blocks
    namespace: dict = {"__name__": page}
    try:
        for number, code in enumerate(blocks, start=1):
            for pattern, replacement in SHORTER:
                code = pattern.sub(replacement, code)
            exec(compile(code, f"{page}, block {number}", "exec"), namespace)
    finally:
        for name in set(gym.registry) - known:
            del gym.registry[name]


def test_the_page_for_migrants_has_every_argument_of_a2c_and_ppo():
    rows = "\n".join(re.findall(r"^\| (`.*?) \|", read("docs/migrating.md"), re.MULTILINE))
    listed = re.findall(r"`(\w+)`", rows)
    arguments = {name for cls in (A2C, PPO) for name in inspect.signature(cls.__init__).parameters}
    assert sorted(listed) == sorted(arguments - {"self"})


def test_the_metrics_page_lists_what_is_logged():
    listed = set(re.findall(r"^\| `(\w+/\w+)`", read("docs/metrics.md"), re.MULTILINE))
    # A Gaussian policy with a critic of its own logs all there is, with these options.
    natural = Natural(cg_iterations=1, corrected_learning_rate=10.0, kfac_kwargs={"adapt_damping": True})
    critic = NaturalCritic(cg_iterations=1, normalize_targets=True)
    model = ACKTR("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, natural=natural, critic=critic)
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    model.train()
    logged = set(model.logger.name_to_value)
    others = {"time", "rollout", "eval"}
    assert logged == {key for key in listed if key.split("/")[0] not in others}


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_command_line_page_lists_every_option(command):
    section = read("docs/cli.md").split(f"## acktr {command}\n")[1].split("\n## ")[0]
    for name, parameter in inspect.signature(_COMMANDS[command]).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"| `--{name.strip('_').replace('_', '-')}" in section


def test_the_command_line_page_lists_every_setting():
    rows = re.findall(r"^\| (`.*?`) \|", read("docs/cli.md").split("## Settings")[1], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(setting_names())


def test_formulas_need_no_network(tmp_path):
    (tmp_path / "index.md").write_text("# Page\n\n$$F \\approx A \\otimes S$$\n")
    command = ["-m", "sphinx", "-W", "-q", "-b", "html", "-c", str(ROOT / "docs"), "."]
    subprocess.run([sys.executable, *command, "html"], cwd=tmp_path, check=True, timeout=120)
    html = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert "F \\approx A \\otimes S" in html
    fetched = re.findall(
        r'<(?:script|img)[^>]*\bsrc="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', html
    )
    paths = ["".join(found).partition("?")[0] for found in fetched]
    assert "_static/tex-svg.js" in paths
    assert all((tmp_path / "html" / path).is_file() for path in paths)
