"""The ratios on an accelerator, with many environments: ``python -m benchmarks.speed --device cuda``."""

from typing import Any

from benchmarks.speed import sides
from benchmarks.speed.process import Side
from benchmarks.speed.ratios import BREAKOUT, CHEETAH, LARGE, PAPER, PLAIN, Group, Line

GRAPHS, BF16 = "natural.cuda_graphs=true", "natural.precision=bf16"
WIDTHS = (64, 256, 1024, 4096)
# Twice the preset's batch, curvature of an eighth of it.
MANY = (*PLAIN, "n_steps=64", "natural.sub_sampling_factor=8", "natural.kfac_kwargs.periods.inverse=4")
# Until all kinds of updates have been recorded, of which every fourth makes inverses anew.
WARM_UP = 14


def groups(quick: bool = False, device: str = "cuda") -> list[Group]:
    """All that is measured on an accelerator.

    :param quick: in miniature, to see whether it works: the figures mean nothing
    :param device: of the learners
    """
    n_envs = 16 if quick else 1024
    # ale-py takes 80 ms of the interpreter to start a game, and as much to seed it.
    n_games = 8 if quick else 64
    pace = (0.02, 2) if quick else (2.0, 3)
    graphs = (GRAPHS,) if device == "cuda" else ()

    def train(env_id: str, *settings: str, **arguments: Any) -> Side:
        given = {"env_id": env_id, "settings": settings, "device": device, **arguments}
        return Side(sides.acktr, given, warm_up=6 if env_id == CHEETAH else WARM_UP)

    def cheetah(*settings: str, **arguments: Any) -> Side:
        return train(CHEETAH, f"n_envs={n_envs}", *settings, **arguments)

    def breakout(*settings: str, **arguments: Any) -> Side:
        return train(BREAKOUT, *MANY, f"n_envs={n_games}", *settings, **arguments)

    def peer(algorithm: str, env_id: str, **arguments: Any) -> Side:
        number = n_games if env_id == BREAKOUT else n_envs
        given = {"algorithm": algorithm, "env_id": env_id, "n_envs": number, "device": device}
        return Side(sides.peer, {**given, **arguments})

    def profile(env_id: str, *settings: str) -> Side:
        return Side(sides.profiled, {"env_id": env_id, "settings": settings, "device": device})

    many, games = f"{n_envs} environments", f"{n_games} games"
    normalized = {"env_id": CHEETAH, "settings": (f"n_envs={n_envs}",)}
    minibatch = 64 if quick else 4096
    return [
        Group(
            "first-order",
            {
                "ACKTR, graphs": cheetah(*graphs),
                "Adam, graphs": cheetah(*graphs, first_order=True),
                "ACKTR": cheetah(),
                "Adam": cheetah(first_order=True),
            },
            (
                Line(f"{CHEETAH}, MLP, {many}, CUDA graphs", "ACKTR, graphs", ("Adam, graphs",), 0.90),
                Line(f"{CHEETAH}, MLP, {many}, launched", "ACKTR", ("Adam",), 0.90),
            ),
            *pace,
        ),
        Group(
            "peers",
            {
                "ACKTR": cheetah(*graphs),
                "A2C, DummyVecEnv": peer("A2C", CHEETAH, n_steps=8),
                "A2C, ACKTR's environments": peer("A2C", CHEETAH, n_steps=8, ours=True),
                "PPO, DummyVecEnv": peer("PPO", CHEETAH, n_steps=16, batch_size=minibatch),
                "TRPO, DummyVecEnv": peer("TRPO", CHEETAH, n_steps=16, batch_size=minibatch),
                "stepping": Side(sides.stepping, normalized),
            },
            (
                Line(f"{CHEETAH}, A2C, {many}", "ACKTR", ("A2C, DummyVecEnv",), 1.7),
                Line(f"{CHEETAH}, A2C on ACKTR's environments", "ACKTR", ("A2C, ACKTR's environments",)),
                Line(f"{CHEETAH}, PPO, {many}", "ACKTR", ("PPO, DummyVecEnv",), 5.0),
                Line(f"{CHEETAH}, TRPO, {many}", "ACKTR", ("TRPO, DummyVecEnv",)),
                Line(f"{CHEETAH}, stepping alone", "ACKTR", ("stepping",), 0.80),
            ),
            *pace,
        ),
        _widths((8, 16) if quick else WIDTHS, pace, 64 if quick else 8192, device),
        Group(
            "options",
            {
                "HalfCheetah, graphs": train(CHEETAH, *graphs),
                "HalfCheetah, launched": train(CHEETAH),
                "Breakout, paper's batch, graphs": train(BREAKOUT, *PAPER, *graphs),
                "Breakout, paper's batch, launched": train(BREAKOUT, *PAPER),
                "Breakout, batch 2048, bf16, graphs": train(BREAKOUT, *LARGE, BF16, *graphs),
                "Breakout, batch 2048, bf16, launched": train(BREAKOUT, *LARGE, BF16),
                "Breakout, preset, graphs": train(BREAKOUT, *graphs),
                "Breakout, preset, launched": train(BREAKOUT),
            },
            tuple(
                Line(f"{what}, CUDA graphs / launched", f"{what}, graphs", (f"{what}, launched",))
                for what in (
                    "HalfCheetah", "Breakout, paper's batch", "Breakout, batch 2048, bf16",
                    "Breakout, preset",
                )
            ),
            *pace,
        ),
        Group(
            "first-order",
            {
                "ACKTR, fp32": breakout(*graphs),
                "Adam, fp32": breakout(*graphs, first_order=True),
                "ACKTR, bf16": breakout(*graphs, BF16),
                "Adam, bf16": breakout(*graphs, BF16, first_order=True),
            },
            tuple(
                Line(
                    f"Breakout, CNN, plain K-FAC, {games}, {precision}", f"ACKTR, {precision}",
                    (f"Adam, {precision}",), 0.85,
                )
                for precision in ("fp32", "bf16")
            ),
            *pace,
        ),
        Group(
            "breakout",
            {
                "ACKTR": breakout(*graphs, BF16),
                "A2C, DummyVecEnv": peer("A2C", BREAKOUT, n_steps=5),
                "A2C, ACKTR's environments": peer("A2C", BREAKOUT, n_steps=5, ours=True),
            },
            (
                Line(f"Breakout, A2C, {games}", "ACKTR", ("A2C, DummyVecEnv",), 2.5),
                Line("Breakout, A2C on ACKTR's environments", "ACKTR", ("A2C, ACKTR's environments",)),
            ),
            *pace,
        ),
        Group(
            "profile",
            {
                f"HalfCheetah, {many}": profile(CHEETAH, f"n_envs={n_envs}"),
                f"Breakout, plain K-FAC, bf16, {games}": profile(
                    BREAKOUT, *MANY, BF16, f"n_envs={n_games}"
                ),
            },
            (),
            pace[0],
            1,
        ),
    ]  # fmt: skip


def _widths(widths: tuple[int, ...], pace: tuple[float, int], largest: int, device: str) -> Group:
    peak = f"product of {largest}³"
    table = {peak: Side(sides.gemm, dict.fromkeys("mkn", largest) | {"device": device}, unit="flop")}
    lines = []
    for width in widths:
        for how, graphs in (("graphs", device == "cuda"), ("launched", False)):
            given = {"width": width, "kfac_kwargs": {}, "device": device, "graphs": graphs}
            table[f"update, {width}, {how}"] = Side(sides.kfac_update, given, unit="flop")
            lines.append(Line(f"{width} units, {how}", f"update, {width}, {how}", (peak,), 0.5))
    return Group("width", table, tuple(lines), pace[0] / 4, pace[1])
