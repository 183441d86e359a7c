"""The page that presents a run on the Hugging Face Hub: its README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import acktr
from acktr.errors import printable
from acktr.files.reading import parse_json

_FENCE = "`" * 8  # longer than any that a setting is likely to hold


def card(repo: str, settings: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Write the card of a run: what the Hub reads of it, and below it what people do.

    :param repo: ``ORG/NAME``
    :param settings: of the run, complete
    :param files: what is shared beside it, by its name on the Hub
    """
    from huggingface_hub import EvalResult, ModelCardData

    env_id, name = printable(str(settings["env_id"])), repo.rpartition("/")[2]
    result = _mapping(files.get("result.json"))
    evaluation = result.get("evaluation")
    if not (isinstance(evaluation, Mapping) and _numbers(evaluation, "mean_return", "std_return")):
        evaluation = None
    results = []
    if evaluation is not None:
        mean, std = evaluation["mean_return"], evaluation["std_return"]
        results.append(
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=env_id,
                dataset_name=env_id,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=f"{mean:.2f} +/- {std:.2f}",
                verified=False,
            )
        )
    data = ModelCardData(
        library_name="acktr",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3", env_id],
        model_name=name,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# ACKTR on {_plain(env_id)}",
        "A policy trained with ACKTR, natural-gradient reinforcement learning for Stable-Baselines3. "
        "The model holds tensors and JSON; opening it runs no code.",
        _figures(result, evaluation),
        "![Return over steps](learning_curve.png)" if "learning_curve.png" in files else "",
        "[Film of the policy](replay.mp4)" if "replay.mp4" in files else "",
        f"## Use it\n\n{_block('console', _use(repo, name))}",
        "## Train it again\n\n"
        + _block(
            "console",
            f"$ acktr pull {repo} --out {name}\n"
            f"$ acktr train {_shell(env_id)} --preset {name}/config.yaml",
        ),
        f"## Settings\n\n{_block('yaml', printable(files['config.yaml'].decode(), 50_000))}",
        _versions(_mapping(files.get("versions.json"))),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _use(repo: str, name: str) -> str:
    return (
        '$ pip install "acktr[hub]"\n'
        f"$ acktr pull {repo} --out {name}\n"
        f"$ acktr evaluate {name}\n"
        f"$ acktr record {name}\n"
        f"$ acktr export {name} policy.onnx"
    )


def _figures(result: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    rows = []
    if evaluation is not None:
        mean, std = evaluation["mean_return"], evaluation["std_return"]
        rows.append(
            (
                "return, deterministic policy",
                f"{mean:.1f} ± {std:.1f}, {evaluation['episodes']} episodes",
            )
        )
    if _numbers(result, "last_100_return"):
        rows.append(("return of the last 100 episodes of training", f"{result['last_100_return']:.1f}"))
    if _numbers(result, "steps"):
        rows.append(("environment steps", f"{result['steps']:,}"))
    if _numbers(result, "seconds"):
        rows.append(("seconds", f"{result['seconds']:,.0f}"))
    return _table(("figure", "value"), rows)


def _versions(versions: Mapping[str, Any]) -> str:
    rows = [(key, str(value)) for key, value in versions.items() if value is not None]
    rows.append(("acktr that wrote this card", acktr.__version__))
    return f"## Versions\n\n{_table(('what', 'version'), rows)}"


def _table(heading: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = [heading, ("---", "---"), *((_plain(key), _plain(value)) for key, value in rows)]
    return "\n".join(f"| {key} | {value} |" for key, value in lines)


def _plain(text: str) -> str:
    """Show text so that Markdown and HTML make nothing of it."""
    text = " ".join(printable(text, 300).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#!|$~" else c for c in text)


def _block(language: str, text: str) -> str:
    return f"{_FENCE}{language}\n{text.rstrip()}\n{_FENCE}"


def _shell(env_id: str) -> str:
    import shlex

    return shlex.quote(env_id)


def _mapping(data: bytes | None) -> dict[str, Any]:
    """Return what a file of JSON says; nothing where it is none: the card does without."""
    try:
        content = parse_json(data or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _numbers(content: Mapping[str, Any], *names: str) -> bool:
    return all(
        isinstance(content.get(name), int | float) and not isinstance(content[name], bool)
        for name in names
    )
