"""Saved policies as ONNX files, which play without torch and without acktr."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

import acktr
from acktr.envs.lookup import is_installed
from acktr.errors import AcktrError, ConfigurationError, printable
from acktr.files.durable import write_file
from acktr.learner.algorithm import ACKTR
from acktr.run.directory import Run
from acktr.run.graph import ActionGraph, as_predict_takes
from acktr.run.play import load_player
from acktr.run.quiet import quiet

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_CHECKED = 64  # observations on which a file is compared with ``predict`` before it is written
_TOLERANCE = 1e-3  # of the range of an action: rounding is far less
_TIES = 0.05  # the share of counted actions that rounding may turn: two of them are as good
_MASKS, _ACTION, _START = "action_masks", "action", "episode_start"


class Exported(NamedTuple):
    """A file that was written.

    :param path: the file
    :param size: bytes
    :param metadata: what it says of itself, see :func:`export_model`
    :param difference: the largest of its actions from those of ``predict``, in units of the action;
        ``None`` where actions are drawn
    """

    path: Path
    size: int
    metadata: dict[str, str]
    difference: float | None


def export(
    run: Run, out: Path, *, sampled: bool = False, best: bool = False, allow_import: bool = False
) -> Exported:
    """Write the policy of a run as an ONNX file.

    :param run: the run
    :param out: the file, ``.onnx``
    :param sampled: as for :func:`export_model`
    :param best: the model with the best evaluation instead of the last one
    :param allow_import: as for :func:`acktr.run.play.evaluate`
    :raises CheckpointError: if the run's files cannot be used
    :raises ConfigurationError: as :func:`export_model` does
    """
    _check(out)
    model, env = load_player(run, best, allow_import, n_envs=1, device="cpu")
    with contextlib.closing(env):
        configuration = run.read_configuration()
        about = {"env_id": str(configuration["env_id"])}
        if configuration.get("frame_stack"):
            about["frame_stack"] = str(configuration["frame_stack"])
        return export_model(model, out, sampled=sampled, about=about)


def export_model(
    model: ACKTR, out: Path, *, sampled: bool = False, about: dict[str, str] | None = None
) -> Exported:
    """Write a policy as an ONNX file: an environment's observations in, actions of its space out.

    Inputs have the names of the observations in a ``Dict``, else ``observation``; they are as the
    environment gives them, ``(B, *obs)`` in the dtype of its space: normalisation is inside. A model
    that learned with masks has an input ``action_masks`` of booleans, ``(B, width)``, besides. A policy
    that remembers has inputs ``state_0``, ``state_1``, ... of ``(n_layers, B, H)``, zeros at first, and
    ``episode_start``, booleans ``(B,)``; what the next step gets comes out as ``next_state_0``, ...
    The metadata says ``acktr_version``, ``actions`` (``deterministic`` or ``sampled``), ``inputs`` and
    ``output`` (JSON), and what ``about`` adds.

    :param model: with its environments, on the CPU
    :param out: the file, ``.onnx``; an earlier one stays whole until the new one is
    :param sampled: draw actions; else the most probable ones
    :param about: further metadata
    :raises ConfigurationError: packages are missing, the policy does something that ONNX cannot, the
        graph does not answer as ``predict`` does, or the file cannot be written
    """
    _check(out)
    env = model.env
    if env is None:
        raise ConfigurationError("The model has no environments, whose observations it is to take.")
    model.policy.set_training_mode(False)
    graph = ActionGraph(model, sampled)
    metadata = {
        "acktr_version": acktr.__version__,
        **(about or {}),
        "actions": "sampled" if sampled else "deterministic",
        "inputs": json.dumps(_describe(graph)),
        "output": json.dumps(_describe_output(graph, model.action_space)),
    }
    data = _translate(graph, metadata)
    difference = None
    if not sampled:
        difference, wrong = compare(model, graph, data, _CHECKED)
        if wrong > _TIES:
            raise ConfigurationError(
                f"The graph of {type(graph.policy).__name__} answers otherwise than predict, or NaN, "
                f"for {wrong:.0%} of {_CHECKED} observations: what the policy does there depends on "
                "something beside its observations, which ONNX cannot know."
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, data)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}.") from error
    return Exported(out, len(data), metadata, difference)


def _check(out: Path) -> None:
    """Refuse what cannot be written whatever the model is."""
    if out.suffix != ".onnx":
        raise ConfigurationError(f"{out} is not an .onnx file: give a name ending with .onnx.")
    if missing := [package for package in _PACKAGES if not is_installed(package)]:
        raise ConfigurationError(
            f"Exporting needs {' and '.join(missing)}, not installed here: run "
            '`pip install "acktr[onnx]"`.'
        )


def _names(graph: ActionGraph) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and of the outputs: of all, no two may be the same."""
    names, n_states = list(graph.inputs), len(graph.state_shapes)
    further = [f"state_{i}" for i in range(n_states)] + [_START] * (n_states > 0)
    further += [_MASKS] * (graph.mask_sizes is not None)
    outputs = [_ACTION, *(f"next_state_{i}" for i in range(n_states))]
    for name in (*further, *outputs):
        while name in names:
            name += "_"
        names.append(name)
    return names[: -len(outputs)], names[-len(outputs) :]


def _describe(graph: ActionGraph) -> dict[str, Any]:
    """Say what each input is."""
    said = {name: _described(space) for name, space in graph.inputs.items()}
    further: list[dict[str, Any]] = []
    if graph.state_shapes:
        further += _describe_states(graph, "what is remembered: zeros at first, then what came out")
        further.append({"meaning": "whether an episode begins", "shape": ["batch"], "dtype": "bool"})
    if graph.mask_sizes is not None:
        width = int(graph.mask_sizes.sum())
        meaning = "True where an action is allowed, part after part"
        further.append({"meaning": meaning, "shape": ["batch", width], "dtype": "bool"})
    names = _names(graph)[0][len(said) :]
    return {**said, **dict(zip(names, further, strict=True))}


