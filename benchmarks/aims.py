"""How far growing is from what one would do without it: the table of aims.

    python benchmarks/aims.py --out runs/aims                                  # ten small tasks, three seeds
    python benchmarks/aims.py --out runs/realistic --task letter satellite splice --seeds 2

Each controller beside host alone, the largest block in every slot, the best of 40 random architectures, two searches at
eight times the FLOPs of a growth, and the wider and the deeper host of the same size at twice; all on the same test
episodes. Finished pieces are files, so that an interrupted run goes on where it stopped. Differences are in points,
paired by seed, with 95 % bootstrap intervals stratified by task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table as Printed

from esper.evaluation import Table, names
from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import Interval
from esper.evaluation.study import Study, StudyConfig
from esper.evaluation.table import objective_on_test, score_on_test, total_flops

CONTROLLERS = (names.HEURISTIC, names.AUDITION, names.TAMIYO)
"""Those that may be a default."""

BUDGETS = (2.0, 8.0)
HALVING, BEST_K = (names.at_budget(name, 8) for name in (names.SUCCESSIVE_HALVING, names.ONE_EPOCH))
WIDER, DEEPER = (names.at_budget(name, 2) for name in (names.WIDER_HOST, names.DEEPER_HOST))

FIXED_NETWORKS = (names.HOST_ALONE, names.ALL_FILLED, names.BEST_OF_RANDOM)
ARMS = (
    *CONTROLLERS,
    *FIXED_NETWORKS,
    names.RANDOM_POPULATION,
    names.FIXED,
    names.SHUFFLED,
    names.STATIC_EPOCHS,
    HALVING,
    BEST_K,
    WIDER,
    DEEPER,
)
"""What is run; :data:`names.RANDOM_POPULATION` is what the best of random is chosen from."""


@dataclass
class Options:
    out: Path
    """Directory of the results; one that exists is gone on with."""
    task: tuple[str, ...] = StudyConfig.task
    """Tasks, one or several."""
    seeds: int = 3
    """Paired test episodes of every arm."""
    random_architectures: int = 40
    """That the best is chosen from."""
    skip: tuple[str, ...] = ()
    """Arms that are left out, by name, where they are too dear."""
    workers: int = 2
    """Processes."""


def study_of(options: Options) -> Study:
    """The study of the options, with these arms alone."""
    config = StudyConfig(
        task=options.task,
        seeds=options.seeds,
        random_architectures=options.random_architectures,
        rents=(StudyConfig.rent,),
        budgets=BUDGETS,
    )
    study = Study(config, options.out)
    study.arms = {name: arm for name, arm in study.arms.items() if name in ARMS and name not in options.skip}
    return study


def points(difference: Interval | None) -> str:
    """Hundredths, with the interval."""
    if difference is None:
        return "not run"
    estimate, low, high = (100 * x for x in (difference.estimate, difference.low, difference.high))
    return f"{estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


class Aims:
    """What is asked of the finished results."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def tasks(self, *arms: str) -> list[str]:
        """On which all of these arms were run."""
        return [task for task in self.table.tasks if all(self.table.select(task, arm) for arm in arms)]

    def difference(self, read: Callable[[EpisodeResult], float], arm: str, other: str) -> Interval | None:
        """Over the tasks of both."""
        tasks = self.tasks(arm, other)
        return self.table.difference(read, arm, other, tasks) if tasks else None

    def J(self, task: str, arm: str) -> float:
        """Mean on test data."""
        return float(np.mean([objective_on_test(result) for result in self.table.select(task, arm)]))

    def regrets(self, controller: str) -> dict[str, float]:
        """J of the best arm that was run, less that of the controller, by task."""
        rivals = (*CONTROLLERS, names.FIXED, *FIXED_NETWORKS)
        best = {task: max(self.J(task, arm) for arm in rivals if self.tasks(arm)) for task in self.tasks(controller)}
        return {task: J - self.J(task, controller) for task, J in best.items()}

    def wins(self, controller: str, others: Sequence[str]) -> str:
        """On how many tasks the controller's mean J is at least that of all the others."""
        tasks = self.tasks(controller, *others)
        won = [task for task in tasks if all(self.J(task, controller) >= self.J(task, other) for other in others)]
        return f"{len(won)} of {len(tasks)}"

    def flops(self, arm: str, other: str) -> str:
        """More or fewer training FLOPs than another arm, in percent, mean over tasks."""
        ratios = [
            np.mean([total_flops(r) for r in self.table.select(task, arm)])
            / np.mean([total_flops(r) for r in self.table.select(task, other)])
            for task in self.tasks(arm, other)
        ]
        return f"{100 * (np.mean(ratios) - 1):+.0f} %" if ratios else "not run"

    def rows(self) -> list[tuple[str, list[str]]]:
        """Each aim, and what each controller came to."""
        regrets = [self.regrets(controller) for controller in CONTROLLERS]

        def against(other: str, read: Callable[[EpisodeResult], float] = objective_on_test) -> list[str]:
            return [points(self.difference(read, controller, other)) for controller in CONTROLLERS]

        def only_tamiyo(text: str) -> list[str]:
            return [text if controller == names.TAMIYO else "" for controller in CONTROLLERS]

        static = points(self.difference(score_on_test, names.TAMIYO, names.STATIC_EPOCHS))
        return [
            ("regret, mean over tasks", [f"{100 * np.mean(list(r.values())):.1f}" for r in regrets]),
            ("regret, largest", [f"{100 * max(r.values()):.1f} ({max(r, key=lambda t: r[t])})" for r in regrets]),
            (
                "tasks where J is at least that of both searches at 8×",
                [self.wins(controller, (HALVING, BEST_K)) for controller in CONTROLLERS],
            ),
            ("J less that of successive halving at 8×", against(HALVING)),
            ("J less that of one epoch, best k, at 8×", against(BEST_K)),
            ("J less that of the host alone", against(names.HOST_ALONE)),
            ("score less that of its network from scratch", only_tamiyo(static)),
            ("FLOPs beside that", only_tamiyo(self.flops(names.TAMIYO, names.STATIC_EPOCHS))),
            ("score less that of the wider host of that size", only_tamiyo(against(WIDER, score_on_test)[-1])),
            ("score less that of the deeper host of that size", only_tamiyo(against(DEEPER, score_on_test)[-1])),
            ("J less that with shuffled observations", only_tamiyo(against(names.SHUFFLED)[-1])),
            ("J less that of the fixed schedule", against(names.FIXED)),
            ("FLOPs beside the host alone", [self.flops(controller, names.HOST_ALONE) for controller in CONTROLLERS]),
        ]


def main() -> None:
    """Run what is missing and print J of every arm, the regrets and the aims."""
    options = tyro.cli(Options, description=__doc__)
    study, console = study_of(options), Console(width=200)
    study.run(options.workers, lambda unit: console.print(f"{unit[0]}, {unit[1]}"))
    aims = Aims(Table({unit: study.results(unit) for unit in study.units}))
    shown = [arm for arm in ARMS if arm in study.arms and arm != names.RANDOM_POPULATION]
    by_task = Printed("J on test data, %", *shown, title=f"{options.seeds} seeds")
    for task in aims.table.tasks:
        by_task.add_row(task, *[f"{100 * aims.J(task, arm):.1f}" if aims.tasks(arm) else "" for arm in shown])
    console.print(by_task)
    table = Printed("aim", *CONTROLLERS, title="Points (hundredths) [95 % interval]")
    for aim, cells in aims.rows():
        table.add_row(aim, *cells)
    console.print(table)
    for controller in CONTROLLERS:
        regrets = ", ".join(f"{task} {100 * r:.1f}" for task, r in aims.regrets(controller).items())
        console.print(f"Regret of {controller}: {regrets}")


if __name__ == "__main__":
    main()
