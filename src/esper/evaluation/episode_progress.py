"""Progress of an evaluation on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpisodeProgress:
    """A bar over the batches of episodes of an evaluation; silent when ``quiet``.

    Args:
        title: What they are for.
        batches: Batches of episodes (one a task and arm).
        console: Where to draw.
        quiet: Draw nothing.
    """

    def __init__(self, title: str, batches: int, *, console: Console, quiet: bool) -> None:
        self._batches = batches
        self._done = 0
        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
        )

    def __enter__(self) -> EpisodeProgress:
        self._progress.start()
        self._task = self._progress.add_task("", total=None)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def on_decision(self, decision: int, horizon: int) -> None:
        """One decision of the present batch is done, out of ``horizon``."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, total=self._batches * horizon)