def _describe_output(graph: ActionGraph, actions: spaces.Space) -> dict[str, Any]:
    """Say what each output is."""
    said = [_described(actions), *_describe_states(graph, "what the next step is to remember")]
    return dict(zip(_names(graph)[1], said, strict=True))


def _describe_states(graph: ActionGraph, meaning: str) -> list[dict[str, Any]]:
    shapes = ([layers, "batch", *rest] for layers, *rest in graph.state_shapes)
    return [{"meaning": meaning, "shape": shape, "dtype": "float32"} for shape in shapes]


def _described(space: spaces.Space) -> dict[str, Any]:
    shape = ["batch", *(space.shape or ())]
    return {"space": printable(str(space), 300), "shape": shape, "dtype": str(space.dtype)}


# The file -----------------------------------------------------------------------------------


def _translate(graph: ActionGraph, metadata: dict[str, str]) -> bytes:
    """Return the bytes of an ONNX model."""
    names, outputs = _names(graph)
    example = tuple(torch.as_tensor(x) for x in draw_inputs(graph, 3, seed=0))
    batch = torch.export.Dim("batch", min=1)
    states = range(len(graph.inputs), len(graph.inputs) + len(graph.state_shapes))
    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=(tuple({int(i in states): batch} for i in range(len(example))),),
            )
        proto = program.model_proto
        proto.ClearField("metadata_props")
        for key, value in metadata.items():
            proto.metadata_props.add(key=key, value=value)
        # Each node says by which lines of code it came about, and where these lie on this machine.
        for part in (
            *proto.graph.node,
            *proto.graph.value_info,
            *proto.graph.input,
            *proto.graph.output,
        ):
            part.ClearField("metadata_props")
        data: bytes = proto.SerializeToString()
    except AcktrError:
        raise
    except Exception as error:  # torch's exporter raises whatever the policy, or torch itself, raises
        raise ConfigurationError(
            f"{type(graph.policy).__name__} does something that ONNX cannot ({_reason(error)}): write "
            "its networks with operations of torch on tensors alone, whose course no value decides."
        ) from error
    return data


def _reason(error: BaseException) -> str:
    """Return the first line of what lies at the bottom of an error."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:200].strip(" :.")


# The comparison with predict ----------------------------------------------------------------


def draw_inputs(graph: ActionGraph, count: int, seed: int) -> list[np.ndarray]:
    """Make up inputs: likely observations, any memories, and masks that allow half of the actions.

    :param graph: for which
    :param count: B
    :param seed: of the draw
    :return: ``(B, *shape)`` for each input, ``(n_layers, B, H)`` for states
    """
    rng = np.random.default_rng(seed)
    drawn = [graph.parts[name].draw(count, rng) for name in graph.inputs]
    for layers, *rest in graph.state_shapes:
        drawn.append(rng.uniform(-1.0, 1.0, (layers, count, *rest)).astype(np.float32))
    if graph.state_shapes:
        drawn.append(rng.random(count) < 0.5)
    if graph.mask_sizes is not None:
        parts = []
        for size in graph.mask_sizes:
            part = rng.random((count, size)) < 0.5
            part[np.arange(count), rng.integers(size, size=count)] = True
            parts.append(part)
        drawn.append(np.concatenate(parts, 1))
    return drawn


def compare(
    model: ACKTR, graph: ActionGraph, data: bytes, count: int, seed: int = 0
) -> tuple[float, float]:
    """Compare the answers of an ONNX model with those of ``predict``.

    :param model: what was exported
    :param graph: of it
    :param data: the file
    :param count: observations, made up by :func:`draw_inputs`
    :param seed: of the draw
    :return: the largest difference of an action, in its own unit, and the share of observations with
        an action that is off by more than a thousandth of its range, or a state off by a thousandth
    """
    import onnxruntime

    inputs = draw_inputs(graph, count, seed)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    answers, *after = session.run(None, dict(zip(_names(graph)[0], inputs, strict=True)))
    named = dict(zip(graph.inputs, inputs, strict=False))
    further, n_states = inputs[len(named) :], len(graph.state_shapes)
    states, starts = (tuple(further[:n_states]), further[n_states]) if n_states else (None, None)
    obs: Any = next(iter(named.values())) if graph.single else named
    masks = inputs[-1] if graph.mask_sizes is not None else None
    assert model.env is not None
    taken = as_predict_takes(model.env, obs)
    try:
        expected, expected_after = model.predict(
            taken, states, starts, deterministic=True, action_masks=masks
        )
    except AcktrError:
        raise
    except Exception as error:  # whatever a policy raises, and torch of one that has lost its numbers
        raise ConfigurationError(
            f"{type(graph.policy).__name__} does not act on observations of its space "
            f"({_reason(error)}): mend the policy, or export a model from before it was lost."
        ) from error
    if answers.shape != expected.shape or answers.dtype != expected.dtype:
        return np.inf, 1.0
    difference = np.abs(answers.astype(float) - expected.astype(float)).reshape(count, -1)
    space = model.action_space
    wide = np.ones(1)
    if isinstance(space, spaces.Box):
        wide = (space.high.astype(float) - space.low.astype(float)).ravel()
    off = ~(difference <= _TOLERANCE * wide).all(1)  # nor is NaN an answer
    for own, other in zip(after, expected_after or (), strict=True):
        near = np.abs(own - other) <= _TOLERANCE
        off |= ~near.swapaxes(0, 1).reshape(count, -1).all(1)
    return float(difference.max()), float(off.mean())
