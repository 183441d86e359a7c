"""Which ratios are measured, as data, and how repetitions become a ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from benchmarks.speed import sides
from benchmarks.speed.process import Measurement, Side

CHEETAH, BREAKOUT, CARTPOLE = "HalfCheetah-v5", "BreakoutNoFrameskip-v4", "CartPole-v1"
# The paper's ACKTR: one K-FAC step for actor and critic together.
PLAIN = (
    "gae_lambda=1.0",
    "learning_rate=0.25",
    "target_kl=0.001",
    "natural.damping=0.01",
    "natural.cg_iterations=0",
    "critic.kind=natural",
    "critic.std=1.0",
    "critic.n_updates=1",
    "critic.batch_size=null",
    "natural.kfac_kwargs.curvature.weight_sharing=reduce",
    "policy_kwargs.features_extractor_kwargs={}",
)
# The paper's batch, 20 steps of 16 environments, with nothing spared; the same with curvature of an
# eighth of the batch and inverses made anew at every tenth update, as the released code does; and the
# preset's batch.
PAPER = (*PLAIN, "n_steps=20", "natural.sub_sampling_factor=1")
EIGHTH = "natural.sub_sampling_factor=8"
SPARING = (*PLAIN, "n_steps=20", EIGHTH, "natural.kfac_kwargs.periods.inverse=10")
LARGE = (*PLAIN, "n_steps=128", EIGHTH, "natural.kfac_kwargs.periods.inverse=4")
# The critic's four updates of a rollout see the same samples: curvature of the first serves all, with a
# memory of as many rollouts.
ONCE = ("critic.kfac_kwargs.periods.factor=4", "critic.kfac_kwargs.curvature.stat_decay=0.81")
BACKGROUND = "natural.kfac_kwargs.periods.inverse_refresh=background"
BF16 = "natural.precision=bf16"
WIDTHS = (64, 256, 1024, 4096)
WIDTH_KFAC: dict[int, dict[str, Any]] = {4096: {"max_factor_size": 1024}}


@dataclass(frozen=True)
class Line:
    """One ratio: the rate of one side over that of another.

    :param what: it says
    :param top: label of the side above the line
    :param bottom: labels of the sides below the line: the fastest of them counts
    :param target: the least that is asked for; ``None`` where the line only informs
    """

    what: str
    top: str
    bottom: tuple[str, ...]
    target: float | None = None


@dataclass(frozen=True)
class Group:
    """Sides that are measured in turn, and the ratios made of them.

    :param name: what ``--only`` takes; several groups may share one
    :param sides: by label, in the order of their turns
    :param lines: the ratios
    :param seconds: of each side in each repetition, at least
    :param repetitions: of all sides
    """

    name: str
    sides: Mapping[str, Side]
    lines: tuple[Line, ...]
    seconds: float
    repetitions: int


class Spread(NamedTuple):
    """Least, middle and greatest of the ratios of single repetitions."""

    minimum: float
    median: float
    maximum: float


def pairwise(top: Sequence[float], bottom: Sequence[float]) -> Spread:
    """Divide rates repetition by repetition: neighbours in time share what disturbed them.

    :param top: rates of one side
    :param bottom: rates of the other, as many
    """
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    return Spread(min(ratios), median(ratios), max(ratios))


def summarize(group: Group, line: Line, measured: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """Return one line as it is written to ``ratios.json``."""
    rates = {label: [m.rate for m in measured[label]] for label in (line.top, *line.bottom)}
    bottom = max(line.bottom, key=lambda label: median(rates[label]))
    spread = pairwise(rates[line.top], rates[bottom])
    return {
        "ratio": group.name,
        "what": line.what,
        "top": line.top,
        "target": line.target,
        "bottom": bottom,
        "unit": group.sides[line.top].unit,
        "cores": group.sides[line.top].cores,
        "top_rate": median(rates[line.top]),
        "bottom_rate": median(rates[bottom]),
        **spread._asdict(),
        "met": None if line.target is None else spread.median >= line.target,
    }


def groups(quick: bool = False) -> list[Group]:
    """All that is measured.

    :param quick: in miniature, to see whether it works: the figures mean nothing
    """
    mlp, cnn, brief = ((0.02, 2), (0.02, 2), (0.01, 2)) if quick else ((2.0, 5), (6.0, 3), (1.0, 5))
    n_envs = 2 if quick else 8
    small = ("n_envs=2", "n_steps=4") if quick else ()
    smallest = (*small, "critic.n_updates=2", "critic.batch_size=4") if quick else ()

    thrift = "critic's curvature once a rollout"
    once = f"ACKTR, {thrift}"

    def cheetah(*settings: str, first_order: bool = False) -> Side:
        return _acktr(CHEETAH, (*settings, *small), 1, first_order)

    def plain(kind: tuple[str, ...], *settings: str, first_order: bool = False) -> Side:
        return _acktr(BREAKOUT, (*kind, *settings, *small), 2, first_order)

    def atari(*settings: str, first_order: bool = False) -> Side:
        return _acktr(BREAKOUT, (*settings, *smallest), 2, first_order)

    def peer(algorithm: str, n_steps: int, **arguments: Any) -> Side:
        n_steps = 4 if quick else n_steps
        arguments = {"n_envs": n_envs, "n_steps": n_steps, "env_id": CHEETAH, **arguments}
        return Side(sides.peer, {"algorithm": algorithm, **arguments})

    def breakout_a2c(subproc: bool) -> Side:
        arguments = {"env_id": BREAKOUT, "n_envs": 2 if quick else 16, "subproc": subproc}
        return Side(sides.peer, {"algorithm": "A2C", "n_steps": 5, **arguments}, cores=2)

    def step(*settings: str) -> Side:
        return Side(sides.stepping, {"env_id": CHEETAH, "settings": (*settings, *small)})

    return [
        Group(
            "first-order",
            {"ACKTR": cheetah(), once: cheetah(*ONCE), "Adam": cheetah(first_order=True)},
            (
                Line(f"{CHEETAH}, MLP", "ACKTR", ("Adam",), 0.90),
                Line(f"{CHEETAH}, MLP, {thrift}", once, ("Adam",)),
            ),
            *mlp,
        ),
        Group(
            "first-order",
            {
                "ACKTR, batch 320": plain(PAPER),
                "Adam, batch 320": plain(PAPER, first_order=True),
                "ACKTR, batch 320, sparing, bf16": plain(SPARING, "natural.precision=bf16"),
                "Adam, batch 320, bf16": plain(PAPER, "natural.precision=bf16", first_order=True),
                "ACKTR, batch 2048": plain(LARGE),
                "Adam, batch 2048": plain(LARGE, first_order=True),
                "ACKTR, batch 2048, bf16": plain(LARGE, "natural.precision=bf16"),
                "Adam, batch 2048, bf16": plain(LARGE, "natural.precision=bf16", first_order=True),
                "ACKTR, preset": atari(),
                "Adam, preset": atari(first_order=True),
            },
            tuple(
                Line(f"Breakout, CNN, {what}", f"ACKTR, {top}", (f"Adam, {bottom}",), 0.85)
                for what, top, bottom in (
                    ("plain K-FAC, the paper's batch of 320", "batch 320", "batch 320"),
                    (
                        "the same, sparing, bf16",
                        "batch 320, sparing, bf16",
                        "batch 320, bf16",
                    ),
                    ("plain K-FAC, the preset's batch of 2048", "batch 2048", "batch 2048"),
                    ("the same, bf16", "batch 2048, bf16", "batch 2048, bf16"),
                    ("Atari preset", "preset", "preset"),
                )
            ),
            *cnn,
        ),
        Group(
            "a2c",
            {
                "ACKTR, auto": cheetah("backend=auto"),
                "ACKTR, gymnasium": cheetah("backend=gymnasium"),
                once: cheetah("backend=auto", *ONCE),
                "A2C, n_steps 8": peer("A2C", 8),
                "A2C, n_steps 20": peer("A2C", 20),
            },
            (
                Line(
                    f"{CHEETAH}, backend auto", "ACKTR, auto", ("A2C, n_steps 8", "A2C, n_steps 20"), 1.7
                ),
                Line(
                    f"{CHEETAH}, backend gymnasium", "ACKTR, gymnasium",
                    ("A2C, n_steps 8", "A2C, n_steps 20"),
                ),
                Line(f"{CHEETAH}, {thrift}", once, ("A2C, n_steps 8", "A2C, n_steps 20")),
            ),
            *mlp,
        ),
        Group(
            "ppo",
            {
                "ACKTR": cheetah(),
                once: cheetah(*ONCE),
                "PPO": peer("PPO", 256),
                "TRPO": peer("TRPO", 256),
            },
            (
                Line(f"{CHEETAH}, PPO", "ACKTR", ("PPO",), 5.0),
                Line(f"{CHEETAH}, PPO, {thrift}", once, ("PPO",)),
                Line(f"{CHEETAH}, TRPO", "ACKTR", ("TRPO",)),
            ),
            *mlp,
        ),
        Group(
            "breakout",
            {
                "ACKTR, batch 320": plain(SPARING, BF16),
                "ACKTR, batch 2048": plain(LARGE, BF16),
                "ACKTR, preset": atari(BF16),
                "A2C, DummyVecEnv": breakout_a2c(subproc=False),
                "A2C, SubprocVecEnv": breakout_a2c(subproc=True),
            },
            tuple(
                Line(f"Breakout, {name}", top, ("A2C, DummyVecEnv", "A2C, SubprocVecEnv"), 2.5)
                for name, top in (
                    ("plain K-FAC, batch of 320", "ACKTR, batch 320"),
                    ("plain K-FAC, batch of 2048", "ACKTR, batch 2048"),
                    ("Atari preset", "ACKTR, preset"),
                )
            ),
            *cnn,
        ),
        Group(
            "stepping",
            {
                "training": cheetah(),
                once: cheetah(*ONCE),
                "stepping": step(),
                "stepping, raw": step("normalize=false"),
            },
            (
                Line(f"{CHEETAH}, the same vector environment", "training", ("stepping",), 0.80),
                Line(f"{CHEETAH}, {thrift}", once, ("stepping",)),
                Line(f"{CHEETAH}, without its normalisation", "training", ("stepping, raw",)),
            ),
            *mlp,
        ),
        _widths((8, 16) if quick else WIDTHS, brief, 64 if quick else 2048),
        Group(
            "options",
            {
                "ACKTR, plain": plain(PAPER),
                "ACKTR, bf16": plain(PAPER, BF16),
                "ACKTR, background": plain(PAPER, BACKGROUND),
            },
            tuple(
                Line(f"Breakout, plain K-FAC, {what}", top, ("ACKTR, plain",))
                for what, top in (
                    ("bf16 / fp32", "ACKTR, bf16"),
                    ("inverses in the background / in turn", "ACKTR, background"),
                )
            ),
            *cnn,
        ),
        Group(
            "profile",
            {
                "HalfCheetah, gymnasium": _profile(cheetah("backend=gymnasium")),
                "HalfCheetah, auto": _profile(cheetah("backend=auto")),
                "CartPole": _profile(_acktr(CARTPOLE, small, 1, False)),
                "Breakout, plain K-FAC": _profile(plain(SPARING, BF16)),
                "Breakout, Atari preset": _profile(atari(BF16)),
            },
            (),
            mlp[0] if quick else 5.0,
            1,
        ),
    ]  # fmt: skip


def _acktr(env_id: str, settings: tuple[str, ...], cores: int, first_order: bool) -> Side:
    arguments = {"env_id": env_id, "settings": settings, "first_order": first_order}
    return Side(sides.acktr, arguments, cores)


def _profile(side: Side) -> Side:
    arguments = {k: v for k, v in side.arguments.items() if k != "first_order"}
    return Side(sides.profiled, arguments, side.cores)


def _widths(widths: Sequence[int], pace: tuple[float, int], largest: int) -> Group:
    """K-FAC's update against a product of the largest size, and against one of its own size."""

    def product(m: int, k: int, n: int) -> Side:
        return Side(sides.gemm, {"m": m, "k": k, "n": n}, unit="flop")

    peak = f"product of {largest}³"
    table = {peak: product(largest, largest, largest)}
    lines: list[Line] = []
    for width in widths:
        kwargs = WIDTH_KFAC.get(width, {})
        update, own = f"update, {width}", f"product of 512 × {width} × {width}"
        table[update] = Side(sides.kfac_update, {"width": width, "kfac_kwargs": kwargs}, unit="flop")
        table[own] = product(512, width, width)
        said = "".join(f", {k} {v}" for k, v in kwargs.items())
        lines.append(Line(f"{width} units{said}", update, (peak,), 0.5))
        lines.append(Line(f"{width} units{said}, to a product of that width", update, (own,)))
    return Group("width", table, tuple(lines), *pace)
