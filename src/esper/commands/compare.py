"""``esper compare``: does growth pay, and does the learned controller matter? All arms, on equal terms."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esper.commands.resuming import resumable
from esper.evaluation.study import Study, StudyConfig, Unit, add_seeds, open_study, write_report
from esper.evaluation.study.pools import ray_pool
from esper.evaluation.study.verdicts import too_few_seeds
from esper.files import locked


@dataclass(frozen=True)
class _Options(StudyConfig):
    """What is compared, but for the seeds: they are an option of the command, which can add some."""

    seeds: Annotated[int, tyro.conf.Suppress] = StudyConfig.seeds


@dataclass(frozen=True)
class CompareCommand:
    """Compare growth controllers and fixed networks on equal terms; a report in HTML, figures, and all results."""

    config: Annotated[_Options, tyro.conf.arg(name="")] = field(default_factory=_Options)
    """The comparison."""
    seeds: int | None = None
    """Paired seeds: episodes of every arm on each task [default: 10, or as many as the comparison in `--resume` has].
    Where that has fewer, only those that are new are run."""
    workers: int = max(1, min(os.cpu_count() or 1, 8))
    """Processes, of one thread each; results do not depend on their number."""
    ray_workers: int = 0
    """Ray tasks at a time in place of these processes, on one machine or many; 0 for none."""
    address: str | None = None
    """Of a running Ray cluster, `auto` or HOST:PORT; by default one is started on this machine."""
    out: Path | None = None
    """Directory of the comparison; one that exists is gone on with [default: runs/compare-DATE-TIME]."""
    resume: Path | None = None
    """Directory of a comparison to go on with, or to add seeds to; what is compared is then read from it."""
    quiet: bool = False
    """One line for each finished piece, for logs, in place of the live display."""

    RESUMED_WITH: ClassVar = ("seeds", "workers", "ray-workers", "address", "quiet")

    def run(self, console: Console) -> None:
        """Run every arm, judge the claims, write the report and say where."""
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, got {self.workers}")
        if self.ray_workers < 0:
            raise ValueError(f"--ray-workers must be 0 or more, got {self.ray_workers}")
        if self.address is not None and not self.ray_workers:
            raise ValueError(f"--address {self.address} is of use to Ray workers only; say how many by --ray-workers")
        directory = self.resume or self.out or Path("runs") / datetime.now().strftime("compare-%Y%m%d-%H%M%S")
        config = self._config()
        config.check()
        with resumable(console, f"esper compare --resume {directory}"), locked(directory):
            study = Study(config if self.resume is None else add_seeds(self.resume, config.seeds), directory)
            self._run(study, console)
            found, written = write_report(study)
        if few := too_few_seeds(config.seeds, len(config.task)):
            console.print(f"Few seeds: {few}", highlight=False, soft_wrap=True)
        for claim in found:
            console.print(f"{claim.verdict.upper():14} {claim.title}", highlight=False, soft_wrap=True)
        console.print("Written:")
        for path in written:
            console.print(f"  {path}", soft_wrap=True)

    def _config(self) -> StudyConfig:
        """What is compared, as it was begun where a comparison is gone on with."""
        config = StudyConfig(**vars(self.config)) if self.resume is None else open_study(self.resume).config
        return config if self.seeds is None else replace(config, seeds=self.seeds)

    def _run(self, study: Study, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=self.quiet
        ) as progress:
            bar = progress.add_task("Comparing", total=len(study.units))

            def on_done(unit: Unit) -> None:
                progress.update(bar, advance=1, description=" · ".join(unit))
                if self.quiet:
                    console.print("done:", *unit, soft_wrap=True, highlight=False)

            if self.ray_workers:
                study.run(self.ray_workers, on_done, partial(ray_pool, address=self.address))
            else:
                study.run(self.workers, on_done)
