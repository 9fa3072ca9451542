"""``esper train``: train Tamiyo on growing networks, then compare it honestly with the other controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

import rich.progress
import tyro
from rich.console import Console

from esper.commands.resuming import resumable
from esper.evaluation import Table, names
from esper.evaluation.table import median_growth, printed, to_json
from esper.figure import growth_figure
from esper.files import locked, write_json_atomic
from esper.simic import Progress
from esper.training import TamiyoConfig, Watcher, compare_controllers, resume_tamiyo, train_tamiyo


@dataclass(frozen=True)
class TrainCommand:
    """Train Tamiyo with PPO on growing networks, and compare it with the other controllers."""

    config: Annotated[TamiyoConfig, tyro.conf.arg(name="")] = field(default_factory=TamiyoConfig)
    """How Tamiyo is trained."""
    out: Path | None = None
    """Directory of the run [default: runs/train-DATE-TIME]."""
    resume: Path | None = None
    """Directory of a run to go on with; all other options are then read from it, but those that say where networks are
    trained (`--num-workers`, or `--ray-workers` and `--address`) and `--quiet`."""
    quiet: bool = False
    """One line per update, for logs, in place of the live display."""

    RESUMED_WITH: ClassVar = ("num-workers", "ray-workers", "address", "quiet")

    def run(self, console: Console) -> None:
        """Train, compare, write everything into the run directory and say where."""
        run_dir = self.resume or self.out or Path("runs") / datetime.now().strftime("train-%Y%m%d-%H%M%S")
        display = TamiyoProgress(console, quiet=self.quiet)
        with resumable(console, f"esper train --resume {run_dir}"):
            if self.resume:
                where = {name: getattr(self.config, name) for name in ("num_workers", "ray_workers", "address")}
                trained = resume_tamiyo(run_dir, watcher=display, **where)
            else:
                trained = train_tamiyo(self.config, run_dir=run_dir, watcher=display)
            console.print(_chosen(trained.policy.op_share, trained.objectives))
            with locked(run_dir):
                table = compare_controllers(trained, watcher=display)
                written = write_comparison(table, run_dir)
        console.print(printed(table, names.TAMIYO))
        console.print("Written:")
        for path in (*(run_dir / name for name in ("config.json", "metrics.jsonl", "checkpoint", "policy")), *written):
            console.print(f"  {path}", soft_wrap=True)


class TamiyoProgress(Progress, Watcher):
    """The training as it goes, then a bar over the episodes of each evaluation; no bar when ``quiet``."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        super().__init__(console=console, quiet=quiet)
        self._no_bar = quiet

    def on_evaluation(self, purpose: str, batches: int) -> None:
        titles = {"validation": "Choosing how it decides", "test": "Comparing on unseen episodes"}
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn(titles[purpose]),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=self._no_bar,
        )
        self._bar.start()
        self._bar_task = self._bar.add_task("", total=None)
        self._batches, self._decisions = batches, 0

    def on_decision(self, decision: int, horizon: int) -> None:
        self._decisions += 1
        self._bar.update(self._bar_task, completed=self._decisions, total=self._batches * horizon)

    def on_evaluation_end(self) -> None:
        self._bar.stop()


def _chosen(op_share: float, objectives: Mapping[float, float]) -> str:
    """What was chosen on validation episodes, and why."""
    means = ", ".join(f"{share:g}: {J:.3f}" for share, J in objectives.items())
    return f"Q decides among ops from {op_share:g} of the likeliest's probability on (J in validation, {means})"


def write_comparison(table: Table, run_dir: Path) -> list[Path]:
    """Write ``comparison.json`` and one growth figure per task; what was written."""
    written = [run_dir / "comparison.json"]
    write_json_atomic(written[0], to_json(table, names.TAMIYO))
    for task in table.tasks:
        written.append(run_dir / f"growth-{task}.png")
        growth_figure(median_growth(table, task, names.TAMIYO), written[-1])
    return written
