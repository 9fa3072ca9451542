"""From the results of a comparison to the record of one growth that a figure shows."""

from __future__ import annotations

from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.table import Table
from esper.figure import GrowthRecord, SlotState

HOST_ALONE = "host alone"
"""Name of the arm that never grows; its curve is the second line of a growth figure."""


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
