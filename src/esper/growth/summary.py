"""A growth in a terminal: its slots, and what it came to."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from esper.growth.result import GrowthResult
from esper.network.growing_network import GrowingNetwork


def slots_table(network: GrowingNetwork, title: str) -> Table:
    """One row a slot: where it is and what it carries."""
    table = Table(title=title, title_justify="left")
    for column in ("slot", "tensor", "kind", "channels", "positions"):
        table.add_column(column, overflow="fold")
    for slot in network.slots:
        kind = slot.spec.kind + (", causal" if slot.spec.causal else "")
        table.add_row(slot.name, slot.output, kind, str(slot.spec.channels), str(slot.spec.positions))
    return table


def summary(result: GrowthResult) -> Group:
    """What grew, when, what it contributed and what it cost, for a rich console."""
    table = Table(title="Growth", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in SEED_COLUMNS:
        table.add_column(column, overflow="fold", justify="right" if column in NUMBERS else "left")
    for row in seed_rows(result):
        table.add_row(*row)
    lines = [Text.assemble((f"{label}: ", "bold"), text) for label, text in result.facts().items()]
    return Group(table, *lines)


SEED_COLUMNS = ("slot", "seed", "from", "outcome", "contributed", "params", "FLOPs")
"""Headings of :func:`seed_rows`."""

NUMBERS = ("contributed", "params", "FLOPs")
"""Those of them that stand at the right."""


def seed_rows(result: GrowthResult) -> list[tuple[str, ...]]:
    """One row for each seed that there was, and for each empty slot."""
    rows: list[tuple[str, ...]] = [
        (s.slot, s.blueprint, f"step {s.germinated}", s.fate, s.contributed, f"{s.params:,}", f"{s.flops:,}")
        for s in result.seeds
    ]
    full = {seed.slot for seed in result.seeds if seed.params}
    return rows + [(name, "—", "", "empty", "", "0", "0") for name in result.slots if name not in full]
