"""A comparison of controllers on the same episodes, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.protocol import EpisodeResult, OnDecision, run_episodes
from esper.evaluation.statistics import Interval, bootstrap, paired_difference
from esper.tamiyo.policy.base import Policy


@dataclass(frozen=True)
class Row:
    """One arm on one task."""

    task: str
    arm: str
    episodes: int
    test_score: Interval
    J: Interval
    total_params: Interval
    """Parameters of the final network, host included."""


@dataclass(frozen=True)
class Comparison:
    """All arms on all tasks; every arm that was run is here."""

    results: list[EpisodeResult]

    @property
    def tasks(self) -> list[str]:
        """Tasks, in the order they were run."""
        return list(dict.fromkeys(r.task for r in self.results))

    @property
    def arms(self) -> list[str]:
        """Arms, in the order they were run."""
        return list(dict.fromkeys(r.arm for r in self.results))

    def select(self, task: str, arm: str) -> list[EpisodeResult]:
        """The episodes of one arm on one task, in the order of their seeds."""
        return [r for r in self.results if r.task == task and r.arm == arm]

    def rows(self) -> list[Row]:
        """One row for each task and arm, with 95 % intervals over episodes."""
        return [self._row(task, arm) for task in self.tasks for arm in self.arms]

    def _row(self, task: str, arm: str) -> Row:
        chosen = self.select(task, arm)
        of = lambda read: bootstrap({task: [read(r) for r in chosen]})  # noqa: E731
        return Row(
            task,
            arm,
            len(chosen),
            of(lambda r: r.test_score),
            of(lambda r: r.J),
            of(lambda r: float(r.host_params + r.added_params)),
        )

    def difference(self, arm: str, other: str, task: str) -> Interval:
        """Mean of J(arm) − J(other) over paired episodes of one task."""
        mine, theirs = ({task: [r.J for r in self.select(task, a)]} for a in (arm, other))
        return paired_difference(mine, theirs)

    def differences(self, arm: str) -> list[dict[str, Any]]:
        """``arm`` against every other arm, on each task: J of the one less J of the other over paired episodes."""
        return [
            {"task": task, "arm": arm, "other": other, "J": asdict(self.difference(arm, other, task))}
            for task in self.tasks
            for other in self.arms
            if other != arm
        ]

    def to_json(self, arm: str) -> dict[str, Any]:
        """Everything, as plain JSON data: the table, the paired differences of ``arm``, and every episode."""
        return {
            "rows": [asdict(row) for row in self.rows()],
            "differences": self.differences(arm),
            "episodes": [result.to_json() for result in self.results],
        }

    def table(self, arm: str) -> Table:
        """A table for the terminal; the last column is the paired difference of ``arm`` to each row."""
        table = Table(title="Unseen episodes, test data; mean [95 % interval]")
        for column in ("task", "controller", "test score", "parameters", "J"):
            table.add_column(column, justify="left" if column in ("task", "controller") else "right")
        table.add_column(f"J({arm}) − J", justify="right")
        for row in self.rows():
            p = row.total_params
            difference = "" if row.arm == arm else str(self.difference(arm, row.arm, row.task))
            sizes = f"{p.estimate:,.0f} [{p.low:,.0f}, {p.high:,.0f}]"
            last = row.arm == self.arms[-1]
            table.add_row(row.task, row.arm, str(row.test_score), sizes, str(row.J), difference, end_section=last)
        return table


def compare(
    envs: Sequence[GrowthVectorEnv],
    arms: Mapping[str, Policy],
    seeds: Sequence[int],
    on_decision: OnDecision | None = None,
) -> Comparison:
    """Run every arm on the same episodes of every environment (one row a seed, autoreset NEXT_STEP)."""
    results = []
    for env in envs:
        for arm, policy in arms.items():
            results.extend(run_episodes(env, policy, seeds, arm=arm, on_decision=on_decision))
    return Comparison(results)
