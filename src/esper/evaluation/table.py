"""The results of a comparison by task and arm, and how they are shown: columns, rows, JSON, the terminal, one growth.

``esper train`` and ``esper compare`` report through the same :class:`Table`; they differ in the columns they show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import table as rich_table

from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.episodes import EpisodeResult, OnDecision, run_episodes
from esper.evaluation.names import HOST_ALONE, TAMIYO
from esper.evaluation.statistics import (
    Interval,
    Scores,
    bootstrap,
    interquartile_mean,
    mean,
    paired_difference,
    probability_of_improvement,
)
from esper.record import GrowthRecord, SlotState
from esper.tamiyo.policy.protocol import Policy

Read = Callable[[EpisodeResult], float]
"""What is compared."""


def objective(result: EpisodeResult) -> float:
    """J on validation data: what a controller is trained for."""
    return result.J


def objective_on_test(result: EpisodeResult) -> float:
    """J on test data: as a rule the score less the rent for the parameters."""
    return result.test_J


def score_on_test(result: EpisodeResult) -> float:
    """Score on test data, in [0, 1]."""
    return result.test_score


def total_params(result: EpisodeResult) -> float:
    """Parameters of the final network, host included."""
    return float(result.total_params)


def total_flops(result: EpisodeResult) -> float:
    """FLOPs of the whole training."""
    return result.train_flops[-1]


@dataclass(frozen=True)
class Table:
    """All arms on all tasks; every arm that was run is here."""

    results: dict[tuple[str, str], list[EpisodeResult]]
    """(task, arm) → episodes, in the order of their seeds."""
    trained_on: tuple[str, ...] = ()
    """Tasks that the learned controller has been trained on, as far as is known."""

    @property
    def tasks(self) -> list[str]:
        """Tasks, in the order they were run."""
        return list(dict.fromkeys(task for task, _ in self.results))

    @property
    def arms(self) -> list[str]:
        """Arms, in the order they were run."""
        return list(dict.fromkeys(arm for _, arm in self.results))

    def select(self, task: str, arm: str) -> list[EpisodeResult]:
        """The episodes of one arm on one task; none if it was not run."""
        return self.results.get((task, arm), [])

    def scores(self, arm: str, read: Read, tasks: Sequence[str] | None = None) -> Scores:
        """One value per seed, by task; of all tasks by default."""
        return {task: [read(r) for r in self.results[task, arm]] for task in tasks or self.tasks}

    def paired(self, task: str, arm: str, other: str) -> bool:
        """Whether two arms have played the same episodes of a task."""
        seeds, others = ([result.seed for result in self.select(task, each)] for each in (arm, other))
        return seeds == others

    def difference(self, read: Read, arm: str, other: str, tasks: Sequence[str] | None = None) -> Interval:
        """Mean of ``arm`` less ``other`` over paired seeds."""
        return paired_difference(self.scores(arm, read, tasks), self.scores(other, read, tasks))

    def rows(self, columns: Mapping[str, Column]) -> list[Row]:
        """One row for each task and arm."""
        return [
            Row(task, arm, len(found), {name: column.compute(self, task, arm) for name, column in columns.items()})
            for (task, arm), found in self.results.items()
        ]


def compare(
    envs: Sequence[GrowthVectorEnv],
    arms: Mapping[str, Policy],
    seeds: Sequence[int],
    on_decision: OnDecision | None = None,
) -> Table:
    """Run every arm on the same episodes of every environment (one row per seed, autoreset NEXT_STEP)."""
    results: dict[tuple[str, str], list[EpisodeResult]] = {}
    for env in envs:
        for arm, policy in arms.items():
            found = run_episodes(env, policy, seeds, arm=arm, on_decision=on_decision)
            results.setdefault((env.task.name, arm), []).extend(found)
    return Table(results)


# ---------------------------------------------------------------------- columns and rows


@dataclass(frozen=True)
class Column:
    """What a table shows of one task and arm."""

    heading: str
    """As a reader sees it."""
    compute: Callable[[Table, str, str], Interval | None]
    """Takes the table, a task and an arm; ``None`` where the column has no meaning."""
    show: Callable[[Interval], str] = str
    """The interval as text."""


@dataclass(frozen=True)
class Row:
    """One arm on one task, with 95 % intervals over episodes."""

    task: str
    arm: str
    episodes: int
    intervals: dict[str, Interval | None]
    """By the names of the columns."""

    def shown(self, columns: Mapping[str, Column], *, nothing: str) -> list[str]:
        """The text of each of the columns; ``nothing`` where one has no meaning."""
        return [
            nothing if interval is None else columns[name].show(interval) for name, interval in self.intervals.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        figures = {name: interval and asdict(interval) for name, interval in self.intervals.items()}
        return {"task": self.task, "arm": self.arm, "episodes": self.episodes, **figures}


def summary(read: Read, statistic: Callable[[np.ndarray], np.ndarray] = mean) -> Callable[..., Interval]:
    """Computes ``statistic`` of what ``read`` reads, over episodes."""
    return lambda table, task, arm: bootstrap(table.scores(arm, read, [task]), statistic)


def lead_of(leader: str, read: Read) -> Callable[..., Interval | None]:
    """Computes the mean of ``leader`` less each other arm, where their seeds are paired."""

    def compute(table: Table, task: str, arm: str) -> Interval | None:
        if arm == leader or not table.paired(task, leader, arm):
            return None
        return table.difference(read, leader, arm, [task])

    return compute


def improvement_by(leader: str, read: Read) -> Callable[..., Interval | None]:
    """Computes the probability that an episode of ``leader`` comes to more than one of each other arm."""

    def compute(table: Table, task: str, arm: str) -> Interval | None:
        if arm == leader:
            return None
        return probability_of_improvement(table.scores(leader, read, [task]), table.scores(arm, read, [task]))

    return compute


MEANS: dict[str, Column] = {
    "test_score": Column("test score", summary(score_on_test)),
    "total_params": Column("parameters", summary(total_params), lambda i: f"{i:,.0f}"),
    "J": Column("J", summary(objective)),
}
"""What a short comparison shows: means over episodes, J on validation data."""

INTERQUARTILE_MEANS: dict[str, Column] = {
    "test_score": Column("test score", summary(score_on_test, interquartile_mean)),
    "total_params": Column("parameters", summary(total_params, interquartile_mean), lambda i: f"{i.estimate:,.0f}"),
    "train_flops": Column("training FLOPs", summary(total_flops, interquartile_mean), lambda i: f"{i.estimate:.2e}"),
    "test_J": Column("J on test data", summary(objective_on_test, interquartile_mean)),
    "difference": Column("J(Tamiyo) − J", lead_of(TAMIYO, objective_on_test)),
    "improvement": Column("P", improvement_by(TAMIYO, objective_on_test), lambda i: f"{i:.2f}"),
}
"""What a study shows: interquartile means over episodes, J on test data, and Tamiyo against each arm."""


# ---------------------------------------------------------------------- how a comparison is written


def to_json(table: Table, leader: str) -> dict[str, Any]:
    """Everything, as plain JSON data: means, the paired differences of ``leader`` to all others, and every episode."""
    differences = [
        {"task": task, "arm": leader, "other": other, "J": asdict(table.difference(objective, leader, other, [task]))}
        for task in table.tasks
        for other in table.arms
        if other != leader
    ]
    return {
        "rows": [row.to_json() for row in table.rows(MEANS)],
        "differences": differences,
        "episodes": [result.to_json() for found in table.results.values() for result in found],
    }


def printed(table: Table, leader: str) -> rich_table.Table:
    """A table for the terminal; the last column is the paired difference of ``leader`` to each row."""
    columns = MEANS | {"difference": Column(f"J({leader}) − J", lead_of(leader, objective))}
    shown = rich_table.Table(title="Unseen episodes, test data; mean [95 % interval]")
    for heading in ("task", "controller"):
        shown.add_column(heading)
    for column in columns.values():
        shown.add_column(column.heading, justify="right")
    for row in table.rows(columns):
        last = row.arm == table.arms[-1]
        shown.add_row(row.task, row.arm, *row.shown(columns, nothing=""), end_section=last)
    return shown


# ---------------------------------------------------------------------- the growth that a figure shows


def growth_record(result: EpisodeResult, host_alone: EpisodeResult | None = None) -> GrowthRecord:
    """The growth of one episode, beside the same episode without growth."""
    return GrowthRecord(
        task=result.task,
        policy=result.arm,
        scores=result.scores,
        added_params=result.sizes,
        slots={name: [SlotState(*state) for state in states] for name, states in result.slots.items()},
        host_params=result.host_params,
        host_alone_scores=host_alone.scores if host_alone is not None else (),
    )


def median_growth(table: Table, task: str, arm: str) -> GrowthRecord:
    """The growth of the episode whose J is the median one of ``arm`` on ``task``: neither the best nor the worst."""
    ranked = sorted(table.select(task, arm), key=lambda result: result.J)
    chosen = ranked[len(ranked) // 2]
    alone = [result for result in table.select(task, HOST_ALONE) if result.seed == chosen.seed]
    return growth_record(chosen, alone[0] if alone else None)
