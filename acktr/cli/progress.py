"""Progress of a training: a bar on a terminal, a line now and then in a log file."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback

from acktr.errors import printable
from acktr.run.callbacks import Evaluations

_SECONDS_BETWEEN_UPDATES = 0.25
# Without a terminal, one line for each of this many parts of the training.
_LINES_IN_LOG = 20


class ProgressCallback(BaseCallback):
    """Shows steps, mean return of the last episodes, measured KL and steps per second.

    :param title: a line to print first
    :param enabled: whether to show anything
    :param on_step: called after each step; it has what a signal asked for said before the update ends
    """

    def __init__(
        self, title: str, *, enabled: bool = True, on_step: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__()
        self._say = on_step
        # Standard error: what a command prints as its result goes to standard output.
        self._console = Console(stderr=True, quiet=not enabled)
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", figures="")
        self._title = title
        self._total = 0
        self._next_time = 0.0
        self._next_steps = 0
        self._start = 0.0
        self._end: float | None = None
        self._steps_before = 0
        self._evaluations: Evaluations | None = None

    @property
    def rate(self) -> float | None:
        """Environment steps a second since training began or went on; evaluations take none of them."""
        now = time.perf_counter() if self._end is None else self._end
        spent = now - self._start - (self._evaluations.seconds if self._evaluations else 0.0)
        steps = self.model.num_timesteps - self._steps_before
        return steps / spent if steps and spent > 0 else None

    def __enter__(self) -> "ProgressCallback":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _on_training_start(self) -> None:
        self._start, self._end = time.perf_counter(), None
        self._total = self.locals["total_timesteps"]
        self._steps_before = self.model.num_timesteps
        self._next_steps = self._steps_before + self._line_steps()
        beside = getattr(self.locals.get("callback"), "callbacks", [])
        self._evaluations = next((x for x in beside if isinstance(x, Evaluations)), None)
        self._print(self._title)
        self._progress.update(self._task, total=self._total)
        self._progress.start()

    def _on_step(self) -> bool:
        self._say()
        return True

    def _on_rollout_start(self) -> None:
        # The values of the last update lie in the logger until it writes its row.
        now = time.perf_counter()
        if self._console.is_terminal:
            if now >= self._next_time:
                self._next_time = now + _SECONDS_BETWEEN_UPDATES
                self._show()
        elif self.model.num_timesteps >= self._next_steps:
            self._next_steps += self._line_steps()
            self._print(self._figures())

    def _on_training_end(self) -> None:
        self._end = time.perf_counter()
        self._progress.stop()

    def _line_steps(self) -> int:
        return max(self._total // _LINES_IN_LOG, 1)

    def _print(self, line: str) -> None:
        self._console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def _show(self) -> None:
        steps = min(self.model.num_timesteps, self._total)
        self._progress.update(self._task, completed=steps, figures=self._figures())

    def _figures(self) -> str:
        steps = self.model.num_timesteps
        parts = [f"{steps:,} steps"]
        episodes = self.model.ep_info_buffer
        if episodes:
            parts.append(f"return {sum(episode['r'] for episode in episodes) / len(episodes):.1f}")
        kl = self.model.logger.name_to_value.get("train/kl")
        if kl is not None:
            parts.append(f"KL {float(kl):.4f}")
        if self.rate:
            parts.append(f"{self.rate:,.0f} steps/s")
        return "  ".join(parts)
