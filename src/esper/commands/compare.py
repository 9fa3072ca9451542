"""``esper compare``: does growth pay, and does the learned controller matter? All arms, on equal terms."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from itertools import product
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esper.evaluation.record import median_growth
from esper.evaluation.study import arms
from esper.evaluation.study.figures import rent_front, score_against_flops, score_against_parameters
from esper.evaluation.study.report import html_report
from esper.evaluation.study.study import Study, StudyConfig, Unit
from esper.evaluation.study.verdicts import COLUMNS, Claim, claims
from esper.evaluation.table import Table
from esper.figure import growth_figure
from esper.files import write_json_atomic
from esper.tamiyo.policy.registry import trained_on


@dataclass(frozen=True)
class CompareCommand:
    """Compare growth controllers and fixed networks on equal terms; a report in HTML, figures, and all results."""

    config: Annotated[StudyConfig, tyro.conf.arg(name="")] = field(default_factory=StudyConfig)
    """The comparison."""
    workers: int = max(1, min(os.cpu_count() or 1, 8))
    """Processes, of one thread each; results do not depend on their number."""
    out: Path | None = None
    """Directory of the comparison; one that exists is gone on with [default: runs/compare-DATE-TIME]."""
    quiet: bool = False
    """One line for each finished piece, for logs, in place of the live display."""

    def run(self, console: Console) -> None:
        """Run every arm, judge the claims, write the report and say where."""
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, got {self.workers}")
        self.config.check()
        directory = self.out or Path("runs") / datetime.now().strftime("compare-%Y%m%d-%H%M%S")
        study = Study(self.config, directory)
        self._run(study, console)
        found, written = write_report(study)
        for claim in found:
            console.print(f"{claim.verdict.upper():14} {claim.title}", highlight=False, soft_wrap=True)
        console.print("Written:")
        for path in written:
            console.print(f"  {path}", soft_wrap=True)

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

            try:
                study.run(self.workers, on_done)
            except KeyboardInterrupt:
                console.print(f"stopped; go on with the same settings and --out {study.directory}", soft_wrap=True)
                raise


def write_report(study: Study) -> tuple[list[Claim], list[Path]]:
    """Judge the claims and write report, figures and tables of a finished study; the claims and what was written."""
    config, directory = study.config, study.directory
    units = set(study.units)
    results = {unit: study.results(unit) for unit in product(config.task, study.arms) if unit in units}
    fronts = {arms.at_rent(arms.TAMIYO, rent) for rent in config.rents}
    everything = Table(results, trained_on(config.policy))
    table = Table({unit: found for unit, found in results.items() if unit[1] not in fronts}, everything.trained_on)
    found = claims(everything, config.rents)
    figures = _figures(everything, table, config, directory)
    page = directory / "report.html"
    meanings = {name: arm.meaning for name, arm in study.arms.items()}
    page.write_text(html_report(table, found, meanings, figures, _settings(study)), encoding="utf-8")
    rows = [row.to_json() for row in everything.rows(COLUMNS)]
    write_json_atomic(directory / "comparison.json", {"claims": [c.to_json() for c in found], "rows": rows})
    return found, [page, directory / "comparison.json", *(path for path, _ in figures)]


def _figures(everything: Table, table: Table, config: StudyConfig, directory: Path) -> list[tuple[Path, str]]:
    """Draw all figures; path and caption of each."""
    figures = [
        (
            directory / "score-parameters.png",
            "Test score against parameters: means with 95 % intervals; each random architecture is a grey dot; no arm "
            "lies above and to the left of the dotted Pareto front.",
        ),
        (
            directory / "score-flops.png",
            "Mean validation score against the FLOPs of training so far, pruned blocks and attribution included; the "
            "curve of the best of random begins where the search for it has ended.",
        ),
        (
            directory / "rent-front.png",
            "One policy under several rents (the price of a doubling of the parameters): mean size and test score.",
        ),
    ]
    score_against_parameters(table, figures[0][0])
    score_against_flops(table, figures[1][0])
    rent_front(everything, config.rents, figures[2][0])
    for task in table.tasks:
        path = directory / f"growth-{task}.png"
        growth_figure(median_growth(table, task, arms.TAMIYO), path)
        figures.append((path, f"{task}: the growth by Tamiyo whose J is the median one, decision by decision."))
    return figures


def _settings(study: Study) -> dict[str, str]:
    config = study.config
    options = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for name, value in asdict(config).items()
    )
    missing = {"Not run": "; ".join(f"{arm} on {task} ({why})" for (task, arm), why in study.obstacles.items())}
    return {
        "Date": date.today().isoformat(),
        "Episodes": f"{config.seeds} paired seeds on each task, from seed {config.seed}",
        "Rent": f"{config.rent:g} (points of score for each doubling of the parameters)",
        "Tamiyo was trained on": ", ".join(trained_on(config.policy)) or "unknown",
        "Command": f"esper compare {options}",
        **(missing if study.obstacles else {}),
    }
