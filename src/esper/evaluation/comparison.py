"""A comparison of controllers on the same episodes, as numbers and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import table as rich_table

from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.episodes import EpisodeResult, OnDecision, run_episodes
from esper.evaluation.table import Column, Table, summary
from esper.tamiyo.policy.protocol import Policy


def objective(result: EpisodeResult) -> float:
    """J on validation data: what a controller is trained for."""
    return result.J


COLUMNS: dict[str, Column] = {
    "test_score": summary(lambda result: result.test_score),
    "J": summary(objective),
    "total_params": summary(lambda result: float(result.total_params)),
}
"""Means over episodes."""


def compare(
    envs: Sequence[GrowthVectorEnv],
    arms: Mapping[str, Policy],
    seeds: Sequence[int],
    on_decision: OnDecision | None = None,
) -> Table:
    """Run every arm on the same episodes of every environment (one row a seed, autoreset NEXT_STEP)."""
    results: dict[tuple[str, str], list[EpisodeResult]] = {}
    for env in envs:
        for arm, policy in arms.items():
            found = run_episodes(env, policy, seeds, arm=arm, on_decision=on_decision)
            results.setdefault((env.task.name, arm), []).extend(found)
    return Table(results)


def to_json(table: Table, arm: str) -> dict[str, Any]:
    """Everything, as plain JSON data: the rows, the paired differences of ``arm``, and every episode."""
    differences = [
        {"task": task, "arm": arm, "other": other, "J": asdict(table.difference(objective, arm, other, [task]))}
        for task in table.tasks
        for other in table.arms
        if other != arm
    ]
    return {
        "rows": [row.to_json() for row in table.rows(COLUMNS)],
        "differences": differences,
        "episodes": [result.to_json() for found in table.results.values() for result in found],
    }


def printed(table: Table, arm: str) -> rich_table.Table:
    """A table for the terminal; the last column is the paired difference of ``arm`` to each row."""
    shown = rich_table.Table(title="Unseen episodes, test data; mean [95 % interval]")
    for column in ("task", "controller", "test score", "parameters", "J"):
        shown.add_column(column, justify="left" if column in ("task", "controller") else "right")
    shown.add_column(f"J({arm}) − J", justify="right")
    for row in table.rows(COLUMNS):
        p = row["total_params"]
        difference = "" if row.arm == arm else str(table.difference(objective, arm, row.arm, [row.task]))
        sizes = f"{p.estimate:,.0f} [{p.low:,.0f}, {p.high:,.0f}]"
        last = row.arm == table.arms[-1]
        cells = (row.task, row.arm, str(row["test_score"]), sizes, str(row["J"]), difference)
        shown.add_row(*cells, end_section=last)
    return shown
