"""The results of a comparison by task and arm, and what they come to: one row each, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import Interval, Scores, bootstrap, mean, paired_difference

Read = Callable[[EpisodeResult], float]
"""What is compared."""


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
        """One value a seed, by task; of all tasks by default."""
        return {task: [read(r) for r in self.results[task, arm]] for task in tasks or self.tasks}

    def difference(self, read: Read, arm: str, other: str, tasks: Sequence[str] | None = None) -> Interval:
        """Mean of ``arm`` less ``other`` over paired seeds."""
        return paired_difference(self.scores(arm, read, tasks), self.scores(other, read, tasks))

    def rows(self, columns: Mapping[str, Column]) -> list[Row]:
        """One row for each task and arm."""
        return [
            Row(task, arm, len(found), {name: column(self, task, arm) for name, column in columns.items()})
            for (task, arm), found in self.results.items()
        ]


Column = Callable[[Table, str, str], Interval | None]
"""What a table shows of one task and arm; ``None`` where it has no meaning."""


@dataclass(frozen=True)
class Row:
    """One arm on one task, with 95 % intervals over episodes."""

    task: str
    arm: str
    episodes: int
    intervals: dict[str, Interval | None]
    """By the names of the columns."""

    def __getitem__(self, column: str) -> Interval:
        """The interval in a column that has one in every row."""
        interval = self.intervals[column]
        assert interval is not None, f"{self.arm} on {self.task} has no {column}"
        return interval

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        figures = {name: interval and asdict(interval) for name, interval in self.intervals.items()}
        return {"task": self.task, "arm": self.arm, "episodes": self.episodes, **figures}


def summary(read: Read, statistic: Callable[[np.ndarray], np.ndarray] = mean) -> Column:
    """A column with ``statistic`` of what ``read`` reads, over episodes."""
    return lambda table, task, arm: bootstrap(table.scores(arm, read, [task]), statistic)
