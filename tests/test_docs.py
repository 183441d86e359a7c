"""The documentation keeps its word: its Python runs, and its tables leave nothing out."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import A2C, PPO

from acktr import ACKTR, AdamCritic, Natural, NaturalCritic
from acktr.cli import _COMMANDS
from acktr.learner.moved import GONE, MOVED, new_key
from acktr.presets.schema import setting_names
from tests.helpers.recording import RecordingEngine

ROOT = Path(__file__).parents[1]
SHELL = ("nan", "share", "trackers")  # how-to pages without Python
# Blocks of one page run one after another, as a reader would type them.
PAGES = (
    "README.md",
    "acktr/kfac/README.md",
    "docs/index.md",
    "docs/acktr.md",
    *sorted(f"docs/howto/{x.name}" for x in (ROOT / "docs/howto").glob("*.md") if x.stem not in SHELL),
    "docs/quickstart.md",
    "docs/your-environment.md",
    "docs/policies.md",
    "docs/masks.md",
    "docs/memory.md",
    "docs/migrating.md",
    "docs/environments.md",
    "docs/kfac.md",
    "docs/kfac_reference.md",
)
# Pages that Sphinx, which follows links of its own, does not read, or reads from elsewhere.
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "benchmarks/results/tuning/notes.md",
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
    if page == "README.md":
        pytest.importorskip("mujoco")
    if "tensorboard_log" in read(page):
        pytest.importorskip("tensorboard")
    if not torch.cuda.is_available():
        monkeypatch.setattr("acktr.kfac.cuda_graphs.CudaEngine", RecordingEngine)
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


@pytest.mark.parametrize("page", OUTSIDE)
def test_links_from_outside_the_documentation_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", read(page))
    missing = [x for x in links if "://" not in x and not (ROOT / page).parent.joinpath(x).exists()]
    assert links
    assert not missing


@pytest.mark.parametrize("page", sorted((ROOT / "docs/howto").glob("*.md")), ids=lambda path: path.stem)
def test_a_how_to_is_a_page_of_one_screen(page):
    assert len(page.read_text(encoding="utf-8").split()) < 400


@pytest.mark.parametrize(
    ("words", "page"),
    [("continue training", "continue"), ("custom network", "network"), ("nan", "nan")],
)
def test_a_newcomer_is_two_clicks_away(words, page):
    """From the README to the first page of the documentation, and from there."""
    assert "(docs/index.md)" in read("README.md")
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", read("docs/index.md"))
    assert f"howto/{page}.md" in [target for text, target in links if words in text.lower()]


def test_the_page_for_migrants_has_every_argument_of_a2c_and_ppo():
    section = read("docs/migrating.md").split("## Arguments")[1].split("\n## ")[0]
    rows = "\n".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    listed = re.findall(r"`(\w+)`", rows)
    arguments = {name for cls in (A2C, PPO) for name in inspect.signature(cls.__init__).parameters}
    assert sorted(listed) == sorted(arguments - {"self"})


def test_the_page_for_migrants_has_every_argument_of_before():
    section = read("docs/migrating.md").split("## From acktr 0.1.0")[1].split("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| `.*$", section, re.MULTILINE)]
    places = {found[1]: row for row in rows if (found := re.match(r"`(\w+)`", row[0]))}
    assert places.keys() >= MOVED.keys() | GONE.keys()
    for name in MOVED:
        assert f"`{new_key(name)}`" in places[name][2]
    assert all("gone" in places[name][1] for name in GONE)


def house():
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_house_lists_its_rooms_from_top_to_bottom():
    listed = re.findall(r"^\| [^|]* \| `(\w+)/` \|", read("docs/house.md"), re.MULTILINE)
    rooms = house().imports()
    assert sorted(listed) == house().rooms()
    assert not [(a, b) for a in listed for b in rooms[a] if listed.index(b) < listed.index(a)]


def test_rooms_are_drawn_above_what_they_import(tmp_path):
    assert house().floors({"b": {"a"}, "a": set(), "d": {"b"}, "c": {"a"}}) == [["a"], ["b", "c"], ["d"]]
    with pytest.raises(ValueError, match=r"import each other: a, b\."):
        house().floors({"a": {"b"}, "b": {"a"}})
    house().draw(house().imports()).savefig(tmp_path / "house.png")


def test_the_metrics_page_lists_what_is_logged():
    listed = set(re.findall(r"^\| `(\w+/\w+)`", read("docs/metrics.md"), re.MULTILINE))
    # A Gaussian policy with a critic of its own logs all there is, with these options.
    natural = Natural(
        cg_iterations=1, corrected_learning_rate=10.0, kfac_kwargs={"step_rule": {"adapt_damping": True}}
    )
    critic = NaturalCritic(cg_iterations=1, normalize_targets=True)
    model = ACKTR("MlpPolicy", "Pendulum-v1", n_steps=64, seed=0, natural=natural, critic=critic)
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    model.train()
    logged = set(model.logger.name_to_value)
    others = {"time", "rollout", "eval"}
    of_masks = {"train/forbidden"}
    assert logged | of_masks == {key for key in listed if key.split("/")[0] not in others}


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_command_line_page_lists_every_option(command):
    section = read("docs/cli.md").split(f"## acktr {command}\n")[1].split("\n## ")[0]
    for name, parameter in inspect.signature(_COMMANDS[command]).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"| `--{name.strip('_').replace('_', '-')}" in section


def test_the_command_line_page_lists_every_setting():
    rows = re.findall(r"^\| (`.*?`) \|", read("docs/cli.md").split("## Settings")[1], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(setting_names())
    of_groups = {f"natural.{field.name}" for field in fields(Natural)} | {"critic.kind"}
    of_groups |= {f"critic.{field.name}" for cls in (NaturalCritic, AdamCritic) for field in fields(cls)}
    assert sorted(re.findall(r"`(\w+\.\w+)`", " ".join(rows))) == sorted(of_groups)


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
