"""The table of levers, made of ``results/tuning/levers.yaml`` and of the settings that the code has."""

from pathlib import Path
from typing import Any

import yaml

from acktr.presets import resolve
from benchmarks.markdown import markdown_table

LEVERS = Path(__file__).resolve().parents[1] / "results" / "tuning" / "levers.yaml"
PRESETS = {"defaults": ("HalfCheetah-v5", "defaults"), "MuJoCo": ("HalfCheetah-v5", None)}
ABSENT = "–"


def table(levers: Path = LEVERS) -> str:
    """Return one row for each lever: where it is set, to what, and what came of it.

    :param levers: mappings with ``lever``, ``option``, ``outcome``, perhaps ``note`` and ``suite``
    """
    settings = {
        title: resolve(env_id, preset=preset, settings={}, options={})[0].model_dump()
        for title, (env_id, preset) in PRESETS.items()
    }
    rows = []
    for lever in yaml.safe_load(levers.read_text(encoding="utf-8")):
        options = lever["option"].split(", ")
        named = not options[0].startswith("(")
        values = [_values(each, options) if named else ABSENT for each in settings.values()]
        rows.append(
            [lever["lever"], _code(options) if named else lever["option"], *values, _outcome(lever)]
        )
    return markdown_table(("lever", "option", *PRESETS, "what came of it"), rows)


def _values(settings: dict[str, Any], options: list[str]) -> str:
    found = [_look_up(settings, option) for option in options]
    return _code([str(x) for x in found if x is not None]) or ABSENT


def _look_up(settings: Any, option: str) -> Any:
    for part in option.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _outcome(lever: dict[str, str]) -> str:
    links = []
    if "note" in lever:
        links.append(f"[notes](notes.md#{lever['note']})")
    if "suite" in lever:
        links.append(f"[runs](results.md#{lever['suite']})")
    return f"{lever['outcome']} ({', '.join(links)})" if links else lever["outcome"]
