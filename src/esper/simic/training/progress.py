"""What a training run looks like in a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.simic.training.callbacks import Callback, Plan


class Progress(Callback):
    """Shows a run as it goes: a live table in a terminal, or one line per update.

    Return, score and whatever else the environment reports of its episodes (``episode/{name}`` in the metrics) keep
    their last known value through updates in which no episode ended.

    Args:
        quiet: One line per update. Also when the output is no terminal.
        console: Where to write; standard output by default.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console()
        self.quiet = quiet or not self.console.is_terminal
        self._known: dict[str, float] = {}
        self._live: Live | None = None
        self._steps = 0

    def on_start(self, plan: Plan) -> None:
        self._plan, self._started = plan, time.perf_counter()
        self._done = plan.first_update
        if not self.quiet:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4)
            self._live.start()

    def on_step(self) -> None:
        self._steps += 1

    def on_update(self, metrics: Mapping[str, float]) -> None:
        self._known |= {name: value for name, value in metrics.items() if not math.isnan(value)}
        self._done, self._steps = int(metrics["update"]), 0
        if self.quiet:
            cells = [f"update {self._done}/{self._plan.updates}", *(f"{name} {value}" for name, value in self._cells())]
            self.console.print("  ".join(cells), highlight=False, soft_wrap=True)

    def on_end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.on_end()

    # ------------------------------------------------------------------ what is shown

    def _fraction(self) -> float:
        """Updates done, with the share of the one that is being collected."""
        return self._done + min(self._steps / self._plan.vector_steps, 1.0)

    def _cells(self) -> Iterator[tuple[str, str]]:
        """Name and value of everything that is known by now."""
        known = self._known
        if "return" in known:
            yield "return", f"{known['return']:.4g}"
        if "eval/return" in known:
            yield "evaluation", f"{known['eval/return']:.4g} (best {known['eval/best_return']:.4g})"
        for name in sorted(name for name in known if name.startswith("episode/")):
            yield name.removeprefix("episode/").replace("_", " "), f"{known[name]:.4g}"
        op = self._plan.policy.heads.op.name
        if shares := _of(known, "choice_share/"):
            yield op, ", ".join(f"{choice} {share:.0%}" for choice, share in shares.items())
        if entropies := _of(known, "normalized_entropy/"):
            yield "entropy", ", ".join(f"{head} {entropy:.2f}" for head, entropy in entropies.items())
        if "explained_variance" in known:
            yield "explained variance", f"{known['explained_variance']:.2f}"
        if "staleness" in known:
            yield "data", f"{known['staleness']:.0f} updates old"
        if "env_steps" in known:
            yield "steps", f"{known['env_steps']:,.0f}"
            yield "steps/s", f"{known['steps_per_second']:,.0f}"
        yield "ETA", _clock(self._remaining_seconds())

    def _remaining_seconds(self) -> float:
        gone = self._fraction() - self._plan.first_update
        if gone <= 0:
            return math.nan
        return (time.perf_counter() - self._started) / gone * (self._plan.updates - self._fraction())

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self._cells():
            table.add_row(Text(name, style="dim"), value)
        head = Text(f"update {self._done}/{self._plan.updates}")
        bar = ProgressBar(total=self._plan.updates, completed=self._fraction(), width=60)
        return Group(head, Padding(bar, 0), table)  # the padding ends the bar's line, which it does not do itself


def _of(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
